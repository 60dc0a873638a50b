"""Matrix products that bound distances, however they are rounded: factors for products in bfloat16 or float32."""

import torch
from torch import Tensor

CHUNK_ROWS = 2048


def has_bfloat16() -> bool:
    """Whether the processor has products in bfloat16: several times as fast as in float32, and summed in that."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def bounding_factors(
    points: Tensor, centre: Tensor, precision: torch.dtype, *, of_right: bool = False, multiple: int = 1
) -> Tensor:
    """Factors (rows, dim + 8) of the `points` (rows, dim) less a centre, for the left or the right of a product.

    The product left @ right.T, summed in float32, is at least -|x - y|^2 / 2 before its entries are rounded themselves.

    With x' the rounded x: <x, y> <= <x', y'> + |x - x'| |y'| + |x| |y - y'|; |x|^2 / 2 is in three parts, the rounded
    one and what is left of it, twice. A sum of n products in float32 may be wrong by n / 2^24 of the sum of their sizes
    (Higham 2002, section 3.1), which is less than |x|^2 + |y|^2; twice that much is taken off the |x|^2. The number of
    rows is filled up to a `multiple` with rows of the right at -inf from all of the left.
    """
    dim = points.shape[1]
    margin = 2 * (dim + 8) / 2**24
    factors = points.new_zeros(len(points) + -len(points) % multiple, dim + 8, dtype=precision)
    of_own, of_other = (dim + 3, dim) if of_right else (dim, dim + 3)
    factors[: len(points), of_other : of_other + 3] = 1
    factors[len(points) :, of_own] = -torch.inf
    for start in range(0, len(points), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, len(points)))
        exact = points[rows] - centre
        rounded = exact.to(precision).to(exact.dtype)
        factors[rows, :dim] = rounded.to(precision)
        length, own_length, error = (_length(values) for values in (exact, rounded, exact - rounded))
        rest = length.square() * (margin - 0.5)
        for part in range(of_own, of_own + 3):
            factors[rows, part] = rest.to(precision)
            rest -= factors[rows, part].double()
        at_least = (own_length, error) if of_right else (error, length)
        factors[rows, -2:] = torch.stack([value * (1 + 2**-7) for value in at_least], dim=1).to(precision)
    return factors


def _length(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points, dim=1, dtype=torch.float64)
