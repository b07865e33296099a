"""The header row: program, screens with what goes on in them, project, host and time."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from workbench.tui import keys, words


@dataclass(frozen=True)
class Badge:
    """Counts beside a screen's name: a mark, a number, a colour."""

    mark: str
    count: int
    colour: str


@dataclass(frozen=True)
class Tab:
    """A screen in the header."""

    row_id: str
    name: str
    short_name: str
    is_active: bool
    badges: tuple[Badge, ...] = ()


class TopBar(Widget):
    """One row; the name of the active screen is in capitals, so that no colour is needed."""

    DEFAULT_CSS = """
    TopBar { height: 1; background: $panel; }
    """

    tabs: reactive[tuple[Tab, ...]] = reactive(())
    place: reactive[str] = reactive("")
    now: reactive[float] = reactive(0.0)

    def render(self) -> Content:
        """Draw the row: names in full where they fit, else shortened."""
        width = self.size.width
        right = Content.assemble(
            (self.place, "$quiet"), (" · ", "$quiet") if self.place else "", words.clock(self.now)
        )
        left = Content.assemble((" workbench  ", "bold $primary"), self._names(is_short=False))
        room = width - left.cell_length - 9
        if left.cell_length + right.cell_length + 3 > width and room >= 16:
            place = words.shorten(self.place, room)
            right = Content.assemble((f"{place}  ", "$quiet"), words.clock(self.now))
        elif left.cell_length + right.cell_length + 3 > width:
            left = Content(" ").append(self._names(is_short=True))
            room = width - left.cell_length - 9
            place = words.shorten(self.place, room) if room > 8 else ""
            right = Content.assemble(
                (f"{place}  " if place else "", "$quiet"), words.clock(self.now)
            )
        gap = max(width - left.cell_length - right.cell_length - 1, 1)
        return left.append(" " * gap).append(right)

    def _names(self, *, is_short: bool) -> Content:
        parts: list[Content | str | tuple[str, str]] = []
        for tab in self.tabs:
            name = tab.short_name if is_short else tab.name
            key = keys.hint(tab.row_id)
            action = f"[@click=app.press('{tab.row_id}')]"
            if tab.is_active:
                parts.append(
                    Content.from_markup(
                        f"{action}[bold reverse] $key $name [/][/]", key=key, name=name.upper()
                    )
                )
            else:
                parts.append(
                    Content.from_markup(f"{action} [$primary]$key[/] $name [/]", key=key, name=name)
                )
            for badge in tab.badges:
                parts.append((f" {badge.mark}{badge.count}", badge.colour))
            if not is_short:
                parts.append(" ")
        return Content.assemble(*parts)
