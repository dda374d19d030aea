"""The Triton kernel for tests: on a CUDA device where there is one, else in Triton's interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when it is imported, whoever does that first, and again when it is used
