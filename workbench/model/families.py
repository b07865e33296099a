"""What a model's config.json says, as the dimensions our decoder is built from.

Which families there are, and what sets them apart, is a table: ``config/family_table``. A field
that asks for something this decoder does not compute is refused by its name: a model that is only
nearly right trains towards nonsense.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config.family_table import (
    biased_projections,
    family_of,
    refuse_unsupported,
    sliding_blocks,
    turned_blocks,
)
from workbench.config.json_file import read_json_object
from workbench.config.model_facts import most_of
from workbench.config.rotary_scaling import NO_SCALING, read_rotary
from workbench.config.rotary_scaling import RotaryScaling as RotaryScaling
from workbench.errors import RunError

CONFIG_FILE = "config.json"

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True)
class Dimensions:
    """The numbers and switches that make one decoder of a family.

    Attributes:
        family: ``model_type``.
        num_layers: decoder blocks.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the gated MLP.
        num_heads: query heads.
        num_key_value_heads: key and value heads; each serves num_heads / num_key_value_heads
            query heads.
        head_dim: width of one head, even.
        vocabulary_size: rows of the embedding.
        norm_epsilon: added to the mean square in every norm.
        rope_theta: base of the rotary frequencies.
        max_positions: longest document the model was made for, tokens.
        sliding_window: tokens a query sees, itself included; None sees all before it.
        tied: the head is the embedding, stored once.
        initializer_range: standard deviation of random weights.
        biased: the projections that have a bias: of q, k, v, o, gate, up, down.
        query_key_norm: queries and keys are normed per head before they are turned.
        rotary: how frequencies are scaled.
        sliding_blocks: for each block whether its window slides; None where all are alike.
        turned_blocks: for each block whether its queries and keys are turned by their positions;
            None: in all.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    vocabulary_size: int
    norm_epsilon: float
    rope_theta: float
    max_positions: int
    sliding_window: int | None
    tied: bool
    initializer_range: float
    biased: tuple[str, ...] = ()
    query_key_norm: bool = False
    rotary: RotaryScaling = NO_SCALING
    sliding_blocks: tuple[bool, ...] | None = None
    turned_blocks: tuple[bool, ...] | None = None

    def window_of(self, block: int) -> int | None:
        """Give the tokens that a query of a block sees, itself included; None: all before it."""
        if self.sliding_blocks is not None and not self.sliding_blocks[block]:
            return None
        return self.sliding_window

    def is_turned(self, block: int) -> bool:
        """Say whether a block turns its queries and keys by their positions."""
        return self.turned_blocks is None or self.turned_blocks[block]


def read_dimensions(source: Path | Mapping[str, Any]) -> Dimensions:
    """Read the dimensions from a model folder, a config.json, or its parsed content.

    Raises:
        RunError: no config.json, not JSON, a family or a field this decoder does not know.
    """
    if isinstance(source, Mapping):
        return _dimensions(source, where=CONFIG_FILE)
    path = Path(source)
    if path.is_dir():
        path = path / CONFIG_FILE
    return _dimensions(_read_json(path), where=str(path))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path, RunError)
    except FileNotFoundError as error:
        raise RunError(
            "there is no model config here",
            where=str(path),
            remedy="give model.path a folder with config.json, tokenizer and weights",
        ) from error


def _dimensions(config: Mapping[str, Any], *, where: str) -> Dimensions:
    name, family = family_of(config, where=where)
    refuse_unsupported(config, name, family, where=where)
    sizes = {key: _positive_int(config, key, where=where) for key in _SIZES}
    num_heads, num_layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]
    stated_groups = _optional_int(
        config, "num_key_value_heads", family.num_key_value_heads, where=where
    )
    num_key_value_heads = stated_groups or num_heads
    if num_heads % num_key_value_heads:
        raise _broken(
            where, "num_key_value_heads", f"{num_key_value_heads} does not divide {num_heads} heads"
        )
    head_dim = _optional_int(config, "head_dim", family.head_size, where=where)
    if head_dim is None:
        if sizes["hidden_size"] % num_heads:
            raise _broken(
                where, "hidden_size", f"is not a multiple of num_attention_heads ({num_heads})"
            )
        head_dim = sizes["hidden_size"] // num_heads
    if head_dim % 2:
        raise _broken(where, "head_dim", f"{head_dim} is odd, rotary positions need pairs")
    max_positions = _optional_int(
        config, "max_position_embeddings", family.max_positions, where=where
    )
    max_positions = max_positions or family.max_positions
    rope_theta, rotary = read_rotary(config, family, max_positions, where=where)
    if rotary.kind == "dynamic" and head_dim == 2:
        raise _broken(where, "head_dim", "2 is too small for dynamic rotary scaling")
    window, slides = sliding_blocks(family, config, num_layers, where=where)
    return Dimensions(
        family=name,
        num_layers=num_layers,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        vocabulary_size=sizes["vocab_size"],
        norm_epsilon=_number(config, "rms_norm_eps", family.norm_epsilon, where=where),
        rope_theta=rope_theta,
        max_positions=max_positions,
        sliding_window=window,
        tied=_flag(config, "tie_word_embeddings", family.tied, where=where),
        initializer_range=_number(config, "initializer_range", 0.02, where=where),
        biased=biased_projections(family, config),
        query_key_norm=family.query_key_norm,
        rotary=rotary,
        sliding_blocks=slides,
        turned_blocks=turned_blocks(family, config, num_layers, where=where),
    )


def _broken(where: str, field: str, what: str) -> RunError:
    return RunError(f"{field}: {what}", where=where, remedy="download config.json anew")


def _positive_int(config: Mapping[str, Any], key: str, *, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RunError(
            f"{key} is {value!r}, a whole number from 1 is needed",
            where=where,
            remedy="correct the field, or copy config.json anew from the model's source",
        )
    if value > most_of(key):
        raise _broken(where, key, f"{value:,} is more than any model has")
    return value


def _optional_int(
    config: Mapping[str, Any], key: str, default: int | None, *, where: str
) -> int | None:
    """Read a number that may be null; an absent key means what transformers takes it to mean."""
    value = config.get(key, default)
    return None if value is None else _positive_int({key: value}, key, where=where)


def _number(config: Mapping[str, Any], key: str, default: float, *, where: str) -> float:
    value = config.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise RunError(
            f"{key} is {value!r}, a number above 0 is needed",
            where=where,
            remedy="correct the field, or copy config.json anew from the model's source",
        )
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool, *, where: str) -> bool:
    value = config.get(key, default)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RunError(f"{key} is {value!r}, not true or false", where=where, remedy="correct it")
    return value
