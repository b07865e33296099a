"""One side of a comparison: whose it is, what it does now, and what has been said with it."""

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from workbench.tui import words
from workbench.tui.widgets.transcript import STOP_WORDS, Transcript

LETTERS = "AB"


@dataclass(frozen=True)
class SideState:
    """What a side does now.

    Attributes:
        doing: loading, waiting, answering, ended, failed or nothing.
        text: how far loading is, why it ended, or why it failed.
        num_tokens: of its last answer.
        seconds: how long its last answer has taken.
    """

    doing: str = "nothing"
    text: str = ""
    num_tokens: int = 0
    seconds: float = 0.0

    @property
    def mark(self) -> tuple[str, str]:
        """Mark and colour."""
        if self.doing == "ended":
            return ("■", "$quiet") if self.text == "stopped" else ("✓", "$good")
        return {
            "loading": ("◌", "$busy"),
            "waiting": ("‖", "$quiet"),
            "answering": ("●", "$busy"),
            "failed": ("✗", "$bad"),
        }.get(self.doing, ("·", "$quiet"))

    def said(self) -> str:
        """Say what the side does, what it has made and how fast."""
        parts = []
        if self.doing == "answering":
            parts.append("generating")
        elif self.doing == "ended":
            parts.append(STOP_WORDS.get(self.text, self.text))
        elif self.doing == "nothing":
            parts.append("not asked yet")
        else:
            parts.append(self.text)
        if self.num_tokens and self.doing in ("answering", "ended"):
            parts.append(f"{self.num_tokens} tok")
            if self.seconds > 0:
                parts.append(f"{self.num_tokens / self.seconds:.0f} tok/s")
                parts.append(f"{self.seconds:.1f} s")
        return " · ".join(parts)


class SidePane(Vertical):
    """A side; the head stays while the transcript below it scrolls."""

    DEFAULT_CSS = """
    SidePane .head { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap;
        text-overflow: ellipsis; }
    SidePane Transcript { height: 1fr; scrollbar-size-vertical: 1; }
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, classes="pane")
        self.state = SideState()

    def compose(self) -> ComposeResult:
        """Lay out head and transcript."""
        yield Static(classes="head")
        yield Transcript()

    @property
    def transcript(self) -> Transcript:
        """What has been said with this side."""
        return self.query_one(Transcript)

    def show_state(self, state: SideState) -> None:
        """Say at the head what the side does."""
        self.state = state
        mark, colour = state.mark
        self.query_one(".head", Static).update(
            Content.assemble((f"{mark} ", f"bold {colour}"), state.said())
        )

    def entitle(self, position: int, name: str, other: SideState | None) -> None:
        """Write the title.

        Args:
            position: 0 for the left side.
            name: of the model.
            other: state of the other side, where that one is not seen: both are tabs then.
        """
        letter = LETTERS[position]
        if other is None:
            self.border_title = Content.assemble((f"{letter}", "bold"), f" · {name}")
            return
        tabs = []
        for place, each in enumerate((self.state, other) if position == 0 else (other, self.state)):
            mark, _ = each.mark
            tokens = f" {each.num_tokens}" if each.doing == "answering" else ""
            text = f"{LETTERS[place]} {mark}{tokens}"
            tabs.append((f"[{text}]", "bold") if place == position else (text, "$quiet"))
        title = Content("  ").join([Content.assemble(tab) for tab in tabs])
        self.border_title = title.append(Content(f" · {words.shorten(name, 40)}"))
