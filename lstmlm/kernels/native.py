"""The recurrence in C: all T steps in one call, compiled for the machine it runs on (`native.c`).

`load` compiles it, compares it with `eager` and returns it, for `kernels.choose`.
"""

import ctypes
import math
import platform
import threading
import time
from functools import cache
from itertools import count

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, Multiplied, Rows, arguments, build
from lstmlm.kernels.arguments import checked, pointers
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.native_pointwise import NativePointwise
from lstmlm.kernels.threads import one_thread

__all__ = ["NativeKernel", "Unavailable", "load"]

FLOAT32, FLOAT16, TILES, PAIRS, INTS = range(5)
"""The kinds of products in `low.h`: TILES and PAIRS have bfloat16 factors, by AMX and by AVX512-BF16."""

NAMES = "float32", "float16", "bfloat16", "bfloat16", "int16"

VECTORS = {16: "AVX-512", 8: "AVX2", 4: "NEON" if platform.machine().lower() in ("aarch64", "arm64") else "plain C"}

WITHIN = {FLOAT32: 1e-5, FLOAT16: 1e-2, TILES: 5e-2, PAIRS: 5e-2, INTS: 5e-3}
"""What the self-check allows each kind: float32 its promise; the others some ten times their rounding, 2^-11, 2^-8 and 2^-12."""

MARGIN = 1.1
"""How many times as quick a kernel has to be to be taken in place of a more exact one, or one whose bits depend on no threads."""

WARM, SECONDS = 2, 0.1
"""How often native and eager are timed at least, as the first times find memory and caches cold; and for how long at most."""


