"""The table of model families: what a ``model_type`` means beyond the numbers in its file.

All families here are one decoder with switches: biases, norms per head, windows that slide in some
blocks, scaled rotary positions. transformers writes no key for some of its defaults, and older
folders leave out more, so defaults are part of the format and stand here too. Knows no weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.errors import RunError

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
PROJECTIONS = (*ATTENTION, *MLP)
"""The matrices of a block in Hugging Face order."""


@dataclass(frozen=True, kw_only=True)
class BiasSwitch:
    """A field of config.json that gives projections a bias.

    Attributes:
        fields: its names; the first that the file has counts.
        projections: that get one.
        default: where the file has none of the names.
    """

    fields: tuple[str, ...]
    projections: tuple[str, ...]
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """The switches of one ``model_type``.

    Attributes:
        max_positions: longest document, where the file does not say.
        num_key_value_heads: where the file does not say; None: one per query head.
        head_size: where the file does not say; None: hidden_size over heads.
        norm_epsilon: where the file does not say.
        rope_theta: where the file does not say.
        rope_parameters: where the file has none.
        biased: projections that always have a bias.
        bias_switches: fields that give others one.
        query_key_norm: queries and keys are normed per head.
        windows: which blocks slide, where ``layer_types`` does not say it: none at all, and
            ``layer_types`` has no meaning; all, and it has none either; by_layer_types: all;
            last: those from ``max_window_layers`` on, if ``use_sliding_window``; three_of_four:
            all but every fourth, from the first on; unturned: those without positions, if
            ``use_sliding_window``.
        sliding_window: tokens, where the file does not say.
        leaves_unturned: ``no_rope_layers`` says which blocks have no rotary positions, and where
            the file has none, every fourth has not.
        tied: embedding and head are one, where the file does not say.
        dropouts: fields of chances to drop, and what they are where the file does not say.
    """

    max_positions: int
    num_key_value_heads: int | None = None
    head_size: int | None = None
    norm_epsilon: float = 1e-6
    rope_theta: float = 10000.0
    rope_parameters: Mapping[str, Any] | None = None
    biased: tuple[str, ...] = ()
    bias_switches: tuple[BiasSwitch, ...] = ()
    query_key_norm: bool = False
    windows: Literal["none", "all", "by_layer_types", "last", "three_of_four", "unturned"] = "none"
    sliding_window: int | None = None
    leaves_unturned: bool = False
    tied: bool = False
    dropouts: Mapping[str, float] = field(default_factory=lambda: {"attention_dropout": 0.0})


_ATTENTION_BIAS = BiasSwitch(fields=("attention_bias",), projections=ATTENTION)
_MLP_BIAS = BiasSwitch(fields=("mlp_bias",), projections=MLP)

FAMILIES: dict[str, Family] = {
    "llama": Family(max_positions=2048, bias_switches=(_ATTENTION_BIAS, _MLP_BIAS)),
    "mistral": Family(
        max_positions=131072, num_key_value_heads=8, windows="all", sliding_window=4096
    ),
    "ministral": Family(
        max_positions=131072, num_key_value_heads=8, windows="by_layer_types", sliding_window=4096
    ),
    "qwen2": Family(
        max_positions=32768,
        num_key_value_heads=32,
        biased=("q", "k", "v"),
        windows="last",
        sliding_window=4096,
    ),
    "qwen3": Family(
        max_positions=32768,
        num_key_value_heads=32,
        head_size=128,
        bias_switches=(_ATTENTION_BIAS,),
        query_key_norm=True,
        windows="last",
        sliding_window=4096,
    ),
    # Llama with windows in three blocks of four, as Meta's code world model.
    "cwm": Family(
        max_positions=131072,
        num_key_value_heads=8,
        head_size=128,
        norm_epsilon=1e-5,
        rope_theta=1e6,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e6,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        bias_switches=(_MLP_BIAS,),
        windows="three_of_four",
        sliding_window=8192,
    ),
    # Llama with other defaults.
    "iquestcoder": Family(
        max_positions=131072,
        num_key_value_heads=8,
        head_size=128,
        norm_epsilon=1e-5,
        bias_switches=(_ATTENTION_BIAS, _MLP_BIAS),
    ),
    # Llama with other defaults, and names of its own for the biases.
    "internlm3": Family(
        max_positions=32768,
        num_key_value_heads=2,
        head_size=128,
        norm_epsilon=1e-5,
        bias_switches=(
            BiasSwitch(fields=("attention_bias", "qkv_bias"), projections=ATTENTION),
            BiasSwitch(fields=("mlp_bias", "bias"), projections=MLP),
        ),
    ),
    # Llama with a bias of o apart from those of q, k and v, and dropout unless the file denies it.
    "seed_oss": Family(
        max_positions=524288,
        num_key_value_heads=8,
        head_size=128,
        bias_switches=(
            BiasSwitch(fields=("attention_bias",), projections=("q", "k", "v"), default=True),
            BiasSwitch(fields=("attention_out_bias",), projections=("o",)),
            _MLP_BIAS,
        ),
        dropouts={"attention_dropout": 0.1, "residual_dropout": 0.1},
    ),
    # Llama without positions in every fourth block.
    "smollm3": Family(
        max_positions=32768,
        num_key_value_heads=4,
        rope_theta=2e6,
        bias_switches=(_ATTENTION_BIAS, _MLP_BIAS),
        windows="unturned",
        leaves_unturned=True,
        tied=True,
    ),
}
"""``model_type`` to its switches."""

_EXPERTS = "experts, and a router that chooses among them"
_PICTURES = "a part for pictures beside the text; a folder of the text model alone may do"
NEEDED: dict[str, str] = {
    "arcee": "an MLP of two matrices and squared ReLU",
    "cohere": "attention and MLP side by side, and layer norms",
    "cohere2": "attention and MLP side by side, layer norms, and blocks without positions",
    "ernie4_5": "rotary positions of neighbouring pairs",
    "exaone4": "norms after attention and MLP, and blocks without positions",
    "gemma": "embeddings scaled by their width, norm weights that count from one, and GELU",
    "gemma2": "norms before and after each part, capped scores, and GELU",
    "gemma3_text": "norms before and after each part, two rotary bases, and GELU",
    "gemma3": _PICTURES,
    "glm": "rotary positions of a part of each head, and gate and up in one matrix",
    "glm4": "norms after each part, and rotary positions of a part of each head",
    "gpt_oss": _EXPERTS,
    "granite": "multipliers of embedding, attention, residuals and logits",
    "helium": "rotary positions of neighbouring pairs",
    "llama4": _EXPERTS,
    "llama4_text": _EXPERTS,
    "ministral3": "queries scaled by their position (rope_parameters.llama_4_scaling_beta)",
    "mistral3": _PICTURES,
    "mixtral": _EXPERTS,
    "mllama": _PICTURES,
    "olmo": "norms without weights",
    "olmo2": "norms after attention and MLP in place of those before",
    "olmo3": "norms after attention and MLP in place of those before",
    "phi3": "q, k and v in one matrix, gate and up in another, and longrope",
    "qwen2_5_vl": _PICTURES,
    "qwen2_moe": _EXPERTS,
    "qwen2_vl": _PICTURES,
    "qwen3_5": "linear attention in most blocks",
    "qwen3_moe": _EXPERTS,
    "qwen3_next": "linear attention in most blocks, and experts",
    "qwen3_vl": _PICTURES,
    "stablelm": "layer norms, and rotary positions of a part of each head",
    "starcoder2": "layer norms, and an MLP of two matrices",
}
"""What well-known other ``model_type``s would need of the decoder."""


def family_of(stated: Mapping[str, Any], *, where: str) -> tuple[str, Family]:
    """Find the family of a config.json.

    Returns:
        ``model_type`` and its switches.

    Raises:
        RunError: it is not in the table; where it is known what it would need, that is said.
    """
    name = stated.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return name, FAMILIES[name]
    needs = NEEDED.get(name) if isinstance(name, str) else None
    raise RunError(
        f"model_type is {name!r}, which is not supported"
        + (f": it needs {needs}" if needs else ""),
        where=where,
        remedy=f"use a model of one of the families {', '.join(FAMILIES)}",
    )


def refuse_unsupported(stated: Mapping[str, Any], name: str, family: Family, *, where: str) -> None:
    """Refuse what no block of these families computes, whatever the family.

    Args:
        stated: content of config.json.
        name: ``model_type``.
        family: its switches.
        where: the file, for mistakes.

    Raises:
        RunError: naming the field, and what to do about it.
    """
    switches = {each for switch in family.bias_switches for each in switch.fields}
    for key in ("attention_bias", "attention_out_bias", "mlp_bias", "qkv_bias", "bias"):
        asked = _flag(stated, key, where=where)
        if not asked or key in switches or (key == "attention_bias" and family.biased):
            continue
        raise _unsupported(
            where,
            key,
            f"asks for biases that {name} does not have, and transformers reads over it",
            "remove the field, or state the model_type that the weights are of",
        )
    activation = stated.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _unsupported(
            where,
            "hidden_act",
            f"{activation!r} is not supported, only silu is",
            "use a model of the family's own activation",
        )
    for key, default in family.dropouts.items():
        if stated.get(key, default):
            raise _unsupported(
                where,
                key,
                f"is {stated.get(key, default)}, and nothing is dropped here",
                f"set {key}: 0.0 in config.json, replies stay as they are",
            )
    if stated.get("quantization_config") is not None:
        raise _unsupported(
            where,
            "quantization_config",
            "quantised weights cannot be trained",
            "use the model's folder of full weights",
        )
    if stated.get("is_causal") is False:
        raise _unsupported(
            where,
            "is_causal",
            "attention to tokens ahead is not supported, it is for models that write nothing",
            "use a model that writes text",
        )
    if family.windows == "none" and stated.get("use_sliding_window") is True:
        raise _unsupported(
            where,
            "use_sliding_window",
            f"asks for windows that {name} does not have",
            "remove the field, or state model_type ministral, whose blocks may slide",
        )
    if stated.get("clip_qkv") is not None:
        raise _unsupported(
            where, "clip_qkv", "is not supported, and no known model needs it", "remove the field"
        )


def biased_projections(family: Family, stated: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the projections with a bias, in the order of ``PROJECTIONS``."""
    biased = set(family.biased)
    for switch in family.bias_switches:
        values = [stated[name] for name in switch.fields if stated.get(name) is not None]
        if values[0] is True if values else switch.default:
            biased.update(switch.projections)
    return tuple(name for name in PROJECTIONS if name in biased)


