"""The rounding of ``rounding.py`` and ``exact.py`` in Triton, bit for bit.

Imported only where Triton is installed. Device functions that the update kernels share, and one
kernel that rounds a whole tensor. Invariant: equal fp32 values and keys give the bits of the twins.
"""

# Arguments of device functions are what Triton makes of them: pointers, blocks and scalars.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.training.optimizer.rounding import NoiseKey

NEAREST, STOCHASTIC, EXACT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_BLOCK = 2048


def signed(word: int) -> int:
    """Give the int32 with the bits of a 32-bit word: its type does not depend on its size."""
    return word - (1 << 32) if word >= 1 << 31 else word


def chosen_rounding(weight: Tensor, noise: NoiseKey | None, low: Tensor | None) -> int:
    """Give the constant that says how a kernel stores ``weight``."""
    if low is not None:
        return int(EXACT.value)
    is_stochastic = noise is not None and weight.dtype == torch.bfloat16
    return int(STOCHASTIC.value if is_stochastic else NEAREST.value)


@triton.jit
def noise_bits(index, first, second):
    """Give the 16-bit random numbers of elements ``index`` (uint32) as uint32."""
    word = index ^ first.to(tl.uint32, bitcast=True)
    word ^= word >> 16
    word = word * 0x21F0AAAD + second.to(tl.uint32, bitcast=True)
    word ^= word >> 15
    word = word * 0x735A2D97
    word ^= word >> 15
    return word & 0xFFFF


@triton.jit
def stochastic_bfloat16(values, index, first, second):
    """Round fp32 to a neighbour in bfloat16; infinities and NaN stay what they are."""
    bits = values.to(tl.uint32, bitcast=True)
    is_finite = (bits & 0x7F800000) != 0x7F800000
    up = bits + noise_bits(index, first, second)
    kept = tl.where(values == values, bits, 0x7FC00000)
    return (tl.where(is_finite, up, kept) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def nearest_bfloat16(values):
    """Round fp32 to the nearest bfloat16, halves to even."""
    bits = values.to(tl.uint32, bitcast=True)
    up = bits + 0x7FFF + ((bits >> 16) & 1)
    up = tl.where(values == values, up, 0x7FC00000)
    return (up >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def joined_halves(high, low):
    """Give the fp32 value of a bfloat16 high half and an int16 low half."""
    bits = high.to(tl.int16, bitcast=True).to(tl.int32) << 16
    return (bits + low.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def split_halves(values):
    """Give the nearest bfloat16, halves away from zero, and the int16 that is missing to it."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(values == values, bits, 0x7FC00000)
    high = (bits + 0x8000) >> 16
    low = bits - (high << 16)
    return high.to(tl.int16).to(tl.bfloat16, bitcast=True), low.to(tl.int16)


@triton.jit
def store_weight(weight, low, at, inside, new, first, second, ROUNDING: tl.constexpr):
    """Store fp32 ``new`` as the weights ``at`` (their index in the parameter), rounded once."""
    if weight.dtype.element_ty == tl.float32:
        tl.store(weight + at, new, mask=inside)
    elif ROUNDING == EXACT:
        high, rest = split_halves(new)
        tl.store(weight + at, high, mask=inside)
        tl.store(low + at, rest, mask=inside)
    elif ROUNDING == STOCHASTIC:
        rounded = stochastic_bfloat16(new, at.to(tl.uint32), first, second)
        tl.store(weight + at, rounded, mask=inside)
    else:
        tl.store(weight + at, nearest_bfloat16(new), mask=inside)


@triton.jit
def load_weight(weight, low, at, inside, ROUNDING: tl.constexpr):
    """Give the weights ``at`` in fp32, with their low halves where they are exact."""
    old = tl.load(weight + at, mask=inside, other=0.0)
    if ROUNDING == EXACT:
        return joined_halves(old, tl.load(low + at, mask=inside, other=0))
    return old.to(tl.float32)


@triton.jit
def total(parts, num_parts, BLOCK: tl.constexpr):
    """Add up an array that other programs wrote, in an order that depends on its length alone."""
    lanes = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, num_parts, BLOCK):
        found += tl.load(parts + begin + lanes, mask=begin + lanes < num_parts, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def is_healthy(square, ok):
    """Tell whether anything may move: a finite sum of squares and a true ``ok`` (uint8)."""
    healthy = tl.abs(square) < float("inf")
    if ok is not None:
        healthy = healthy & (tl.load(ok) != 0)
    return healthy


@triton.jit(do_not_specialize=["first", "second"])
def _round_kernel(values, rounded, size, first, second, BLOCK: tl.constexpr):
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    local = tl.arange(0, BLOCK)
    inside = local < size - begin
    old = tl.load(values + begin + local, mask=inside)
    index = begin.to(tl.uint32) + local.to(tl.uint32)
    tl.store(rounded + begin + local, stochastic_bfloat16(old, index, first, second), mask=inside)


def round_stochastically(values: Tensor, into: Tensor, key: NoiseKey) -> None:
    """Do what ``rounding.round_stochastically`` does, in one pass over tensors on a GPU."""
    size = values.numel()
    with torch.cuda.device_of(values):
        _round_kernel[(triton.cdiv(size, _BLOCK),)](
            values, into, size, signed(key.first), signed(key.second), BLOCK=_BLOCK
        )
