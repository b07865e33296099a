"""Shapes of well-known models, so that a forecast needs no file.

Only what their published ``config.json`` says; names are those people type. Knows no weights.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from workbench.config.family_table import FAMILIES, biased_projections
from workbench.config.model_facts import ModelFacts
from workbench.errors import RunError


def _facts(
    family: str,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    heads: tuple[int, int],
    vocabulary_size: int,
    max_positions: int,
    *,
    tied: bool = False,
    head_size: int | None = None,
    sliding_window: int | None = None,
    sliding_blocks: tuple[bool, ...] | None = None,
) -> ModelFacts:
    """Describe a model of a family; ``heads`` are query heads, then key and value heads.

    A head is as wide as the family's, or else as hidden_size shared out; biases are the family's.
    """
    switches = FAMILIES[family]
    return ModelFacts(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=heads[0],
        num_key_value_heads=heads[1],
        head_size=head_size or switches.head_size or hidden_size // heads[0],
        vocabulary_size=vocabulary_size,
        max_positions=max_positions,
        sliding_window=sliding_window,
        tied=tied,
        biased=biased_projections(switches, {}),
        query_key_norm=switches.query_key_norm,
        sliding_blocks=sliding_blocks,
    )


KNOWN_MODELS = {
    "smollm2-135m": _facts("llama", 30, 576, 1536, (9, 3), 49152, 8192, tied=True),
    "smollm2-360m": _facts("llama", 32, 960, 2560, (15, 5), 49152, 8192, tied=True),
    "smollm2-1.7b": _facts("llama", 24, 2048, 8192, (32, 32), 49152, 8192, tied=True),
    "smollm3-3b": _facts("smollm3", 36, 2048, 11008, (16, 4), 128256, 65536, tied=True),
    "tinyllama-1.1b": _facts("llama", 22, 2048, 5632, (32, 4), 32000, 2048),
    "llama-2-7b": _facts("llama", 32, 4096, 11008, (32, 32), 32000, 4096),
    "llama-2-13b": _facts("llama", 40, 5120, 13824, (40, 40), 32000, 4096),
    "llama-2-70b": _facts("llama", 80, 8192, 28672, (64, 8), 32000, 4096),
    "llama-30b": _facts("llama", 60, 6656, 17920, (52, 52), 32000, 2048),
    "llama-3-8b": _facts("llama", 32, 4096, 14336, (32, 8), 128256, 8192),
    "llama-3.1-8b": _facts("llama", 32, 4096, 14336, (32, 8), 128256, 131072),
    "llama-3.1-70b": _facts("llama", 80, 8192, 28672, (64, 8), 128256, 131072),
    "llama-3.2-1b": _facts("llama", 16, 2048, 8192, (32, 8), 128256, 131072, tied=True),
    "llama-3.2-3b": _facts("llama", 28, 3072, 8192, (24, 8), 128256, 131072, tied=True),
    "llama-3.3-70b": _facts("llama", 80, 8192, 28672, (64, 8), 128256, 131072),
    "mistral-7b": _facts("mistral", 32, 4096, 14336, (32, 8), 32000, 32768, sliding_window=4096),
    "mistral-7b-v0.2": _facts("mistral", 32, 4096, 14336, (32, 8), 32000, 32768),
    "mistral-7b-v0.3": _facts("mistral", 32, 4096, 14336, (32, 8), 32768, 32768),
    "mistral-nemo-12b": _facts("mistral", 40, 5120, 14336, (32, 8), 131072, 131072, head_size=128),
    "mistral-small-24b": _facts("mistral", 40, 5120, 32768, (32, 8), 131072, 32768, head_size=128),
    "qwen2.5-0.5b": _facts("qwen2", 24, 896, 4864, (14, 2), 151936, 32768, tied=True),
    "qwen2.5-1.5b": _facts("qwen2", 28, 1536, 8960, (12, 2), 151936, 131072, tied=True),
    "qwen2.5-3b": _facts("qwen2", 36, 2048, 11008, (16, 2), 151936, 32768, tied=True),
    "qwen2.5-7b": _facts("qwen2", 28, 3584, 18944, (28, 4), 152064, 131072),
    "qwen2.5-14b": _facts("qwen2", 48, 5120, 13824, (40, 8), 152064, 131072),
    "qwen2.5-32b": _facts("qwen2", 64, 5120, 27648, (40, 8), 152064, 131072),
    "qwen2.5-72b": _facts("qwen2", 80, 8192, 29568, (64, 8), 152064, 131072),
    "qwen3-0.6b": _facts("qwen3", 28, 1024, 3072, (16, 8), 151936, 40960, tied=True),
    "qwen3-1.7b": _facts("qwen3", 28, 2048, 6144, (16, 8), 151936, 40960, tied=True),
    "qwen3-4b": _facts("qwen3", 36, 2560, 9728, (32, 8), 151936, 40960, tied=True),
    "qwen3-8b": _facts("qwen3", 36, 4096, 12288, (32, 8), 151936, 40960),
    "qwen3-14b": _facts("qwen3", 40, 5120, 17408, (40, 8), 151936, 40960),
    "qwen3-32b": _facts("qwen3", 64, 5120, 25600, (64, 8), 151936, 40960),
    "cwm-32b": _facts(
        "cwm",
        64,
        6144,
        21504,
        (48, 8),
        128256,
        131072,
        sliding_window=8192,
        sliding_blocks=(False, True, True, True) * 16,
    ),
    "internlm3-8b": _facts("internlm3", 48, 4096, 10240, (32, 2), 128512, 32768),
    "seed-oss-36b": _facts("seed_oss", 64, 5120, 27648, (80, 8), 155136, 524288),
}
"""Name to facts."""


# Words in names on the hub that say how a model was trained on; its shapes stay.
_TRAINED_ON = frozenset({"hf", "base", "chat", "instruct", "it"})
_RELEASES = frozenset({"v0.1", "v1.0", "2407", "2501"})
# What stands on the hub without its size.
_WITHOUT_SIZE = {"mistral-nemo": "mistral-nemo-12b", "cwm": "cwm-32b"}

SHOWN_BY = "workbench estimate --known"
"""The command that lists cards and models that are known by name."""


def known_name(name: str | Path) -> str | None:
    """Give the name by which a model is known; None for one that is not.

    The last part of an id counts: ``meta-llama/Meta-Llama-3-8B-Instruct`` is ``llama-3-8b``, and
    ``Mistral_7B`` is ``mistral-7b``.
    """
    typed = Path(name).name.lower().replace("_", "-").removeprefix("meta-")
    words = [word for word in typed.split("-") if word not in _TRAINED_ON]
    tried = [typed, "-".join(words)]
    if words and words[-1] in _RELEASES:
        tried.append("-".join(words[:-1]))
    for each in tried:
        found = _WITHOUT_SIZE.get(each, each)
        if found in KNOWN_MODELS:
            return found
    return None


def known_model(name: str | Path) -> tuple[str, ModelFacts]:
    """Find a model by its name, or by its id on the hub.

    Returns:
        The name it is known by, and its facts.

    Raises:
        RunError: it is not known; the remedy names those that are near.
    """
    found = known_name(name)
    if found is not None:
        return found, KNOWN_MODELS[found]
    near = near_names(Path(name).name.replace("_", "-"), KNOWN_MODELS)
    guess = f"did you mean {near}? " if near else ""
    raise RunError(
        "is neither a model folder, a config.json, nor a known model",
        where=f"model {name}",
        remedy=f"{guess}`{SHOWN_BY}` lists the names",
    )


def near_names(typed: str, names: Iterable[str]) -> str:
    """Give up to three names that are like what was typed, joined; "" where none is."""
    by_spelling = {name.lower(): name for name in names}
    near = difflib.get_close_matches(typed.lower(), by_spelling, n=3)
    near += [each for each in by_spelling if typed.lower() in each and each not in near]
    *some, last = [by_spelling[each] for each in near[:3]] or [""]
    return f"{', '.join(some)} or {last}" if some else last
