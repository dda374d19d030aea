"""Look inside a trained network: gates along a text, what is forgotten at a mark, which unit carries what, how far back it looks.

Called by `lstmlm inspect` and `fill --forget-at`; imports `evaluation` and `model`.
"""
