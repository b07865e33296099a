"""The list of configs by folder, with the state of each config's last run or its mistake."""

from dataclasses import dataclass

from textual.content import Content

from workbench.tui import words
from workbench.tui.widgets.line_list import LineList


@dataclass(frozen=True)
class ConfigRow:
    """A config, or the heading of a folder where ``name`` ends in a slash.

    ``needs`` says what it runs on and its context, in a width that is the same for every row.
    """

    name: str
    description: str = ""
    needs: str = ""
    problem: str | None = None
    mark: str = ""
    mark_colour: str = ""
    last_run: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether this is a heading."""
        return self.name.endswith("/")


_WITH_NEEDS = 44
"""Cells behind a name in which GPUs and context leave enough for the description."""


def _shown_name(row: ConfigRow) -> str:
    """Give the last part of a name, indented below the heading of its folder."""
    folder, _, last = row.name.rpartition("/")
    return f"  {last}" if folder else last


class ConfigList(LineList[ConfigRow]):
    """Configs under headings; a broken one is listed with ``!`` and its mistake."""

    KEY_SCOPES = ("filterable", "pane")

    def draw(self, row: ConfigRow, width: int) -> Content:
        """Give folder, or name, last run and description."""
        if row.is_folder:
            return Content.assemble((row.name, "$quiet"))
        mark, colour = ("!", "$bad") if row.problem else (row.mark, row.mark_colour)
        longest = max((len(_shown_name(each)) for each in self.rows), default=8)
        name_width = min(longest, 22 if width >= 46 else width - 3)
        name = words.shorten(_shown_name(row), name_width)
        if width < 46:
            return Content.assemble(name.ljust(width - 2), (mark or " ", colour or ""), " ")
        rest = width - name_width - 4
        needs = f"  {row.needs}" if row.needs and rest >= _WITH_NEEDS else ""
        said = words.shorten(row.problem or row.description, rest - len(needs))
        return Content.assemble(
            name.ljust(name_width + 2),
            (mark or " ", colour or ""),
            " ",
            (said.ljust(rest - len(needs)), "$bad" if row.problem else "$quiet"),
            needs,
        )

    def key_of(self, row: ConfigRow) -> object:
        """A config is known by its name."""
        return row.name

    def can_choose(self, row: ConfigRow) -> bool:
        """Headings are passed over."""
        return not row.is_folder
