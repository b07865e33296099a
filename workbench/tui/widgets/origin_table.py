"""The resolved keys: value, who set it, whom that overrode."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content
from textual.message import Message

from workbench.tui import words
from workbench.tui.widgets.line_list import LineList

if TYPE_CHECKING:
    from workbench.config.load import Leaf


@dataclass(frozen=True)
class KeyLine:
    """One key of a resolved config."""

    key: str
    leaf: "Leaf"


def value_text(value: object) -> str:
    """Write a value as a config file would, in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if 0 < abs(value) < 1e-3:
            mantissa, _, exponent = f"{value:.9e}".partition("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:.10g}".replace("e+0", "e+")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(each)}" for key, each in value.items()) + "}"
    text = str(value)
    return '""' if text == "" else text.replace("\n", "⏎")


def chain(leaf: "Leaf") -> str:
    """Tell how a value came to be, oldest first: 5e-6 training.yaml:38 → 3.5e-6 mine.yaml:10."""
    steps = [(each.value, each.origin.source) for each in reversed(leaf.overrode)]
    steps.append((leaf.value, leaf.origin.source))
    return "  →  ".join(f"{value_text(value)} {source}" for value, source in steps)


class OriginTable(LineList[KeyLine]):
    """Keys under a cursor; a key that nobody states has the origin ``default`` and is dim."""

    KEY_SCOPES = ("filterable", "pane")

    @dataclass
    class Widened(Message):
        """The columns have other widths, so the line of their names is drawn anew."""

        table: "OriginTable"

    def __init__(
        self,
        project: Path,
        *,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._project = project
        self._key_width = self._value_width = self._origin_width = 0

    def set_rows(self, rows: Sequence[KeyLine]) -> None:
        """Show other keys; columns are as wide as these need."""
        self._key_width = max((len(row.key) for row in rows), default=0)
        self._value_width = max((len(self._value(row)) for row in rows), default=0)
        self._origin_width = max((len(row.leaf.origin.source) for row in rows), default=0)
        super().set_rows(rows)
        self.post_message(self.Widened(self))

    def on_resize(self) -> None:
        """Columns have other widths."""
        self.post_message(self.Widened(self))

    def _widths(self, width: int) -> tuple[int, int, int]:
        """Give the columns of key, value and origin; the rest is left to what was overridden."""
        return (
            min(self._key_width, max(width // 3, 22)),
            min(self._value_width, max(width // 4, 16)),
            min(self._origin_width, 34),
        )

    def header(self) -> Content:
        """Give the names of the columns, for the line above the table."""
        key_width, value_width, origin_width = self._widths(self.size.width - 2)
        names = f" {'key':<{key_width}}  {'value':<{value_width}}  {'set by':<{origin_width}}"
        return Content.assemble((f"{names}  overrides", "$quiet"))

    def _value(self, row: KeyLine) -> str:
        return words.from_project(value_text(row.leaf.value), self._project)

    def draw(self, row: KeyLine, width: int) -> Content:
        """Give key, value, origin and, where there is room, what was overridden."""
        key_width, value_width, origin_width = self._widths(width)
        is_default = row.leaf.origin.source == "default"
        value = words.shorten(self._value(row), value_width).ljust(value_width)
        origin = words.shorten_path(row.leaf.origin.source, origin_width).ljust(origin_width)
        overrode = " ← ".join(
            f"{each.origin.source} ({value_text(each.value)})" for each in row.leaf.overrode
        )
        return Content.assemble(
            words.shorten(row.key, key_width).ljust(key_width),
            "  ",
            (value, "$quiet" if is_default else "$heading"),
            "  ",
            (origin, "$quiet" if is_default else "$secondary"),
            "  ",
            (overrode, "$quiet"),
        ).truncate(width, ellipsis=True)

    def key_of(self, row: KeyLine) -> object:
        """A key is known by its name."""
        return row.key
