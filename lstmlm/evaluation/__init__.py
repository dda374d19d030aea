"""What a trained network says of texts: exact scores, per line, blanks, plainer means beside it, and samples.

Called by `lstmlm eval`, `fill` and `sample`, by `api`, and by the trainer for its validations.
"""
