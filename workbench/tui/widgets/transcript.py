"""The conversation: turns under headings; the view follows its end until the reader moves up."""

from typing import TYPE_CHECKING

from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from workbench.tui import words

if TYPE_CHECKING:
    from workbench.jobs.conversation import Conversation, Turn

STOP_WORDS = {"stop": "ended by itself", "length": "length limit", "stopped": "stopped by you"}


class ExchangeView(Widget):
    """One exchange: both turns with a line above each."""

    DEFAULT_CSS = """
    ExchangeView { height: auto; width: 100%; padding: 0 1; margin-bottom: 1; }
    """

    def __init__(self, conversation: "Conversation", question: "Turn") -> None:
        super().__init__()
        self._conversation = conversation
        self._question = question
        self._content: tuple[int, Content] | None = None

    @property
    def num_lines(self) -> int:
        """How many lines the exchange takes at its width, whatever stands beside it."""
        width = self.size.width
        return self._content_at(width).get_height({}, width) if width else 0

    def be_as_long_as(self, num_lines: int) -> None:
        """Take so many lines at least: what stands beside it takes them."""
        if self.styles.min_height is None or self.styles.min_height.value != num_lines:
            self.styles.min_height = num_lines

    def draw(self) -> None:
        """Draw both turns as they stand."""
        self._content = None
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Give the lines that the exchange takes at a width."""
        del container, viewport
        return self._content_at(width).get_height({}, width)

    def render(self) -> Content:
        """Give both turns at the width that there is."""
        return self._content_at(self.size.width)

    def _content_at(self, width: int) -> Content:
        """Give both turns, each under a line as wide as the exchange; kept until one changes."""
        if self._content is not None and self._content[0] == width:
            return self._content[1]
        question, answer = self._question, self._question.next
        lines = [
            _rule("you", self._said(), width, "$secondary"),
            Content(question.text),
        ]
        if answer is not None:
            about = self._about(answer, width - len("model ── "))
            lines += [Content(""), _rule("model", about, width, "$accent")]
            text = answer.text if answer.ended else answer.text + "▌"
            lines.append(Content(text))
        self._content = (width, Content("\n").join(lines))
        return self._content[1]

    def _said(self) -> str:
        """Say when a message was sent, and which of its versions it is."""
        if self._question.before is None:  # it has just been dropped
            return ""
        versions = self._conversation.siblings(self._question)
        time = words.clock(self._question.time)
        if len(versions) == 1:
            return time
        return f"« {versions.index(self._question) + 1}/{len(versions)} » · {time}"

    def _about(self, answer: "Turn", room: int) -> str:
        """Say how an answer came to be; what matters least goes first where room is short."""
        parts = self._facts(answer)
        while len(" · ".join(parts)) > room and len(parts) > 1:
            parts.pop(0)
        return " · ".join(parts)

    def _facts(self, answer: "Turn") -> list[str]:
        parts = []
        if answer.num_tokens:
            parts.append(f"{answer.num_tokens} tok")
        if answer.tokens_per_second is not None:
            parts.append(f"{answer.tokens_per_second:.0f} tok/s")
        if answer.seed is not None:
            parts.append(f"seed {answer.seed}")
        if len(self._question.after) > 1:
            parts.append(f"‹ {self._question.shown + 1}/{len(self._question.after)} ›")
        if answer.ended:
            parts.append(STOP_WORDS.get(answer.ended, answer.ended))
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
        self._follows = True

    async def show(self, conversation: "Conversation") -> None:
        """Show the path of a conversation, from its first message to its end."""
        await self.query(ExchangeView).remove()
        questions = [turn for turn in conversation.path if turn.role == "user"]
        await self.mount_all(ExchangeView(conversation, question) for question in questions)
        self._go_to_end()

    async def add(self, conversation: "Conversation", question: "Turn") -> None:
        """Show one more message at the end."""
        await self.mount(ExchangeView(conversation, question))
        # Whoever asks wants to see the answer, also one who had moved up.
        self._go_to_end()

    def redraw_last(self) -> None:
        """Draw the last exchange as it stands."""
        views = list(self.query(ExchangeView))
        if not views:
            return
        views[-1].draw()
        if self._follows or self.scroll_y >= self.max_scroll_y:
            self._go_to_end()

    @property
    def exchanges(self) -> list[ExchangeView]:
        """The exchanges that are shown."""
        return list(self.query(ExchangeView))

    @property
    def follows(self) -> bool:
        """The view keeps to the end: the reader has not moved away from it."""
        return self._follows

    def move_with(self, other: "Transcript") -> None:
        """Show the lines that another one shows, and follow the end where that one does."""
        if self.scroll_y != other.scroll_y:
            self.scroll_to(y=other.scroll_y, animate=False, immediate=True)
        self._follows = other._follows

    def release_anchor(self) -> None:
        """Cease to follow: the reader moves."""
        super().release_anchor()
        self._follows = False

    def _go_to_end(self) -> None:
        self.scroll_end(animate=False)
        # What was asked for here is no move of the reader's.
        self._follows = True
