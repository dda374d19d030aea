"""What a person sees: the console, progress of a run, tables and curves, SVG pictures, the gate page, TensorBoard.

It draws numbers that it is given. Imports no torch.
"""
