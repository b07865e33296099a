"""Two configs compared key by key, each value with who states it.

Knows nothing of files. Invariant: a key is told where its values differ, and never otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from workbench.config.inherit import Leaf
from workbench.config.schema.keys import all_keys


@dataclass(frozen=True)
class Difference:
    """A key whose values differ; a side is None where that config has no such key."""

    key: str
    left: Leaf | None
    right: Leaf | None


def differences(left: Mapping[str, Leaf], right: Mapping[str, Leaf]) -> list[Difference]:
    """Compare two resolved configs by their leaves, in the order of the schema."""
    order = {key: index for index, key in enumerate(all_keys())}

    def place(key: str) -> int:
        # A key below a free name, data.sources.NAME.path, stands where its mapping stands.
        return order.get(".".join(key.split(".")[:2]), len(order))

    keys = sorted(dict.fromkeys([*left, *right]), key=place)
    return [
        Difference(key, left.get(key), right.get(key))
        for key in keys
        if _value(left.get(key)) != _value(right.get(key))
    ]


def _value(leaf: Leaf | None) -> object:
    """Give what is compared: a mapping without names is as good as none."""
    return None if leaf is None or leaf.value == {} else (leaf.value,)
