"""The files a config is made of, in the order of ``extends:``, and facts below them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content
from textual.message import Message

from workbench.tui import keys
from workbench.tui.widgets.line_list import LineList

if TYPE_CHECKING:
    from workbench.config.load import FileNode


@dataclass(frozen=True)
class TreeRow:
    """A file of the tree, or a line of text below it."""

    guide: str = ""
    name: str = ""
    file: Path | None = None
    num_keys: int = 0
    num_shadowed: int = 0
    text: Content | None = None


def tree_rows(root: "FileNode") -> list[TreeRow]:
    """Give the files from the config down to its bases, each with the lines that lead to it."""
    rows = [TreeRow("", root.shown, root.path, root.num_keys, root.num_shadowed)]

    def add(node: "FileNode", lead: str) -> None:
        for index, parent in enumerate(node.parents):
            is_last = index == len(node.parents) - 1
            rows.append(
                TreeRow(
                    lead + ("└─ " if is_last else "├─ "),
                    f"extends {_name(parent, root.path)}",
                    parent.path,
                    parent.num_keys,
                    parent.num_shadowed,
                )
            )
            add(parent, lead + ("   " if is_last else "│  "))

    add(root, "")
    return rows


def _name(node: "FileNode", root: Path) -> str:
    """Name a file as origins do; one beside the config by its name alone, as it is written."""
    return node.path.name if node.path.parent == root.parent else node.shown


class ConfigTree(LineList[TreeRow]):
    """Files and facts; opening a file narrows the keys to those it sets; files can be marked."""

    BINDINGS = keys.bindings("tree")
    KEY_SCOPES = ("tree", "filterable", "pane")

    @dataclass
    class Widened(Message):
        """The tree has another width, so text in it is broken anew."""

        tree: "ConfigTree"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._marked: set[Path] = set()

    @property
    def text_width(self) -> int:
        """Cells of a line of text, beside the cursor's and one at the border."""
        return max(self.size.width - 2, 1)

    def on_resize(self) -> None:
        """Text has another width."""
        self.post_message(self.Widened(self))

    @property
    def marked(self) -> list[Path]:
        """The marked files, each once, in the order of the tree."""
        files = [row.file for row in self.rows if row.file in self._marked]
        return [file for file in dict.fromkeys(files) if file is not None]

    def set_rows(self, rows: Sequence[TreeRow]) -> None:
        """Show other files; what is no longer shown is no longer marked."""
        super().set_rows(rows)
        self._marked.intersection_update(row.file for row in rows if row.file is not None)

    def do_mark(self) -> None:
        """Mark the file under the cursor, or take its mark off, and go on to the next."""
        if self.current is not None and self.current.file is not None:
            self._marked ^= {self.current.file}
            self.do_move_down()
            self.refresh()

    def unmark(self) -> None:
        """Take every mark off."""
        self._marked.clear()
        self.refresh()

    def draw(self, row: TreeRow, width: int) -> Content:
        """Give guide, name, and how many keys the file sets and loses."""
        if row.text is not None:
            return row.text
        count = f"{row.num_keys:>4} keys"
        shadowed = f", {row.num_shadowed} shadowed" if row.num_shadowed else ""
        right = f"{count}{shadowed}"
        mark = ("* ", "bold $primary") if row.file in self._marked else ""
        name = Content.assemble((row.guide, "$quiet"), mark, row.name)
        if name.cell_length + len(right) + 2 > width:
            right = count
        name = name.truncate(max(width - len(right) - 1, 1), ellipsis=True)
        return name.append(" " * (width - name.cell_length - len(right))).append(
            Content.assemble((right, "$quiet"))
        )

    def key_of(self, row: TreeRow) -> object:
        """A file is known by its path and where it hangs."""
        return row.guide, row.file

    def can_choose(self, row: TreeRow) -> bool:
        """Facts are passed over."""
        return row.file is not None
