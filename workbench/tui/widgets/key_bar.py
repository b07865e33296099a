"""The footer: the keys that work here, from the table; refused ones are dim, not gone."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from workbench.tui.keys import KeyRow


class KeyBar(Widget):
    """One row. What does not fit is dropped by its rank in the table; help still lists it."""

    DEFAULT_CSS = """
    KeyBar { height: 1; background: $panel; }
    """

    # (row, label, is refused), the screen's own first; then those that work everywhere.
    here: reactive[tuple[tuple[KeyRow, str, bool], ...]] = reactive(())
    everywhere: reactive[tuple[tuple[KeyRow, str, bool], ...]] = reactive(())

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


def _draw(items: tuple[tuple[KeyRow, str, bool], ...], worst: int) -> Content:
    parts = [
        Content.from_markup(
            f"[@click=app.press('{row.id}')] [{'$quiet' if is_refused else 'bold $primary'}]$key[/]"
            f"[{'$quiet dim' if is_refused else ''}] $label[/] [/]",
            key=row.shown,
            label=label,
        )
        if is_refused
        else Content.from_markup(
            f"[@click=app.press('{row.id}')] [bold $primary]$key[/] $label [/]",
            key=row.shown,
            label=label,
        )
        for row, label, is_refused in items
        if row.footer and row.footer <= worst
    ]
    return Content("").join(parts)
