"""Train networks: `trainer` is the loop, `members` the networks of a run, `backprop` the gradient by hand, `optim` AdamW.

Called by `lstmlm train`; `dynamic`, which learns from what it is scored on, by `lstmlm eval`.
`events`, `distributed`, `clock_log` and `malloc` import no torch.
"""
