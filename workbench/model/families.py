"""What a model's config.json says, as the dimensions our decoder is built from.

Two families are known, llama and mistral. A field that asks for something this decoder does not
compute is refused by its name: a model that is only nearly right trains towards nonsense.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RunError

CONFIG_FILE = "config.json"

FAMILIES = ("llama", "mistral")

# transformers writes no key for what equals its default, so the defaults are part of the format.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "sliding_window": None},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are changed for longer documents than the base was made for.

    Attributes:
        kind: ``rope_type``: default changes nothing.
        numbers: its parameters by the names of transformers, sorted.
    """

    kind: str = "default"
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Dimensions:
    """The numbers and switches that make one decoder of a family.

    Attributes:
        family: llama or mistral.
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
    rotary: RotaryScaling = RotaryScaling()
    sliding_blocks: tuple[bool, ...] | None = None

    def window_of(self, block: int) -> int | None:
        """Give the tokens that a query of a block sees, itself included; None: all before it."""
        if self.sliding_blocks is not None and not self.sliding_blocks[block]:
            return None
        return self.sliding_window


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            "there is no model config here",
            where=str(path),
            remedy="give model.path a folder with config.json, tokenizer and weights",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot be read as JSON: {error}",
            where=str(path),
            remedy="copy the file anew from where the model came from",
        ) from error
    if not isinstance(content, dict):
        raise RunError(
            "is not a JSON object", where=str(path), remedy="copy the file anew from its source"
        )
    return content


def _dimensions(config: Mapping[str, Any], *, where: str) -> Dimensions:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise RunError(
            f"model_type {family!r} is not supported",
            where=where,
            remedy=f"use a model of the families {' or '.join(FAMILIES)}",
        )
    _refuse_unsupported(config, where=where)
    sizes = {key: _positive_int(config, key, where=where) for key in _SIZES}
    num_heads = sizes["num_attention_heads"]
    num_key_value_heads = _optional_int(config, family, "num_key_value_heads", where) or num_heads
    if num_heads % num_key_value_heads:
        raise _bad_field(
            where, "num_key_value_heads", f"{num_key_value_heads} does not divide {num_heads} heads"
        )
    head_dim = config.get("head_dim")
    if head_dim is None:
        if sizes["hidden_size"] % num_heads:
            raise _bad_field(
                where, "hidden_size", f"is not a multiple of num_attention_heads ({num_heads})"
            )
        head_dim = sizes["hidden_size"] // num_heads
    else:
        head_dim = _positive_int(config, "head_dim", where=where)
    if head_dim % 2:
        raise _bad_field(where, "head_dim", f"{head_dim} is odd, rotary positions need pairs")
    max_positions = _optional_int(config, family, "max_position_embeddings", where)
    sliding_window = _optional_int(config, family, "sliding_window", where)
    if family == "llama":
        sliding_window = None  # the family has none; transformers ignores the key too
    _check_layer_types(config, sliding_window, where=where)
    return Dimensions(
        family=family,
        num_layers=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        vocabulary_size=sizes["vocab_size"],
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6, where=where),
        rope_theta=_rope_theta(config, where=where),
        max_positions=max_positions or _DEFAULTS[family]["max_position_embeddings"],
        sliding_window=sliding_window,
        tied=_flag(config, "tie_word_embeddings", where=where),
        initializer_range=_number(config, "initializer_range", 0.02, where=where),
    )


def _refuse_unsupported(config: Mapping[str, Any], *, where: str) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if _flag(config, key, where=where):
            raise _bad_field(where, key, "asks for biases, which this decoder does not have")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _bad_field(where, "hidden_act", f"{activation!r} is not supported, only silu is")
    if config.get("attention_dropout"):
        raise _bad_field(where, "attention_dropout", "dropout is not supported, set it to 0.0")
    if config.get("quantization_config") is not None:
        raise _bad_field(
            where, "quantization_config", "quantised weights cannot be trained, use the full ones"
        )


def _rope_theta(config: Mapping[str, Any], *, where: str) -> float:
    """Read the rotary base from rope_parameters, or as older configs spell it, rope_theta."""
    for key in ("rope_parameters", "rope_scaling"):
        parameters = config.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, dict):
            raise _bad_field(where, key, "is not a mapping")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            raise _bad_field(
                where, f"{key}.rope_type", f"{kind!r} is not supported, only default is"
            )
        fraction = parameters.get("partial_rotary_factor", 1.0)
        if fraction not in (None, 1.0):
            raise _bad_field(where, f"{key}.partial_rotary_factor", "only 1.0 is supported")
        if parameters.get("rope_theta") is not None:
            return _number(parameters, "rope_theta", 10000.0, where=f"{where} {key}")
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise _bad_field(where, "partial_rotary_factor", "only 1.0 is supported")
    return _number(config, "rope_theta", 10000.0, where=where)


def _check_layer_types(
    config: Mapping[str, Any], sliding_window: int | None, *, where: str
) -> None:
    kinds = config.get("layer_types")
    if kinds is None:
        return
    expected = "full_attention" if sliding_window is None else "sliding_attention"
    if any(kind != expected for kind in kinds):
        raise _bad_field(where, "layer_types", "blocks of different attention are not supported")


def _bad_field(where: str, field: str, what: str) -> RunError:
    return RunError(
        f"{field}: {what}",
        where=where,
        remedy="use a llama or mistral model without it",
    )


def _positive_int(config: Mapping[str, Any], key: str, *, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RunError(
            f"{key} is {value!r}, a whole number from 1 is needed",
            where=where,
            remedy="correct the field, or copy config.json anew from the model's source",
        )
    return value


def _optional_int(config: Mapping[str, Any], family: str, key: str, where: str) -> int | None:
    """Read a number that may be null; an absent key means what transformers takes it to mean."""
    value = config.get(key, _DEFAULTS[family][key])
    return None if value is None else _positive_int({key: value}, key, where=where)


def _number(config: Mapping[str, Any], key: str, default: float, *, where: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise RunError(
            f"{key} is {value!r}, a number above 0 is needed",
            where=where,
            remedy="correct the field, or copy config.json anew from the model's source",
        )
    return float(value)


def _flag(config: Mapping[str, Any], key: str, *, where: str) -> bool:
    value = config.get(key, False)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RunError(f"{key} is {value!r}, not true or false", where=where, remedy="correct it")
    return value
