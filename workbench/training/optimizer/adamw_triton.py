"""AdamW in Triton: one pass that adds up squares, one that moves moments and weight.

The rule is that of ``adamw.update``, its test; codes and scales are found as ``moments`` finds
them, in registers. With bf16 gradients 24 bytes per parameter travel for fp32 moments, 12 for those
of 8 bits, 10 for those of 4. Each program adds the parts of the sum of squares itself, in one
order, so results repeat.
"""

# Arguments of device functions are what Triton makes of them: pointers, blocks and scalars.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.training.optimizer.adamw import BETA1, BETA2, EPSILON
from workbench.training.optimizer.moments import FIRST, SECOND, Moments, SmallMoments
from workbench.training.optimizer.rounding import NoiseKey
from workbench.training.optimizer.rounding_triton import (
    chosen_rounding,
    is_healthy,
    load_weight,
    signed,
    store_weight,
    total,
)

_TILE, _PROGRAMS = 4096, 1024
_HELD, _WARPS = 2048, 8  # elements that a program holds at a time

_BETA1, _BETA2, _EPSILON = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(EPSILON)


@triton.jit
def _squares(gradient, square_parts, size, span, TILE: tl.constexpr):
    """Add up the squares of a span of the gradient."""
    program = tl.program_id(0)
    first = program.to(tl.int64) * span
    lane = tl.arange(0, TILE)
    found = tl.zeros((TILE,), dtype=tl.float32)
    for begin in range(0, span, TILE):
        at = first + (begin + lane)
        values = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
        found += values * values
    tl.store(square_parts + program, tl.sum(found, 0))


@triton.jit
def _code(code_map, scaled, BITS: tl.constexpr):
    """Give the code whose value is nearest: a binary search, as torchao does it."""
    code = tl.zeros_like(scaled).to(tl.int32)
    for bit in tl.static_range(BITS):
        above_half = tl.load(code_map + code + (1 << (BITS - 1 - bit)))
        code += tl.where(scaled >= above_half, 1 << (BITS - 1 - bit), 0)
    up = tl.minimum(code + 1, (1 << BITS) - 1)
    below, above = tl.load(code_map + code), tl.load(code_map + up)
    return tl.where(scaled - below >= (above - below) * 0.5, up, code)


