"""What a model folder says of its model, read from ``config.json`` and file names, without torch.

Serves the checks before a launch and the arithmetic of memory. Every family of ``family_table`` has
facts, those in ``TRAINABLE_FAMILIES`` can be trained. The decoder itself reads its dimensions in
``model/families``. Invariant: nothing here reads a weight.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from workbench.config import family_table
from workbench.config.inherit import is_file, is_folder
from workbench.config.json_file import read_json_object
from workbench.config.rotary_scaling import longest_document, read_rotary
from workbench.errors import RunError

FAMILIES = tuple(family_table.FAMILIES)
"""``model_type`` of what the shapes here describe."""

TRAINABLE_FAMILIES = FAMILIES
"""``model_type`` of what the decoder of this version can be."""

# No decoder comes near these; a number beyond them is a slip, and would be counted up to.
_MOST_BLOCKS, _LARGEST_NUMBER = 10_000, 1 << 28


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A decoder as its ``config.json`` describes it.

    Attributes:
        family: ``model_type``, of those in ``family_table``.
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
        biased: the projections that have a bias, by their names: ``q``, ``k``, ``v``, ``o``,
            ``gate``, ``up``, ``down``.
        query_key_norm: queries and keys are normed per head.
        sliding_blocks: for each block whether its window slides; None where all are alike.
        longest_document: tokens that scaled positions reach to; None: ``max_positions``.
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
    biased: tuple[str, ...] = ()
    query_key_norm: bool = False
    sliding_blocks: tuple[bool, ...] | None = None
    longest_document: int | None = None

    @property
    def query_size(self) -> int:
        """Give the width of all query heads; of a head size of its own it is not hidden_size."""
        return self.num_heads * self.head_size

    @property
    def key_size(self) -> int:
        """Give the width of all key heads, which is that of all value heads."""
        return self.num_key_value_heads * self.head_size

    @property
    def block_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Give the shapes of one block's parameters, matrices as (out, in)."""
        width, inner = self.hidden_size, self.intermediate_size
        outs = {
            "q": self.query_size,
            "k": self.key_size,
            "v": self.key_size,
            "o": width,
            "gate": inner,
            "up": inner,
            "down": width,
        }
        ins = {"o": self.query_size, "down": inner}
        matrices = [(out, ins.get(name, width)) for name, out in outs.items()]
        biases = [(outs[name],) for name in self.biased]
        norms = [(width,), (width,)] + [(self.head_size,), (self.head_size,)] * self.query_key_norm
        return (*matrices, *biases, *norms)

    @property
    def block_parameters(self) -> int:
        """Count the parameters of one block."""
        return sum(math.prod(shape) for shape in self.block_shapes)

    @property
    def vocabulary_parameters(self) -> int:
        """Count the parameters of the embedding, which is the size of the head too."""
        return self.vocabulary_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Count the parameters of the whole model, a tied tensor once."""
        outside = self.vocabulary_parameters * (1 if self.tied else 2) + self.hidden_size
        return self.num_layers * self.block_parameters + outside

    @property
    def sliding_fraction(self) -> float:
        """Give the share of blocks whose window slides."""
        if self.sliding_window is None:
            return 0.0
        return 1.0 if self.sliding_blocks is None else sum(self.sliding_blocks) / self.num_layers

    @property
    def is_trainable(self) -> bool:
        """Say whether the decoder of this version can be this model."""
        return self.family in TRAINABLE_FAMILIES


def most_of(name: str) -> int:
    """Give the largest number that a field of config.json can mean."""
    return _MOST_BLOCKS if name == "num_hidden_layers" else _LARGEST_NUMBER


def read_model_facts(path: Path | str) -> ModelFacts:
    """Read the facts of a model folder, or of a ``config.json`` by itself.

    Raises:
        RunError: nothing there, no readable ``config.json``, a number missing in it, or a family
            or a field that the decoder cannot be.
    """
    path = Path(path)
    if is_file(path):
        return _read_facts(path)
    if not is_folder(path):
        raise RunError(
            "is not there",
            where=f"model folder {path}",
            remedy="give the folder of a model in Hugging Face layout: --model PATH; one of the "
            "hub is known by its id once `hf download OWNER/NAME` has fetched it",
        )
    if not is_file(path / "config.json"):
        raise RunError(
            "has no config.json",
            where=f"model folder {path}",
            remedy="give a folder in Hugging Face layout, or download config.json into it",
        )
    return _read_facts(path / "config.json")


def _read_facts(path: Path) -> ModelFacts:
    return facts_of(read_json_object(path, RunError), where=str(path))


def facts_of(stated: dict[str, object], *, where: str) -> ModelFacts:
    """Take the facts from the content of a ``config.json``.

    Raises:
        RunError: as ``read_model_facts``.
    """
    family, switches = family_table.family_of(stated, where=where)
    family_table.refuse_unsupported(stated, family, switches, where=where)
    defaults: dict[str, int | None] = {
        "max_position_embeddings": switches.max_positions,
        "num_key_value_heads": switches.num_key_value_heads,
        "head_dim": switches.head_size,
    }

    def number(name: str, fallback: int | None = None) -> int:
        value = stated.get(name, defaults.get(name))
        if value is None and fallback is not None:
            return fallback
        if type(value) is not int or value < 1:
            raise RunError(
                f"{name} is {value!r}, expected a whole number of at least 1",
                where=where,
                remedy="download config.json anew",
            )
        if value > most_of(name):
            raise RunError(
                f"{name} is {value:,}, more than any model has",
                where=where,
                remedy="download config.json anew",
            )
        return value

    def optional(name: str) -> int | None:
        return None if stated.get(name, defaults.get(name)) is None else number(name)

    hidden_size, num_heads = number("hidden_size"), number("num_attention_heads")
    num_layers = number("num_hidden_layers")
    window, slides = family_table.sliding_blocks(switches, stated, num_layers, where=where)
    max_positions = optional("max_position_embeddings")
    _, rotary = read_rotary(stated, switches, max_positions or switches.max_positions, where=where)
    facts = ModelFacts(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=number("intermediate_size"),
        num_heads=num_heads,
        num_key_value_heads=number("num_key_value_heads", num_heads),
        head_size=number("head_dim", max(1, hidden_size // num_heads)),
        vocabulary_size=number("vocab_size"),
        max_positions=max_positions,
        sliding_window=window,
        tied=stated.get("tie_word_embeddings", switches.tied) is True,
        biased=family_table.biased_projections(switches, stated),
        query_key_norm=switches.query_key_norm,
        sliding_blocks=slides,
        longest_document=max_positions and longest_document(rotary, max_positions),
    )
    _check_numbers(stated, where=where)
    has_own_size = stated.get("head_dim", switches.head_size) is not None
    _check_heads(facts, has_own_size=has_own_size, where=where)
    return facts


def _check_numbers(stated: dict[str, object], *, where: str) -> None:
    """Refuse what memory needs no count of, and no decoder can be built with.

    Raises:
        RunError: a number that is none, or not above 0; a flag that is no flag.
    """
    for name in ("rms_norm_eps", "initializer_range"):
        value = stated.get(name, 1.0)
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            raise RunError(
                f"{name} is {value!r}, a number above 0 is needed",
                where=where,
                remedy="download config.json anew",
            )
    tied = stated.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise RunError(
            f"tie_word_embeddings is {tied!r}, not true or false",
            where=where,
            remedy="download config.json anew",
        )


def _check_heads(facts: ModelFacts, *, has_own_size: bool, where: str) -> None:
    """Refuse heads that no decoder can be built from, as the decoder does.

    Raises:
        RunError: what does not divide, or an odd head.
    """
    heads, groups = facts.num_heads, facts.num_key_value_heads
    if heads % groups:
        what = f"num_key_value_heads {groups} does not divide num_attention_heads {heads}"
    elif not has_own_size and facts.hidden_size % heads:
        what = f"hidden_size {facts.hidden_size} is no multiple of num_attention_heads {heads}"
    elif facts.head_size % 2:
        what = f"a head of {facts.head_size} is odd, and rotary positions need pairs"
    else:
        return
    raise RunError(what, where=where, remedy="download config.json anew")
