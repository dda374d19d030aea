"""The recurrence in a few torch calls a step: the kernel for any machine, device and floating type."""

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, Multiplied, Rows
from lstmlm.kernels.pointwise import TorchPointwise, tf32

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y), into a given tensor
_tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y * y), into a given tensor


ALIGNED = 64  # bytes; torch begins every tensor of its own at a multiple on the CPU


class EagerKernel:
    """See `Kernel`. Every product and activation writes into memory allocated once for the window.

    The bits of a product by MKL depend on where in a cache line its matrices begin, so that on the CPU one that begins elsewhere
    than at a multiple of 64 bytes is copied first. They still depend on how many rows there are and on torch's number of threads.

    Args:
        fast: Whether the products of a CUDA device may round float32 factors to TF32; sums and all else stay float32. What is
            not a product of this kernel, such as the readout, never does.
        strict: What reads for scores, where that is another kernel.
    """

    factors = None
    any_threads = False  # MKL's products

    def __init__(self, *, fast: bool = False, strict: Kernel | None = None) -> None:
        self._fast = fast
        self._strict = strict
        self.pointwise = TorchPointwise(fast=fast)
        self.name = "eager TF32" if fast else "eager"

    @property
    def strict(self) -> Kernel:
        """See `Kernel.strict`: its products are of the tensors' own type."""
        return self._strict or (EagerKernel() if self._fast else self)

    def forward(
        self,
        a: Tensor | Rows,
        W: Tensor,
        H_0: Tensor,
        C_0: Tensor,
        *,
        bias: Tensor | None = None,
        into: Activations | None = None,
        multiplied: Multiplied | None = None,
    ) -> Activations:
        """Run T steps; see `Kernel.forward`."""
        T, B, S4 = a.shape
        S = S4 // 4
        if isinstance(a, Rows):
            gates = H_0.new_empty(T * B, S4) if into is None else into.gates.view(T * B, S4)
            a = torch.index_select(a.table, 0, a.ids.reshape(-1), out=gates).view(T, B, S4)
        if bias is not None:
            a.add_(bias)
        _, C, H = into or Activations(a, a.new_empty(T, B, S), a.new_empty(T, B, S))
        W = _aligned(W.contiguous())  # once: a product would do so in every step
        H_prev, C_prev = H_0, C_0
        with tf32(self._fast):
            for t, (a_t, sigmoids, N_t, f_t, i_t, o_t, C_t, H_t) in enumerate(
                zip(*(a.unbind(0), a[..., : 3 * S].unbind(0), *_last_first(a, S), C.unbind(0), H.unbind(0)), strict=True)
            ):
                m_t = H_prev
                if multiplied is not None:
                    m_t = multiplied.scale[t] * H_prev  # in memory of its own, which begins where the product wants it
                    multiplied.m[t] = m_t
                self._multiply(m_t, W, a_t, add=True)
                sigmoids.sigmoid_()
                N_t.tanh_()
                torch.mul(f_t, C_prev, out=C_t).addcmul_(i_t, N_t)
                torch.tanh(C_t, out=H_t).mul_(o_t)
                H_prev, C_prev = H_t, C_t
        return Activations(a, C, H)

    def backward(
        self,
        dH: Tensor,
        dC_T: Tensor,
        gates: Tensor,
        C: Tensor,
        C_0: Tensor,
        W: Tensor,
        *,
        multiplied: Multiplied | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the T steps back; see `Kernel.backward`. tanh(C_t) is computed again rather than kept."""
        T, B, S = C.shape
        dC = dC_T.clone(memory_format=torch.contiguous_format)
        ds = gates.new_empty(B, 3 * S)  # gradients of f, i, o after their activation
        df, di, do = ds.split(S, dim=-1)
        tanh_C, through = gates.new_empty(B, S), gates.new_empty(B, S)
        W_back = _aligned(W.contiguous()).t()
        N, f, i, o = _last_first(gates, S)
        steps, sigmoids, cells = gates.unbind(0), gates[..., : 3 * S].unbind(0), C.unbind(0)
        dH_t = dH[-1].clone()
        with tf32(self._fast):
            for t in range(T - 1, -1, -1):
                C_prev = cells[t - 1] if t else C_0
                torch.tanh(cells[t], out=tanh_C)
                # H_t = o_t * tanh(C_t)
                torch.mul(dH_t, tanh_C, out=do)
                torch.mul(dH_t, o[t], out=through)
                dC.add_(_tanh_backward(through, tanh_C, grad_input=through))
                # C_t = f_t * C_{t-1} + i_t * N_t
                torch.mul(dC, C_prev, out=df)
                torch.mul(dC, N[t], out=di)
                torch.mul(dC, i[t], out=through)
                dC.mul_(f[t])
                _tanh_backward(through, N[t], grad_input=N[t])
                _sigmoid_backward(ds, sigmoids[t], grad_input=sigmoids[t])
                # a_t = a[t] + m_t W
                da_t = _aligned(steps[t])
                if multiplied is None:
                    dH_t = torch.addmm(dH[t - 1], da_t, W_back) if t else da_t @ W_back
                    continue
                # m_t = scale[t] * H_{t-1}
                dm_t = da_t @ W_back
                dH_t = torch.addcmul(dH[t - 1], dm_t, multiplied.scale[t]) if t else dm_t * multiplied.scale[t]
                multiplied.scale[t] = dm_t
        return gates, dH_t, dC

    def product(self, A: Tensor, B: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Compute A B, or out + A B; see `Kernel.product`."""
        with tf32(self._fast):
            return _aligned(A) @ _aligned(B) if out is None else self._multiply(A, B, out, add=add)

    def _multiply(self, A: Tensor, B: Tensor, out: Tensor, *, add: bool) -> Tensor:
        """Write or add A B to out."""
        A, B, place = _aligned(A), _aligned(B), _aligned(out)
        if add:
            place.addmm_(A, B)
        else:
            torch.mm(A, B, out=place)
        return out if place is out else out.copy_(place)


def _aligned(x: Tensor) -> Tensor:
    """Return a tensor, or on the CPU its copy at a multiple of 64 bytes."""
    return x if x.device.type != "cpu" or x.data_ptr() % ALIGNED == 0 else x.clone()


def _last_first(gates: Tensor, S: int) -> tuple[tuple[Tensor, ...], ...]:
    """Return the per-step views of N, f, i, o of gates whose first dimension is time."""
    f, i, o, N = gates.split(S, dim=-1)
    return N.unbind(0), f.unbind(0), i.unbind(0), o.unbind(0)
