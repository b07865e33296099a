"""How an updated fp32 weight becomes bfloat16 again: stochastically by counter, or to nearest.

The random number of an element is a function of (run seed, step, checksum of the parameter's name,
index in the parameter). Nothing is drawn and no state exists, so resume, the split into stages and
replicas agree. Written with int64 and masks; a uint32 kernel of the same mix gives the same bits.

Invariant: no result lies outside the two bfloat16 neighbours of its fp32 value.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# Multipliers and shifts of a two-round 32-bit integer mix with low measured bias; both multipliers
# are below 2^31, so a product with 32 bits never leaves int64.
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97

# Pieces that stay in a core's cache on the CPU; on a GPU large ones, to launch few kernels.
_CPU_CHUNK, GPU_CHUNK = 1 << 15, 1 << 23


@dataclass(frozen=True)
class NoiseKey:
    """The part of the random number that is the same for a whole parameter in one step."""

    first: int
    second: int


def noise_key(seed: int, step: int, name: str) -> NoiseKey:
    """Mix seed, step and parameter name into 64 bits.

    Args:
        seed: ``training.seed`` of the run.
        step: the optimizer step, counted from 1.
        name: Hugging Face name of the parameter.
    """
    state = zlib.crc32(name.encode())
    words: list[int] = []
    for word in (seed, seed >> 32, step, step >> 32, 0x9E3779B9, 0x7F4A7C15):
        state = _mix(state ^ (word & _MASK))
        words.append(state)
    return NoiseKey(first=words[-2], second=words[-1])


def _mix(word: int) -> int:
    word = ((word ^ (word >> 16)) * _FIRST) & _MASK
    word = ((word ^ (word >> 15)) * _SECOND) & _MASK
    return word ^ (word >> 15)


def noise(key: NoiseKey, begin: int, end: int, device: torch.device) -> Tensor:
    """Give the 16-bit random numbers of the elements ``begin`` to ``end`` of a parameter.

    Returns:
        (end - begin,) int64 in [0, 65535], the same on every device.
    """
    word = torch.arange(begin, end, dtype=torch.int64, device=device)
    shifted = torch.empty_like(word)
    word.bitwise_and_(_MASK).bitwise_xor_(key.first)
    torch.bitwise_right_shift(word, 16, out=shifted)
    word.bitwise_xor_(shifted).mul_(_FIRST).add_(key.second).bitwise_and_(_MASK)
    torch.bitwise_right_shift(word, 15, out=shifted)
    word.bitwise_xor_(shifted).mul_(_SECOND).bitwise_and_(_MASK)
    torch.bitwise_right_shift(word, 15, out=shifted)
    return word.bitwise_xor_(shifted).bitwise_and_(0xFFFF)


def round_stochastically(values: Tensor, into: Tensor, key: NoiseKey, begin: int = 0) -> None:
    """Write ``values`` as bfloat16, each to a neighbour with the chance that keeps its mean.

    A uniform 16-bit number is added to the fp32 pattern and the low half is cut. Infinities and
    NaN stay what they are.

    Args:
        values: contiguous fp32.
        into: contiguous bfloat16 of the same number of elements; overwritten.
        key: the parameter's key for this step.
        begin: index in the parameter of the first of these values.
    """
    chunk = _CPU_CHUNK if values.device.type == "cpu" else GPU_CHUNK
    flat, rounded = values.view(-1), into.view(-1)
    for start in range(0, flat.numel(), chunk):
        piece = flat[start : start + chunk]
        index = begin + start
        random = noise(key, index, index + piece.numel(), piece.device).to(torch.int32)
        bits = random.add_(piece.view(torch.int32)).bitwise_right_shift_(16)
        as_bfloat16 = bits.to(torch.int16).view(torch.bfloat16)
        target = rounded[start : start + chunk]
        # A finite sum has finite terms; only where looking is free is it worth a look.
        if piece.device.type == "cpu" and piece.sum().isfinite():
            target.copy_(as_bfloat16)
        else:
            torch.where(piece.isfinite(), as_bfloat16, piece.to(torch.bfloat16), out=target)


def round_to_nearest(values: Tensor, into: Tensor) -> None:
    """Write ``values`` in the precision of ``into``, halves to even; fp32 is only copied."""
    into.copy_(values)