class NativeKernel:
    """See `Kernel`. float32 on the CPU. Sums run in a fixed order: the bits do not depend on the number of threads.

    The kinds other than FLOAT32 round the factors of the products with W; sums, states, activations and gradients stay float32.
    `strict` is the same in float32.
    """

    factors = None
    any_threads = True

    def __init__(self, library: ctypes.CDLL, kind: int = FLOAT32, strict: "NativeKernel | None" = None) -> None:
        _declare(library)
        self.library = library
        self._strict = strict
        self.kind = kind
        self._scratch = threading.local()
        width = library.lstmlm_vector()
        unit = VECTORS[width], "AVX512-FP16", "AMX", "AVX512-BF16", "AVX512-VNNI" if width == 16 else "AVX-VNNI"
        self.pointwise = NativePointwise(library)
        self.name = f"native {NAMES[kind]} ({unit[kind]})"

    @property
    def strict(self) -> "NativeKernel":
        """See `Kernel.strict`."""
        return self._strict or self

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
        ids = table = None
        if isinstance(a, Rows):
            table = checked("table", a.table, len(a.table), 4 * S)
            ids = arguments.checked_ids("ids", a.ids, len(table), T, B)
        else:
            checked("a", a, T, B, 4 * S)
        form = self._form(W, S, back=False)
        H_0, C_0 = checked("H_0", H_0.contiguous(), B, S), checked("C_0", C_0.contiguous(), B, S)
        if bias is not None:
            checked("bias", bias, 4 * S)
        if into is None:
            into = Activations(
                H_0.new_empty(T, B, 4 * S) if isinstance(a, Rows) else a, H_0.new_empty(T, B, S), H_0.new_empty(T, B, S)
            )
        gates, C, H = checked("gates", into.gates, T, B, 4 * S), checked("C", into.C, T, B, S), checked("H", into.H, T, B, S)
        if not isinstance(a, Rows) and a.data_ptr() != gates.data_ptr():
            raise ValueError("gates: expected the memory of a, found other memory.")
        scratch = self._call_scratch(back=False, B=B, S=S)
        given = pointers(form, scratch, ids, table, bias, H_0, C_0, gates, C, H, *_checked(multiplied, T, B, S))
        self.library.lstmlm_forward(self.kind, arguments.threads(), T, B, S, *given)
        return into

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
        """Run the T steps back; see `Kernel.backward`."""
        T, B, S = C.shape
        checked("gates", gates, T, B, 4 * S)
        form = self._form(W, S, back=True)
        dH, dC_T = checked("dH", dH.contiguous(), T, B, S), checked("dC_T", dC_T.contiguous(), B, S)
        C, C_0 = checked("C", C.contiguous(), T, B, S), checked("C_0", C_0.contiguous(), B, S)
        dH_0, dC_0 = C.new_empty(B, S), C.new_empty(B, S)
        scale, _ = _checked(multiplied, T, B, S)
        given = pointers(form, self._call_scratch(back=True, B=B, S=S), dH, dC_T, gates, C, C_0, dH_0, dC_0, scale)
        self.library.lstmlm_backward(self.kind, arguments.threads(), T, B, S, *given)
        return gates, dH_0, dC_0

    def product(self, A: Tensor, B: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Compute A B, or out + A B, in the kernel's precision with float32 sums; see `Kernel.product`."""
        (M, K), N = A.shape, B.shape[1]
        if out is None:
            out = A.new_zeros(M, N) if add else A.new_empty(M, N)
        turned = [not x.is_contiguous() for x in (A, B)]
        A, B = (x.t() if turn else x for x, turn in zip((A, B), turned, strict=True))
        checked("A", A, *((K, M) if turned[0] else (M, K)))
        checked("B", B, *((N, K) if turned[1] else (K, N)))
        checked("out", out, M, N)
        threads = arguments.threads()
        scratch = self._bytes(self.library.lstmlm_multiply_size(threads, N))
        self.library.lstmlm_multiply(self.kind, threads, M, N, K, *turned, add, *pointers(A, B, out, scratch))
        return out

    def _form(self, W: Tensor, S: int, back: bool) -> Tensor:
        """Return W as the pass reads it, packed into memory that this thread keeps for it."""
        checked("W", W, S, 4 * S)
        kept: dict[tuple[int, bool], Tensor] = self._scratch.__dict__.setdefault("forms", {})
        form = kept.get((S, back))
        if form is None:
            form = kept[S, back] = torch.empty(self.library.lstmlm_packed_size(self.kind, back, S), dtype=torch.uint8)
        self.library.lstmlm_pack(self.kind, back, arguments.threads(), S, *pointers(W, form))
        return form

    def _call_scratch(self, back: bool, B: int, S: int) -> Tensor:
        return self._bytes(self.library.lstmlm_scratch_size(self.kind, back, B, S))

    def _bytes(self, need: int) -> Tensor:
        """Return memory that lasts for a call, the same one each time."""
        kept: Tensor | None = getattr(self._scratch, "bytes", None)
        if kept is None or len(kept) < need:
            kept = self._scratch.bytes = torch.empty(need, dtype=torch.uint8)
        return kept


def _checked(multiplied: Multiplied | None, T: int, B: int, S: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the scale and m, or nothing of a layer that has none."""
    if multiplied is None:
        return None, None
    return checked("scale", multiplied.scale, T, B, S), checked("m", multiplied.m, T, B, S)


@cache
def load(precision: str = "float32", keep: str = "") -> NativeKernel:
    """Compile or find the native kernel, check it once on a small case against eager in float64, and return it.

    Args:
        precision: float32 is strict. bfloat16 allows products of that precision or better: by AMX, or else whichever of float16,
            bfloat16, int16 and float32 is fastest here; the kernel's name says which. auto is bfloat16.
        keep: The name of the kernel that a run began with: taken if it is one of these and runs here.

    Raises:
        Unavailable: It cannot be compiled here, gives wrong results, or the precision is not one of these.
    """
    if precision not in ("auto", "bfloat16", "float32"):
        raise Unavailable(f"it has no {precision} products")
    library = build.library()
    strict = _examined(NativeKernel(library))
    if strict is None:  # scores need it, whatever trains: it is there, or none is
        raise Unavailable(f"the compiled kernel disagrees with eager by {disagreement(NativeKernel(library)):.1e}")
    if precision == "float32":
        return strict
    there = every_kind(strict)
    for kernel in there:
        if kernel.name == keep and _examined(kernel):
            return kernel
    return _fastest(library, [kernel for kernel in there if _examined(kernel)])


def every_kind(strict: NativeKernel) -> list[NativeKernel]:
    """Return a kernel of each kind of products that this CPU has, AMX's before all others, the strict one last."""
    kinds = [kind for kind in (TILES, FLOAT16, PAIRS, INTS) if strict.library.lstmlm_has(kind)]
    return [*(NativeKernel(strict.library, kind, strict) for kind in kinds), strict]


def _examined(kernel: NativeKernel) -> NativeKernel | None:
    """Return a kernel that is right, as it was when it was last examined here; None if it is wrong."""
    examination = f"{kernel.kind}-{torch.__version__}"
    if build.passed(kernel.library, examination):
        return kernel
    if not disagreement(kernel) < WITHIN[kernel.kind]:  # or NaN
        return None
    build.passed(kernel.library, examination, now=True)
    return kernel


def _fastest(library: ctypes.CDLL, kernels: list[NativeKernel]) -> NativeKernel:
    """Return the fastest of some kernels, as it was found when they were first asked for.

    AMX is many times as fast as all else. What AVX512-BF16 is worth no flag tells: twice float32 on AMD's cores, half of it on
    Intel's; nor what VNNI is. So all are timed, for some milliseconds on one thread; of what is as fast within a tenth the most
    exact is taken, and INTS only where all others are slower than that.
    """
    if kernels[0].kind == TILES or not any(kernel.kind in (PAIRS, INTS) for kernel in kernels):
        return kernels[0]
    for kernel in kernels:
        if build.passed(library, f"fastest-{kernel.kind}"):
            return kernel
    seconds = _seconds(kernels)
    more_exact = sorted(kernels, key=lambda kernel: (kernel.kind == INTS, WITHIN[kernel.kind]))
    best = next(kernel for kernel in more_exact if seconds[kernel] <= MARGIN * min(seconds.values()))
    build.passed(library, f"fastest-{best.kind}", now=True)
    return best


def _seconds(kernels: list[NativeKernel], slices: int = 12) -> dict[NativeKernel, float]:
    """Return the least time of a product of each: slices of half a millisecond in turn, so that another process disturbs all."""
    A, B, out = torch.ones(96, 512), torch.ones(512, 512), torch.empty(96, 512)
    found = dict.fromkeys(kernels, math.inf)
    with one_thread():
        for _ in range(slices):
            for kernel in kernels:
                began = time.perf_counter()
                kernel.product(A, B, out)
                found[kernel] = min(found[kernel], time.perf_counter() - began)
    return found


def is_slower(kernel: NativeKernel, eager: EagerKernel) -> bool:
    """Say whether eager is clearly quicker than a kernel, as it was found when first asked.

    So it may be where torch's products have a matrix unit that C cannot reach (Apple's), or C no vectors. It has to be so on one
    thread, which another process disturbs least, and on as many as there are now, as it may gain less by them.
    """
    found = f"{kernel.kind}-{arguments.threads()}-{torch.__version__}"
    for answer in (False, True):
        if build.passed(kernel.library, f"eager-{answer:d}-{found}"):
            return answer
    with one_thread():
        own, other = _recurrence_seconds(kernel, eager)
    if own > MARGIN * other and arguments.threads() > 1:
        own, other = map(min, (own, other), _recurrence_seconds(kernel, eager))
    slower = own > MARGIN * other
    build.passed(kernel.library, f"eager-{slower:d}-{found}", now=True)
    return slower


def _recurrence_seconds(kernel: Kernel, other: Kernel) -> tuple[float, float]:
    """Return the least time of each for a short recurrence: forward, back and the product for dW.

    They take turns until the first one was not the slower, as a busy machine has it look slower for some turns, or time is up.
    """
    T, B, S = 4, 16, 256
    a, dH, W = torch.zeros(T, B, 4 * S), torch.zeros(T, B, S), torch.full((S, 4 * S), 1e-3)
    empty, dW = torch.zeros(B, S), torch.zeros(S, 4 * S)
    found = {kernel: math.inf, other: math.inf}
    end = time.perf_counter() + SECONDS
    for turn in count():
        for one in found:
            began = time.perf_counter()
            gates, C, H = one.forward(a, W, empty, empty)
            da, _, _ = one.backward(dH, empty, gates, C, empty, W)
            one.product(H.view(-1, S).t(), da.view(-1, 4 * S), dW)
            found[one] = min(found[one], time.perf_counter() - began)
        if turn >= WARM and (found[kernel] <= MARGIN * found[other] or time.perf_counter() > end):
            break
    return found[kernel], found[other]


def disagreement(kernel: NativeKernel) -> float:
    """Return the largest relative difference between the kernel and eager in float64, over a small case.

    It is run as a plain layer and as a multiplicative one.
    """
    T, B, S = 3, 17, 37
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, B, 4 * S), (S, 4 * S), (B, S), (B, S), (T, B, S), (B, S), (T, B, S)]
    given = [torch.randn(*shape, generator=generator) for shape in shapes]
    given[1] *= S**-0.5

    results = []
    for run, dtype in ((EagerKernel(), torch.float64), (kernel, torch.float32)):
        found = []
        for multiplicative in (False, True):
            a, W, H_0, C_0, dH, dC_T, scale = (part.to(dtype, copy=True) for part in given)
            multiplied = Multiplied(scale, torch.empty_like(scale)) if multiplicative else None
            gates, C, H = run.forward(a, W, H_0, C_0, multiplied=multiplied)
            kept = gates.clone()
            back = run.backward(dH, dC_T, gates, C, C_0, W, multiplied=multiplied)
            found += [kept, C, H, *back, run.product(H.view(-1, S).t(), gates.view(-1, 4 * S)), *(multiplied or ())]
        results.append(found)
    return float(torch.stack([(x - y).abs().max() / x.abs().max() for x, y in zip(*results, strict=True)]).max())  # or NaN