@triton.jit
def _read_moment(codes, scales, code_map, at, block, inside, few, BITS: tl.constexpr):
    """Give (blocks, elements) of a moment in fp32."""
    if BITS == 32:
        found = tl.load(codes + at, mask=inside, other=0.0)
    else:
        if BITS == 8:
            code = tl.load(codes + at, mask=inside, other=0).to(tl.int32)
        else:
            both = tl.load(codes + at // 2, mask=inside, other=0).to(tl.int32)
            code = tl.where(at % 2 == 0, both >> 4, both & 15)
        scale = tl.load(scales + block, mask=few, other=0.0)
        found = tl.load(code_map + code) * scale[:, None]
    return found


@triton.jit
def _write_moment(
    codes, scales, code_map, new, at, at_pairs, block, inside, inside_pairs, few,
    IS_SQUARE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    if BITS == 32:
        tl.store(codes + at, new, mask=inside)
    else:
        scale = tl.maximum(tl.max(tl.abs(new), 1), 1e-12)
        tl.store(scales + block, scale, mask=few)
        code = _code(code_map, tl.div_rn(new, tl.broadcast_to(scale[:, None], new.shape)), BITS)
        if BITS == 8:
            if IS_SQUARE:
                # See moments.py: no square above zero is kept as zero.
                code = tl.where((code == 0) & (new > 0), 1, code)
            tl.store(codes + at, code.to(tl.uint8), mask=inside)
        else:
            even, odd = tl.split(tl.reshape(code, (new.shape[0], new.shape[1] // 2, 2)))
            tl.store(codes + at_pairs, ((even << 4) | odd).to(tl.uint8), mask=inside_pairs)


@triton.jit(do_not_specialize=["length", "root_factor", "decay", "first_word", "second_word"])
def _move(
    gradient, weight, low, first_codes, first_scales, first_map,
    second_codes, second_scales, second_map,
    square_parts, num_parts, square_out, scale, ok,
    length, root_factor, decay, first_word, second_word, size, span,
    ROUNDING: tl.constexpr, BITS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    square = total(square_parts, num_parts, 1024)
    program = tl.program_id(0)
    if program == 0:
        tl.store(square_out, square)
    if not is_healthy(square, ok):
        return
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale)
    lane = tl.arange(0, BLOCKS)
    start = program.to(tl.int64) * (span // BLOCK)
    for begin in range(0, span // BLOCK, BLOCKS):
        block = start + (begin + lane)
        few = block * BLOCK < size
        at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        at_pairs = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
        inside, inside_pairs = at < size, at_pairs < size // 2
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * factor
        first = _read_moment(first_codes, first_scales, first_map, at, block, inside, few, BITS)
        second = _read_moment(second_codes, second_scales, second_map, at, block, inside, few, BITS)
        # Codes and scales are overwritten by other threads than those that read them.
        tl.debug_barrier()
        first += (values - first) * (1.0 - _BETA1)
        second += (values * values - second) * (1.0 - _BETA2)
        _write_moment(
            first_codes, first_scales, first_map, first, at, at_pairs, block,
            inside, inside_pairs, few, False, BITS,
        )  # fmt: skip
        _write_moment(
            second_codes, second_scales, second_map, second, at, at_pairs, block,
            inside, inside_pairs, few, True, BITS,
        )  # fmt: skip
        change = first / (tl.sqrt(second) * root_factor + _EPSILON) * length
        old = load_weight(weight, low, at, inside, ROUNDING)
        new = old - (change + old * decay)
        store_weight(weight, low, at, inside, new, first_word, second_word, ROUNDING)


class FusedUpdate:
    """Does what ``adamw.update`` does, on a GPU.

    Args:
        device: of all that it will move.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._square_parts = torch.empty(_PROGRAMS, dtype=torch.float32, device=device)

    def __call__(
        self,
        weight: Tensor,
        gradient: Tensor,
        companion: Mapping[str, Tensor],
        moments: Moments,
        *,
        step: int,
        learning_rate: float,
        weight_decay: float,
        noise: NoiseKey | None,
        low: Tensor | None = None,
        scale: Tensor | None = None,
        ok: Tensor | None = None,
    ) -> Tensor:
        """Move one tensor by one step; arguments and result as of ``adamw.update``."""
        assert weight.is_contiguous(), weight.stride()
        assert gradient.is_contiguous(), gradient.stride()
        assert weight.shape == gradient.shape, (weight.shape, gradient.shape)
        if FIRST in companion:
            bits, block = 32, 256
            kept = [companion[FIRST], None, None, companion[SECOND], None, None]
        else:
            assert isinstance(moments, SmallMoments), moments
            bits, block = moments.bits, moments.block
            kept = [
                tensor
                for moment in (FIRST, SECOND)
                for tensor in (
                    companion[f"{moment}_codes"],
                    companion[f"{moment}_scales"],
                    moments.maps[moment],
                )
            ]
        size = weight.numel()
        tiles = triton.cdiv(size, _TILE)
        span = triton.cdiv(tiles, _PROGRAMS) * _TILE
        programs = triton.cdiv(size, span)
        square = torch.empty((), dtype=torch.float32, device=self._device)
        _squares[(programs,)](gradient, self._square_parts, size, span, TILE=_TILE)
        _move[(programs,)](
            gradient, weight, low, *kept, self._square_parts, programs, square,
            scale, None if ok is None else ok.view(torch.uint8),
            learning_rate / (1 - BETA1**step), 1 / math.sqrt(1 - BETA2**step),
            learning_rate * weight_decay,
            0 if noise is None else signed(noise.first),
            0 if noise is None else signed(noise.second),
            size, span,
            ROUNDING=chosen_rounding(weight, noise, low), BITS=bits,
            BLOCKS=_HELD // block, BLOCK=block, num_warps=_WARPS,
        )  # fmt: skip
        return square