def sliding_blocks(
    family: Family, stated: Mapping[str, Any], num_blocks: int, *, where: str
) -> tuple[int | None, tuple[bool, ...] | None]:
    """Say which blocks of a model slide, and over how many tokens.

    Args:
        family: of the model.
        stated: its config.json.
        num_blocks: of the model.
        where: the file, for mistakes.

    Returns:
        The window, None where no block has one; and for each block whether it slides, None where
        all are alike.

    Raises:
        RunError: ``layer_types`` does not fit the model, or asks for windows that it has not.
    """
    window = _window(family, stated, where=where)
    slides = _blocks_by_default(family, stated, num_blocks, window, where=where)
    kinds = stated.get("layer_types")
    if kinds is not None:
        named = _blocks_by_name(kinds, num_blocks, where=where)
        if family.windows in ("none", "all") and named != slides:
            raise _bad_kinds(
                "other blocks slide than those of the family, and transformers reads over it",
                where=where,
                remedy="remove layer_types; or state model_type ministral, whose blocks may differ",
            )
        if any(named) and window is None:
            raise _bad_kinds(
                "blocks slide and there is no window",
                where=where,
                remedy="state sliding_window, and use_sliding_window where the family has it",
            )
        slides = named
    if not any(slides):
        return None, None
    return window, None if all(slides) else slides