def _declare(library: ctypes.CDLL) -> None:
    """State the arguments of the entry points, and hand torch's OpenMP runtime to the library: never a second one."""
    number, size, pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
    library.lstmlm_vector.argtypes = []
    library.lstmlm_has.argtypes = [number]
    library.lstmlm_packed_size.argtypes, library.lstmlm_packed_size.restype = [number, number, size], size
    library.lstmlm_scratch_size.argtypes, library.lstmlm_scratch_size.restype = [number, number, size, size], size
    library.lstmlm_pack.argtypes = [number, number, number, size, pointer, pointer]
    library.lstmlm_forward.argtypes = [number, number, size, size, size, *[pointer] * 12]
    library.lstmlm_backward.argtypes = [number, number, size, size, size, *[pointer] * 10]
    library.lstmlm_multiply_size.argtypes, library.lstmlm_multiply_size.restype = [number, size], size
    library.lstmlm_multiply.argtypes = [number, number, size, size, size, number, number, number, *[pointer] * 4]
    library.lstmlm_team.argtypes = [pointer] * 3
    names = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
    try:
        # A look-up in torch's extension module also searches the libraries that torch itself is linked to.
        torch_library = ctypes.CDLL(str(torch._C.__file__))
        library.lstmlm_team(*[ctypes.cast(getattr(torch_library, name), pointer) for name in names])
    except (OSError, AttributeError):
        pass  # this torch has another runtime: a call makes its threads itself
