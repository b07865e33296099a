"""The footer: the keys that work here, from the table; refused ones are dim, not gone."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget


@dataclass(frozen=True)
class KeyItem:
    """A key in the footer: the row, how key and action are written, its rank, whether refused."""

    row_id: str
    key: str
    label: str
    rank: int
    is_refused: bool = False


class KeyBar(Widget):
    """One row. What does not fit is dropped by its rank in the table; help still lists it."""

    DEFAULT_CSS = """
    KeyBar { height: 1; background: $panel; }
    """

    # The screen's own first; then those that work everywhere, at the right.
    here: reactive[tuple[KeyItem, ...]] = reactive(())
    everywhere: reactive[tuple[KeyItem, ...]] = reactive(())

    def render(self) -> Content:
        """Draw the row with as many keys as fit."""
        width = self.size.width
        for worst in (5, 4, 3, 2, 1):
            left = _draw(self.here, worst)
            right = _draw(self.everywhere, worst)
            if left.cell_length + right.cell_length + 2 <= width or worst == 1:
                break
        gap = max(width - left.cell_length - right.cell_length, 0)
        return left.append(" " * gap).append(right).truncate(width)


def _draw(items: tuple[KeyItem, ...], worst: int) -> Content:
    parts = []
    for item in items:
        if item.rank > worst:
            continue
        key_style = "$quiet" if item.is_refused else "bold $primary"
        label_style = "$quiet dim" if item.is_refused else "$foreground"
        parts.append(
            Content.from_markup(
                f"[@click=app.press('{item.row_id}')] [{key_style}]$key[/]"
                f" [{label_style}]$label[/] [/]",
                key=item.key,
                label=item.label,
            )
        )
    return Content("").join(parts)
