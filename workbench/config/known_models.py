"""Shapes of well-known models, so that a forecast needs no file.

Only what their published ``config.json`` says; names are those people type. Knows no weights.
"""

import difflib
from pathlib import Path

from workbench.config.model_facts import ModelFacts
from workbench.errors import RunError


def _llama(
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    heads: tuple[int, int],
    vocabulary_size: int,
    max_positions: int,
    *,
    family: str = "llama",
    tied: bool = False,
    sliding_window: int | None = None,
) -> ModelFacts:
    """Describe a llama or mistral; ``heads`` are query heads, then key and value heads."""
    return ModelFacts(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=heads[0],
        num_key_value_heads=heads[1],
        head_size=hidden_size // heads[0],
        vocabulary_size=vocabulary_size,
        max_positions=max_positions,
        sliding_window=sliding_window,
        tied=tied,
    )


def _qwen(
    family: str,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    heads: tuple[int, int],
    vocabulary_size: int,
    max_positions: int,
    *,
    tied: bool = False,
) -> ModelFacts:
    """Describe a qwen2, whose q, k and v have biases, or a qwen3, whose heads are normed."""
    is_qwen3 = family == "qwen3"
    return ModelFacts(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=heads[0],
        num_key_value_heads=heads[1],
        head_size=128 if is_qwen3 else hidden_size // heads[0],
        vocabulary_size=vocabulary_size,
        max_positions=max_positions,
        sliding_window=None,
        tied=tied,
        biased=() if is_qwen3 else ("q", "k", "v"),
        query_key_norm=is_qwen3,
    )


KNOWN_MODELS = {
    "smollm2-135m": _llama(30, 576, 1536, (9, 3), 49152, 8192, tied=True),
    "smollm2-360m": _llama(32, 960, 2560, (15, 5), 49152, 8192, tied=True),
    "smollm2-1.7b": _llama(24, 2048, 8192, (32, 32), 49152, 8192, tied=True),
    "tinyllama-1.1b": _llama(22, 2048, 5632, (32, 4), 32000, 2048),
    "llama-2-7b": _llama(32, 4096, 11008, (32, 32), 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 13824, (40, 40), 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 28672, (64, 8), 32000, 4096),
    "llama-30b": _llama(60, 6656, 17920, (52, 52), 32000, 2048),
    "llama-3-8b": _llama(32, 4096, 14336, (32, 8), 128256, 8192),
    "llama-3.1-8b": _llama(32, 4096, 14336, (32, 8), 128256, 131072),
    "llama-3.1-70b": _llama(80, 8192, 28672, (64, 8), 128256, 131072),
    "llama-3.2-1b": _llama(16, 2048, 8192, (32, 8), 128256, 131072, tied=True),
    "llama-3.2-3b": _llama(28, 3072, 8192, (24, 8), 128256, 131072, tied=True),
    "mistral-7b": _llama(
        32, 4096, 14336, (32, 8), 32000, 32768, family="mistral", sliding_window=4096
    ),
    "qwen2.5-0.5b": _qwen("qwen2", 24, 896, 4864, (14, 2), 151936, 32768, tied=True),
    "qwen2.5-1.5b": _qwen("qwen2", 28, 1536, 8960, (12, 2), 151936, 131072, tied=True),
    "qwen2.5-7b": _qwen("qwen2", 28, 3584, 18944, (28, 4), 152064, 131072),
    "qwen2.5-14b": _qwen("qwen2", 48, 5120, 13824, (40, 8), 152064, 131072),
    "qwen2.5-32b": _qwen("qwen2", 64, 5120, 27648, (40, 8), 152064, 131072),
    "qwen2.5-72b": _qwen("qwen2", 80, 8192, 29568, (64, 8), 152064, 131072),
    "qwen3-0.6b": _qwen("qwen3", 28, 1024, 3072, (16, 8), 151936, 40960, tied=True),
    "qwen3-8b": _qwen("qwen3", 36, 4096, 12288, (32, 8), 151936, 40960),
    "qwen3-32b": _qwen("qwen3", 64, 5120, 25600, (64, 8), 151936, 40960),
}
"""Name to facts."""


def known_model(name: str | Path) -> tuple[str, ModelFacts]:
    """Find a model by the last part of what was typed, ``Mistral_7B`` like ``mistral-7b``.

    Returns:
        The name it is known by, and its facts.

    Raises:
        RunError: it is not known; the remedy lists the names.
    """
    wanted = Path(name).name.lower().replace("_", "-")
    if wanted in KNOWN_MODELS:
        return wanted, KNOWN_MODELS[wanted]
    near = difflib.get_close_matches(wanted, KNOWN_MODELS, n=1)
    guess = f"did you mean {near[0]}? Or " if near else ""
    raise RunError(
        "is neither a model folder, a config.json, nor a known model",
        where=f"model {name}",
        remedy=f"{guess}name one of {', '.join(KNOWN_MODELS)}",
    )