def _unsupported(where: str, key: str, what: str, remedy: str) -> RunError:
    return RunError(f"{key}: {what}", where=where, remedy=remedy)


def _flag(stated: Mapping[str, Any], name: str, *, where: str) -> bool:
    value = stated.get(name)
    if value is not None and not isinstance(value, bool):
        raise RunError(f"{name} is {value!r}, not true or false", where=where, remedy="correct it")
    return value is True


def turned_blocks(
    family: Family, stated: Mapping[str, Any], num_blocks: int, *, where: str
) -> tuple[bool, ...] | None:
    """Say for each block whether queries and keys are turned by their positions; None: in all.

    Raises:
        RunError: ``no_rope_layers`` does not fit the model.
    """
    if not family.leaves_unturned:
        return None
    named = stated.get("no_rope_layers")
    if named is None:
        interval = stated.get("no_rope_layer_interval", 4)
        if type(interval) is not int or interval < 1:
            raise RunError(
                f"no_rope_layer_interval is {interval!r}, expected a whole number of at least 1",
                where=where,
                remedy="download config.json anew",
            )
        turned = tuple((block + 1) % interval != 0 for block in range(num_blocks))
    else:
        # Its name says the opposite: 1 is a block with positions.
        is_list = isinstance(named, list) and len(named) == num_blocks
        if not is_list or any(value not in (0, 1) for value in named):
            raise RunError(
                f"no_rope_layers is {named!r}, expected 0 or 1 for each of {num_blocks} blocks",
                where=where,
                remedy="download config.json anew",
            )
        turned = tuple(map(bool, named))
    return None if all(turned) else turned


