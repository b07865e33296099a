"""What a model folder says of its model, read from ``config.json`` and file names, without torch.

Serves the checks before a launch and the arithmetic of memory; the decoder itself reads its
dimensions in ``model/families``. Invariant: nothing here reads a weight.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from workbench.config.inherit import is_file, is_folder
from workbench.errors import RunError

FAMILIES = ("llama", "mistral")
"""``model_type`` of what the decoder can be."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A decoder as its ``config.json`` describes it.

    Attributes:
        family: ``model_type``: llama, mistral.
        num_layers: decoder blocks.
        hidden_size: width of the residual stream.
        intermediate_size: width within the MLP.
        num_heads: query heads.
        num_key_value_heads: key and value heads.
        head_size: width of a head.
        vocabulary_size: rows of the embedding.
        max_positions: longest row the model is made for, None where the folder does not say.
        sliding_window: tokens a position sees back, None: all.
        tied: embedding and head are one tensor.
        num_parameters: of the whole model, a tied tensor counted once.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    vocabulary_size: int
    max_positions: int | None
    sliding_window: int | None
    tied: bool

    @property
    def num_parameters(self) -> int:
        """Count the parameters of the whole model."""
        heads = (2 * self.num_heads + 2 * self.num_key_value_heads) * self.head_size
        block = self.hidden_size * (heads + 3 * self.intermediate_size + 2)
        embedding = self.vocabulary_size * self.hidden_size
        return self.num_layers * block + self.hidden_size + embedding * (1 if self.tied else 2)


def read_model_facts(folder: Path | str) -> ModelFacts:
    """Read the facts of a model folder.

    Raises:
        RunError: no such folder, no readable ``config.json``, a number missing in it, or a family
            the decoder does not know.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise RunError(
            "is not a folder" if is_file(folder) else "is not there",
            where=f"model folder {folder}",
            remedy="give the folder of a model in Hugging Face layout: --model PATH",
        )
    path = folder / "config.json"
    try:
        stated = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            "has no config.json",
            where=f"model folder {folder}",
            remedy="give a folder in Hugging Face layout, or download config.json into it",
        ) from error
    except OSError as error:
        raise RunError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions"
        ) from error
    except ValueError as error:
        raise RunError(
            f"is not JSON: {error}", where=str(path), remedy="download it anew"
        ) from error
    if not isinstance(stated, dict):
        raise RunError("is not a JSON object", where=str(path), remedy="download it anew")
    return facts_of(stated, where=str(path))


def facts_of(stated: dict[str, object], *, where: str) -> ModelFacts:
    """Take the facts from the content of a ``config.json``.

    Raises:
        RunError: as ``read_model_facts``.
    """
    family = stated.get("model_type")
    if family not in FAMILIES:
        raise RunError(
            f"model_type is {family!r}",
            where=where,
            remedy=f"use a model of one of the families {', '.join(FAMILIES)}",
        )

    def number(name: str, fallback: int | None = None) -> int:
        value = stated.get(name)
        if value is None and fallback is not None:
            return fallback
        if type(value) is not int or value < 1:
            raise RunError(
                f"{name} is {value!r}, expected a whole number of at least 1",
                where=where,
                remedy="download config.json anew",
            )
        return value

    def optional(name: str) -> int | None:
        return None if stated.get(name) is None else number(name)

    hidden_size, num_heads = number("hidden_size"), number("num_attention_heads")
    return ModelFacts(
        family=str(family),
        num_layers=number("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=number("intermediate_size"),
        num_heads=num_heads,
        num_key_value_heads=number("num_key_value_heads", num_heads),
        head_size=number("head_dim", hidden_size // num_heads),
        vocabulary_size=number("vocab_size"),
        max_positions=optional("max_position_embeddings"),
        sliding_window=optional("sliding_window") if family == "mistral" else None,
        tied=stated.get("tie_word_embeddings") is True,
    )


def missing_weight_files(folder: Path | str) -> list[str]:
    """Name the weight files a model folder should have and has not; [] where it is complete.

    With an index, every shard the index names; without one, ``model.safetensors``.

    Raises:
        RunError: the index cannot be read.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not is_file(index):
        return [] if is_file(folder / SINGLE) else [SINGLE]
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "is no index of weight files", where=str(index), remedy="download it anew"
        ) from error
    return [str(shard) for shard in shards if not is_file(folder / str(shard))]
