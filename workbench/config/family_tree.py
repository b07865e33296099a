"""The family tree of a config as plain facts: what text, SVG and JSON draw, each in its own way.

Knows nothing of drawing. Invariant: every file is there once, every value that replaced another is
there once, with all that it replaced.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from workbench.config.inherit import DEFAULT_ORIGIN, FileNode, Leaf, Origin
from workbench.config.load import ResolvedConfig


@dataclass(frozen=True)
class TreeFile:
    """A file of the family.

    Attributes:
        shown: its path as origins show it.
        path: absolute.
        num_keys: keys it states.
        num_shadowed: those of them that do not count in the end.
        extends: absolute paths of the files it extends, in the order listed: later wins.
    """

    shown: str
    path: Path
    num_keys: int
    num_shadowed: int
    extends: tuple[Path, ...]


@dataclass(frozen=True)
class Replacement:
    """One value taking the place of another.

    Attributes:
        key: ``section.key``.
        value: the new value.
        origin: who states it.
        old_value: the value it replaced; None, with ``old_origin`` None too, where only the
            schema's default was there.
        old_origin: who states that one.
        counts: the new value is the one in the resolved config, not replaced in turn.
    """

    key: str
    value: object
    origin: Origin
    old_value: object
    old_origin: Origin | None
    counts: bool


@dataclass(frozen=True)
class FamilyTree:
    """A config and all it extends.

    Attributes:
        name: of the config.
        description: its own line.
        files: the config first, then in the order in which a reader meets them.
        leaves: every key of the resolved config.
        beside: keys set by flags and key=value, in the order of the schema.
        overridden: keys whose value replaced another one, in the order of the schema.
    """

    name: str
    description: str
    files: tuple[TreeFile, ...]
    leaves: dict[str, Leaf]
    beside: dict[str, Leaf]
    overridden: dict[str, Leaf]

    def made_in(self, file: Path) -> list[Replacement]:
        """Give the replacements that a file makes, in the order of its lines."""
        found = [
            step
            for key, leaf in self.overridden.items()
            for step in replacements(key, leaf)
            if step.origin.file == file
        ]
        return sorted(found, key=lambda step: step.origin.line or 0)

    def made_beside(self) -> list[Replacement]:
        """Give what flags and key=value set, also where they replace no more than a default."""
        found = []
        for key, leaf in self.beside.items():
            steps = [step for step in replacements(key, leaf) if step.origin.file is None]
            found += steps or [Replacement(key, leaf.value, leaf.origin, None, None, True)]
        return found


def family_tree(resolved: ResolvedConfig) -> FamilyTree:
    """Gather the facts of a config's family."""
    leaves = resolved.leaves
    return FamilyTree(
        name=resolved.name,
        description=resolved.config.description,
        files=tuple({file.path: file for file in _files(resolved.files)}.values()),
        leaves=leaves,
        beside={
            key: leaf
            for key, leaf in leaves.items()
            if leaf.origin.file is None and leaf.origin != DEFAULT_ORIGIN
        },
        overridden={key: leaf for key, leaf in leaves.items() if leaf.overrode},
    )


def _files(node: FileNode) -> Iterator[TreeFile]:
    yield TreeFile(
        shown=node.shown,
        path=node.path,
        num_keys=node.num_keys,
        num_shadowed=node.num_shadowed,
        extends=tuple(parent.path for parent in node.parents),
    )
    for parent in node.parents:
        yield from _files(parent)


def replacements(key: str, leaf: Leaf) -> Iterator[Replacement]:
    """Take the history of a key apart: one step for each value that replaced another."""
    chain = [(leaf.value, leaf.origin), *((old.value, old.origin) for old in leaf.overrode)]
    for index, ((value, origin), (old_value, old_origin)) in enumerate(pairwise(chain)):
        yield Replacement(key, value, origin, old_value, old_origin, counts=index == 0)