def _window(family: Family, stated: Mapping[str, Any], *, where: str) -> int | None:
    if family.windows == "none":
        return None
    has_switch = family.windows in ("last", "unturned")
    if has_switch and stated.get("use_sliding_window") is not True:
        return None
    window = stated.get("sliding_window", family.sliding_window)
    if window is None:
        return None
    if type(window) is not int or window < 1:
        raise RunError(
            f"sliding_window is {window!r}, expected a whole number of at least 1, or null",
            where=where,
            remedy="download config.json anew",
        )
    return window


def _blocks_by_default(
    family: Family, stated: Mapping[str, Any], num_blocks: int, window: int | None, *, where: str
) -> tuple[bool, ...]:
    if window is None:
        return (False,) * num_blocks
    if family.windows == "last":
        first = stated.get("max_window_layers", 28)
        if type(first) is not int:
            raise RunError(
                f"max_window_layers is {first!r}, expected a whole number",
                where=where,
                remedy="download config.json anew",
            )
        return tuple(block >= first for block in range(num_blocks))
    if family.windows == "unturned":
        turned = turned_blocks(family, stated, num_blocks, where=where)
        return (False,) * num_blocks if turned is None else tuple(not each for each in turned)
    if family.windows == "three_of_four":
        return tuple(block % 4 != 0 for block in range(num_blocks))
    return (True,) * num_blocks


def _blocks_by_name(kinds: object, num_blocks: int, *, where: str) -> tuple[bool, ...]:
    if not isinstance(kinds, Sequence) or len(kinds) != num_blocks:
        length = f"{len(kinds)} blocks" if isinstance(kinds, Sequence) else repr(kinds)
        raise _bad_kinds(
            f"names {length}, and num_hidden_layers is {num_blocks}",
            where=where,
            remedy="download config.json anew",
        )
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise _bad_kinds(
                f"{kind!r} is not supported, only full_attention and sliding_attention are",
                where=where,
                remedy="use a model without such blocks",
            )
    return tuple(kind == "sliding_attention" for kind in kinds)


def _bad_kinds(what: str, *, where: str, remedy: str) -> RunError:
    return RunError(f"layer_types: {what}", where=where, remedy=remedy)
