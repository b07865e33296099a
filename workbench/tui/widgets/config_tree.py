"""The files a config is made of, in the order of ``extends:``, and facts below them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

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
    rows = [TreeRow("", _name(root.path, root.path), root.path, root.num_keys, root.num_shadowed)]

    def add(node: "FileNode", lead: str) -> None:
        for index, parent in enumerate(node.parents):
            is_last = index == len(node.parents) - 1
            rows.append(
                TreeRow(
                    lead + ("└─ " if is_last else "├─ "),
                    f"extends {_name(parent.path, root.path)}",
                    parent.path,
                    parent.num_keys,
                    parent.num_shadowed,
                )
            )
            add(parent, lead + ("   " if is_last else "│  "))

    add(root, "")
    return rows


def _name(path: Path, root: Path) -> str:
    """Name a file by its folder and name, as its tree is read."""
    return (
        path.name
        if path.parent == root.parent and path != root
        else f"{path.parent.name}/{path.name}"
    )


class ConfigTree(LineList[TreeRow]):
    """Files and facts; opening a file narrows the keys to those it sets."""

    KEY_SCOPES = ("filterable", "pane")

    def draw(self, row: TreeRow, width: int) -> Content:
        """Give guide, name, and how many keys the file sets and loses."""
        if row.text is not None:
            return row.text
        count = f"{row.num_keys:>4} keys"
        shadowed = f", {row.num_shadowed} shadowed" if row.num_shadowed else ""
        right = f"{count}{shadowed}"
        name = Content.assemble((row.guide, "$quiet"), row.name)
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
