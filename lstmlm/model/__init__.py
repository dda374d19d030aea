"""The network: the equations (`cell`), layers (`lstm`), the language model (`char_lm`), several as one (`ensemble`).

`devices` says where it may run.
"""
