"""How AdamW keeps the two moments of a weight: in fp32, or in 8 or 4 bits by torchao.

A small moment is a code per element and an fp32 scale per block of elements: "8-bit Optimizers via
Block-wise Quantization" (Dettmers et al., 2021) and "Memory Efficient Optimizers with 4-bit States"
(Li et al., 2023). Maps, codes and scales are those of torchao's own optimizers, but for one thing:
no square that is above zero is kept as zero.

Invariant: all parts begin as zeros, which stand for moments of zero.
"""

import importlib
import logging
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.training.optimizer.protocol import CompanionParts

FIRST, SECOND = "first", "second"
"""The moments: of the gradient, which is signed, and of its square, which is not."""

LEAST_QUANTIZED = 4096
"""Elements below which a tensor keeps its moments in fp32, as in torchao."""


class Moments(Protocol):
    """Reads and writes pieces of the moments in the companion of a parameter."""

    def parts(self, num_elements: int) -> CompanionParts:
        """Name the tensors that hold both moments of so many elements."""
        ...

    def read(self, companion: Mapping[str, Tensor], moment: str, piece: slice) -> Tensor:
        """Give the elements ``piece`` of ``moment`` in fp32; perhaps the kept tensor itself."""
        ...

    def write(
        self, companion: Mapping[str, Tensor], moment: str, piece: slice, new: Tensor, ok: Tensor
    ) -> None:
        """Keep ``new`` (fp32) as the elements ``piece``, where ``ok`` (a bool scalar) is true."""
        ...


class FullMoments:
    """Both moments in fp32, 8 bytes per element."""

    def parts(self, num_elements: int) -> CompanionParts:
        """Name ``first`` and ``second``, both fp32."""
        return dict.fromkeys((FIRST, SECOND), ((num_elements,), torch.float32))

    def read(self, companion: Mapping[str, Tensor], moment: str, piece: slice) -> Tensor:
        """Give the kept elements themselves."""
        return companion[moment][piece]

    def write(
        self, companion: Mapping[str, Tensor], moment: str, piece: slice, new: Tensor, ok: Tensor
    ) -> None:
        """Copy ``new`` over the kept elements."""
        kept = companion[moment][piece]
        kept.copy_(new if kept.device.type == "cpu" else torch.where(ok, new, kept))


class SmallMoments:
    """Both moments as codes of 8 or 4 bits with a scale per block: 2.03 or 1.06 bytes per element.

    Args:
        bits: 8 or 4.
        device: of the companions.

    Raises:
        ConfigError: torchao is not installed.
    """

    def __init__(self, bits: int, device: torch.device) -> None:
        assert bits in (4, 8), bits
        self.bits = bits
        self.block = 256 if bits == 8 else 128
        self._quantization = _quantization()
        self._full = FullMoments()
        self.maps = {
            FIRST: torch.tensor(self._signed_map(), dtype=torch.float32, device=device),
            SECOND: torch.tensor(self._unsigned_map(), dtype=torch.float32, device=device),
        }
        """(2^bits,) fp32 of each moment: the value of a code where the scale is one."""

    def _signed_map(self) -> list[float]:
        exponents = 7 if self.bits == 8 else 3
        found: list[float] = self._quantization.create_dynamic_map(True, exponents, self.bits)
        return found

    def _unsigned_map(self) -> list[float]:
        if self.bits == 8:
            found: list[float] = self._quantization.create_dynamic_map(False)
            return found
        values: list[float] = torch.linspace(0, 1, 17)[1:].tolist()  # linear, without a zero
        return values

    def parts(self, num_elements: int) -> CompanionParts:
        """Name codes and scales of both moments; small and odd sizes keep fp32."""
        if num_elements < LEAST_QUANTIZED or num_elements % self.block:
            return self._full.parts(num_elements)
        codes = num_elements * self.bits // 8
        parts: CompanionParts = {}
        for moment in (FIRST, SECOND):
            parts[f"{moment}_codes"] = ((codes,), torch.uint8)
            parts[f"{moment}_scales"] = ((num_elements // self.block,), torch.float32)
        return parts

    def read(self, companion: Mapping[str, Tensor], moment: str, piece: slice) -> Tensor:
        """Give the values that the codes stand for."""
        if moment in companion:
            return self._full.read(companion, moment, piece)
        codes, scales = self._pieces(companion, moment, piece)
        if self.bits == 4:
            codes = torch.stack([codes >> 4, codes & 0b1111], dim=-1).view(-1)
        found: Tensor = self._quantization.dequant_with_qmap(codes, self.maps[moment], scales)
        return found

    def write(
        self, companion: Mapping[str, Tensor], moment: str, piece: slice, new: Tensor, ok: Tensor
    ) -> None:
        """Keep the nearest codes under new scales."""
        if moment in companion:
            self._full.write(companion, moment, piece, new, ok)
            return
        codes, scales = self._pieces(companion, moment, piece)
        scaled, new_scales = self._quantization.scale_tensor(new, self.block)
        if self.bits == 8:
            new_codes = self._quantization.quantize_8bit_with_qmap(scaled, self.maps[moment])
            if moment == SECOND:
                # A square that became zero beside a first moment that did not would make the
                # next change m / epsilon, millions of times too long: take the least code above.
                new_codes.masked_fill_((new_codes == 0) & (new > 0), 1)
        else:
            halves = self._quantization.quantize_4bit_with_qmap(scaled, self.maps[moment])
            new_codes = (halves[::2] << 4) | halves[1::2]
        torch.where(ok, new_codes, codes, out=codes)
        torch.where(ok, new_scales, scales, out=scales)

    def _pieces(
        self, companion: Mapping[str, Tensor], moment: str, piece: slice
    ) -> tuple[Tensor, Tensor]:
        """Give codes and scales of the elements ``piece``, which begins at a block."""
        in_codes = slice(piece.start * self.bits // 8, piece.stop * self.bits // 8)
        in_scales = slice(piece.start // self.block, piece.stop // self.block)
        return (
            companion[f"{moment}_codes"][in_codes],
            companion[f"{moment}_scales"][in_scales],
        )


def _quantization() -> ModuleType:
    """Import torchao's quantization of optimizer states.

    On its way in torchao says which of its CUDA extensions it cannot load; none is needed here.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torchao.optim.quant_utils")
    except ImportError as error:
        raise ConfigError(
            f"AdamW with small moments needs the package torchao: {error}",
            where="optimizer.name",
            remedy="install it: python -m pip install torchao; or set optimizer.name: adamw",
        ) from error
    finally:
        logging.disable(disabled)
