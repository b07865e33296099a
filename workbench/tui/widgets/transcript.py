"""The conversation: turns under headings; the view follows its end until the reader moves up."""

from dataclasses import dataclass, field

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from workbench.tui import words

_STOP_WORDS = {"stop": "ended by itself", "length": "length limit", "stopped": "stopped by you"}


@dataclass
class Answer:
    """One answer of the model and how it came to be."""

    text: str = ""
    seed: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    ended: str = ""  # stop, length, stopped, error; "" while it is being made

    @property
    def tokens_per_second(self) -> float | None:
        """Speed, None while it cannot be said."""
        return self.num_tokens / self.seconds if self.num_tokens and self.seconds > 0 else None


@dataclass
class Exchange:
    """A message and the answers it got; ``shown`` is the one that counts."""

    message: str
    time: float
    answers: list[Answer] = field(default_factory=list)
    shown: int = 0

    @property
    def answer(self) -> Answer | None:
        """The answer that is shown."""
        return self.answers[self.shown] if self.answers else None


class ExchangeView(Static):
    """One exchange: both turns with a line above each."""

    DEFAULT_CSS = """
    ExchangeView { height: auto; width: 100%; padding: 0 1; margin-bottom: 1; }
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    def on_resize(self) -> None:
        """Draw the lines anew at their width."""
        self.draw()

    def draw(self) -> None:
        """Draw both turns."""
        width = max(self.size.width, 20)
        lines = [
            _rule("you", words.clock(self.exchange.time), width, "$secondary"),
            Content(self.exchange.message),
        ]
        answer = self.exchange.answer
        if answer is not None:
            about = self._about(answer, width - len("model ── "))
            lines += [Content(""), _rule("model", about, width, "$accent")]
            text = answer.text if answer.ended else answer.text + "▌"
            lines.append(Content(text))
        self.update(Content("\n").join(lines))

    def _about(self, answer: Answer, room: int) -> str:
        """Say how an answer came to be; what matters least goes first where room is short."""
        parts = self._facts(answer)
        while len(" · ".join(parts)) > room and len(parts) > 1:
            parts.pop(0)
        return " · ".join(parts)

    def _facts(self, answer: Answer) -> list[str]:
        parts = []
        if answer.num_tokens:
            parts.append(f"{answer.num_tokens} tok")
        if answer.tokens_per_second is not None:
            parts.append(f"{answer.tokens_per_second:.0f} tok/s")
        parts.append(f"seed {answer.seed}")
        if len(self.exchange.answers) > 1:
            parts.append(f"‹ {self.exchange.shown + 1}/{len(self.exchange.answers)} ›")
        if answer.ended:
            parts.append(_STOP_WORDS.get(answer.ended, answer.ended))
        else:
            parts.append("generating")
        return parts


def _rule(who: str, about: str, width: int, colour: str) -> Content:
    left, right = f"{who} ", f" {about}"
    line = "─" * max(width - len(left) - len(right), 2)
    return Content.assemble((left, f"bold {colour}"), (line, "$frame"), (right, "$quiet"))


class Transcript(VerticalScroll, can_focus=True):
    """Exchanges, the newest at the end."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.exchanges: list[Exchange] = []
        self._follows = True

    async def add(self, exchange: Exchange) -> None:
        """Show one more exchange at the end."""
        self.exchanges.append(exchange)
        await self.mount(ExchangeView(exchange))
        # Whoever asks wants to see the answer, also one who had moved up.
        self._go_to_end()

    async def drop_last(self) -> None:
        """Take the last exchange away."""
        self.exchanges.pop()
        await list(self.query(ExchangeView))[-1].remove()

    async def clear(self) -> None:
        """Begin anew."""
        self.exchanges.clear()
        await self.query(ExchangeView).remove()

    def redraw_last(self) -> None:
        """Draw the last exchange as it stands."""
        views = list(self.query(ExchangeView))
        if not views:
            return
        views[-1].draw()
        if self._follows or self.scroll_y >= self.max_scroll_y:
            self._go_to_end()

    def release_anchor(self) -> None:
        """Cease to follow: the reader moves."""
        super().release_anchor()
        self._follows = False

    def _go_to_end(self) -> None:
        self.scroll_end(animate=False)
        # What was asked for here is no move of the reader's.
        self._follows = True
