"""Files of a run: atomic writes, checkpoints, and the run folder with its lock.

Imports nothing but `errors`, and torch only where tensors become bytes.
"""
