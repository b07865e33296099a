"""The rotary base of a config.json and how it is scaled, in either spelling.

transformers 5 writes ``rope_parameters``, older versions wrote ``rope_theta`` and ``rope_scaling``.
What both leave out is filled in here, so that the numbers suffice to compute frequencies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.config.family_table import Family
from workbench.errors import RunError

_NEEDED = {
    "longrope": "a factor for each frequency, one list for short and one for long documents",
    "proportional": "positions for a part of each head",
    "su": "a factor for each frequency, one list for short and one for long documents",
    "mrope": "positions of three axes",
}


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are changed for longer documents than the base was made for.

    Attributes:
        kind: ``rope_type``: default changes nothing.
        numbers: its parameters by the names of transformers, sorted, none left out: a factor and
            for linear nothing else; for dynamic ``max_position_embeddings``; for llama3
            ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``; for
            yarn ``attention_factor``, ``beta_fast``, ``beta_slow``, ``truncate`` (0 or 1) and
            ``original_max_position_embeddings``.
    """

    kind: str = "default"
    numbers: tuple[tuple[str, float], ...] = ()


NO_SCALING = RotaryScaling()


def read_rotary(
    config: Mapping[str, Any], family: Family, max_positions: int, *, where: str
) -> tuple[float, RotaryScaling]:
    """Read the rotary base and its scaling.

    Args:
        config: content of config.json.
        family: of the model.
        max_positions: longest document the model is made for, tokens.
        where: the file, for mistakes.

    Returns:
        The base of the frequencies, and how they are scaled.

    Raises:
        RunError: a kind of scaling that the decoder does not compute, or numbers it cannot have.
    """
    stated = _Stated.of(config, family, where=where)
    kind = stated.parameters.get("rope_type") or stated.parameters.get("type") or "default"
    beside = config.get("rope_theta")
    theta = stated.number("rope_theta", family.rope_theta if beside is None else beside)
    # Where a file has it outside, it counts before what is inside, as in transformers.
    original = config.get("original_max_position_embeddings")
    if original is None:
        original = stated.parameters.get("original_max_position_embeddings", max_positions)
    original = stated.checked("original_max_position_embeddings", original)
    match kind:
        case "default":
            numbers = {}
        case "linear":
            numbers = {"factor": stated.number("factor")}
        case "dynamic":
            numbers = {"factor": stated.number("factor"), "max_position_embeddings": max_positions}
        case "llama3":
            numbers = _llama3(stated, original)
        case "yarn":
            numbers = _yarn(stated, original, max_positions)
        case _:
            needs = f": it needs {_NEEDED[kind]}" if kind in _NEEDED else ""
            raise stated.refusal(
                "rope_type",
                f"{kind!r} is not supported{needs}",
                remedy="use a model of default, linear, dynamic, llama3 or yarn positions",
            )
    return theta, RotaryScaling(
        kind, tuple(sorted((name, float(value)) for name, value in numbers.items()))
    )


def longest_document(rotary: RotaryScaling, max_positions: int) -> int:
    """Give the longest document that scaled positions reach to.

    ``max_position_embeddings`` of a folder may be what the base was made for, as it is with
    ``dynamic`` and in many folders of ``linear`` and ``yarn``; of ``llama3`` it is the whole.
    64 positions, dynamic by a factor of 2, reach to 128.
    """
    numbers = dict(rotary.numbers)
    match rotary.kind:
        case "linear" | "dynamic":
            made_for = float(max_positions)
        case "yarn":
            made_for = numbers["original_max_position_embeddings"]
        case _:
            return max_positions
    return max(max_positions, int(made_for * numbers["factor"]))


@dataclass(frozen=True)
class _Stated:
    """What the file says of rotary positions, and under which key."""

    key: str
    parameters: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, config: Mapping[str, Any], family: Family, *, where: str) -> "_Stated":
        key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        parameters = config.get(key) or family.rope_parameters or {}
        stated = cls(key, parameters, where)
        if not isinstance(parameters, Mapping):
            raise RunError(
                f"{key}: is not a mapping", where=where, remedy="download config.json anew"
            )
        for kind, value in parameters.items():
            if isinstance(value, Mapping):
                raise stated.refusal(
                    kind,
                    "positions of their own for each kind of block are not supported",
                    remedy="use a model whose blocks share one rotary base",
                )
        for name, fractions in ((f"{key}.", parameters), ("", config)):
            if fractions.get("partial_rotary_factor") not in (None, 1.0):
                raise RunError(
                    f"{name}partial_rotary_factor: only 1.0 is supported, heads are turned whole",
                    where=where,
                    remedy="use a model whose heads are turned whole",
                )
        return stated

    def refusal(self, name: str, what: str, *, remedy: str) -> RunError:
        return RunError(f"{self.key}.{name}: {what}", where=self.where, remedy=remedy)

    def number(self, name: str, default: float | None = None) -> float:
        """Read a number above 0; null is as good as absent."""
        value = self.parameters.get(name)
        return self.checked(name, default if value is None else value)

    def checked(self, name: str, value: object) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:  # type: ignore[operator]
            raise self.refusal(
                name,
                f"is {value!r}, a number above 0 is needed",
                remedy="correct the field, or copy config.json anew from the model's source",
            )
        return value  # type: ignore[return-value]


def _llama3(stated: _Stated, original: float) -> dict[str, float]:
    low, high = stated.number("low_freq_factor"), stated.number("high_freq_factor")
    if high <= low:
        raise stated.refusal(
            "high_freq_factor",
            f"{high:g} is not above low_freq_factor, {low:g}",
            remedy="correct the field, or copy config.json anew from the model's source",
        )
    return {
        "factor": stated.number("factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _yarn(stated: _Stated, original: float, max_positions: int) -> dict[str, float]:
    """Fill in what YaRN leaves open (Peng et al., 2023, section 3.4, and DeepSeek's mscale)."""
    factor = stated.number("factor", max_positions / original)
    names = ("mscale", "mscale_all_dim")
    scales = [stated.number(name) if stated.parameters.get(name) else None for name in names]

    def sharpened(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if stated.parameters.get("attention_factor") is not None:
        attention = stated.number("attention_factor")
    elif scales[0] is not None and scales[1] is not None:
        attention = sharpened(scales[0]) / sharpened(scales[1])
    else:
        attention = sharpened(1.0)
    truncate = stated.parameters.get("truncate", True)
    return {
        "factor": factor,
        "attention_factor": attention,
        "beta_fast": stated.number("beta_fast", 32.0) if stated.parameters.get("beta_fast") else 32,
        "beta_slow": stated.number("beta_slow", 1.0) if stated.parameters.get("beta_slow") else 1,
        "original_max_position_embeddings": original,
        "truncate": float(bool(truncate)),
    }
