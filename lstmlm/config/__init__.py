"""The settings of a run: declared in `schema`, read and joined in `run_config`, and chosen for the budget in `auto_tune`.

Imports nothing but `errors` and `units`, and no torch.
"""
