"""Two models that are told the same, side by side; which answer is better is noted on disk.

The left side is A and the right one B, also after they were swapped. Invariants: both sides get
the same prompt, settings and seed; a message that neither side answered is back in the field; a
vote is on the answers that are shown.
"""

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Static

from workbench.errors import WorkbenchError
from workbench.tui import keys
from workbench.tui.chat.chosen_settings import ChosenSettings
from workbench.tui.chat.model_server import ModelServer
from workbench.tui.chat.side_pane import LETTERS, SidePane
from workbench.tui.chat.sides import Sides
from workbench.tui.chat.tally import VOTE_ROWS, Tally
from workbench.tui.keys import KeyRow
from workbench.tui.program import Program
from workbench.tui.widgets.model_list import ModelRow
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from workbench.jobs.side_by_side import Heard
    from workbench.jobs.votes import Choice


class Compare(Vertical):
    """Two models and one field.

    Args:
        chosen: how answers are made.
    """

    KEY_SCOPES = ("compare",)
    BINDINGS = keys.bindings("compare")

    class Changed(Message):
        """What can be done has changed."""

    def __init__(self, chosen: ChosenSettings, *, id: str) -> None:
        super().__init__(id=id)
        self._chosen = chosen
        self._sides: Sides | None = None
        self._picked = 0  # the place that keys are meant for
        self._tally = Tally()
        self._replying: asyncio.Task[None] | None = None
        self._drawing: Timer | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_moving = False

    def compose(self) -> ComposeResult:
        """Lay out both sides, the votes, the field."""
        with Horizontal(id="sides"):
            yield SidePane(id="side-0")
            yield SidePane(id="side-1")
        yield Static(id="votes")
        with Vertical(id="message-both", classes="pane"):
            yield Prompt(id="prompt-both")

    def on_mount(self) -> None:
        """Let both sides scroll together."""
        left, right = self._panes
        self.watch(left.transcript, "scroll_y", lambda: self._moved(0), init=False)
        self.watch(right.transcript, "scroll_y", lambda: self._moved(1), init=False)
        self.query_one("#message-both").border_title = "message to both"

    async def on_unmount(self) -> None:
        """Leave no server behind."""
        if self._replying is not None:
            self._replying.cancel()
        if self._ending is not None:
            await self._ending
        if self._sides is not None:
            await self._sides.pair.close()

    # ---- what the screen asks for ------------------------------------------------------

    @property
    def sides(self) -> Sides | None:
        """The two models, and what they do."""
        return self._sides

    @property
    def is_answering(self) -> bool:
        """At least one side is at it."""
        return self._replying is not None

    @property
    def draft(self) -> str:
        """What stands in the field."""
        return self.query_one("#prompt-both", Prompt).text

    async def begin(
        self, model: ModelServer, second: ModelRow, *, system: str, message: str
    ) -> None:
        """Put a second model beside the one that is loaded; a pair that was left is taken up again.

        Args:
            model: the first one; its server is this comparison's from here on.
            second: the other one, which is loaded when it is first asked.
            system: instruction before both conversations.
            message: what the field begins with.
        """
        from workbench.jobs.side_by_side import SideBySide

        assert model.row is not None
        if self._ending is not None:
            await self._ending
        if self._sides is None or not self._sides.is_of(model.row, second):
            if self._sides is not None:
                await self._sides.pair.close()
            surroundings = self._workbench.surroundings
            pair = SideBySide(
                (model.row.path, second.path),
                start=model.start,
                clock=surroundings.clock,
                stopwatch=surroundings.stopwatch,
            )
            self._sides, self._tally = Sides(pair, (model.row, second)), Tally()
        for conversation in self._sides.pair.conversations:
            conversation.system = system
        if (server := model.give()) is not None:
            self._sides.pair.adopt(0, server)
        prompt = self.query_one("#prompt-both", Prompt)
        prompt.text = message
        prompt.move_cursor(prompt.document.end)
        self.show_panes()
        await self._show_conversations()

    async def end(self, model: ModelServer) -> bool:
        """Stop, and give the first model's server back.

        Returns:
            The first model is still loaded.
        """
        if self._replying is not None:
            self._replying.cancel()
            await asyncio.wait([self._replying])
        assert self._sides is not None
        server = self._sides.pair.release(0)
        self._ending = asyncio.create_task(self._sides.pair.close(), name="close the other model")
        if server is None:
            # The first one is about to be loaded, into the memory that the other one has.
            await self._ending
            return False
        model.take(server, self._sides.rows[0])
        return True

    def take_focus(self) -> None:
        """Let the field be written into."""
        self.query_one("#prompt-both").focus()

    @property
    def last_seed(self) -> int | None:
        """The seed of the last answers."""
        return None if self._sides is None else self._sides.last_seed

    def refused(self) -> list[tuple[str, str]]:
        """Say which keys do nothing now, and why."""
        refused = []
        if self._replying is not None:
            refused += [(row, "the models are answering") for row in ("send", "regenerate")]
        elif self._sides is None or not self._sides.are_asked:
            refused.append(("regenerate", "nothing was asked yet"))
        if self._workbench.surroundings.readonly:
            refused += [(row, "started with --readonly") for row in VOTE_ROWS]
        elif self._replying is not None:
            refused += [(row, "the models are answering") for row in VOTE_ROWS]
        elif not self._can_vote:
            refused += [(row, "both have to answer first") for row in VOTE_ROWS]
        return refused

    def label_of(self, row: KeyRow) -> str | None:
        """Give the footer's word for a row where it depends on what is going on."""
        if row.id == "stop_side":
            place = None if self._sides is None else self._sides.busy_place(self._picked)
            if place is not None:
                return f"Stop {LETTERS[place]}"
            return "Leave" if self.query_one("#prompt-both").has_focus else "Back"
        if row.id == "compare":
            return "Back to one"
        if row.id == "other_side":
            return f"Go to {LETTERS[1 - self._picked]}"
        return None

    # ---- form --------------------------------------------------------------------------

    @property
    def _workbench(self) -> Program:
        return cast(Program, self.app)

    @property
    def _panes(self) -> tuple[SidePane, SidePane]:
        return (self.query_one("#side-0", SidePane), self.query_one("#side-1", SidePane))

    @property
    def _is_narrow(self) -> bool:
        return self.app.size.width < 100

    def on_resize(self, event: events.Resize) -> None:
        """Show both sides, or one at a time where there is no room for two."""
        del event
        self.show_panes()

    def show_panes(self) -> None:
        """Show titles, heads and votes as they stand."""
        sides = self._sides
        if sides is None:
            return
        panes = self._panes
        for place, pane in enumerate(panes):
            is_seen = not self._is_narrow or place == self._picked
            if pane.display != is_seen:
                pane.display = is_seen
                self.call_after_refresh(self._align)
            pane.show_state(sides.state_at(place))
        for place, pane in enumerate(panes):
            other = panes[1 - place].state if self._is_narrow else None
            pane.entitle(place, sides.rows[sides.side_at(place)].name, other)
        self.query_one("#votes", Static).update(self._vote_line())
        field = self.query_one("#message-both")
        field.border_subtitle = (
            f"{keys.hint('send')} sends to both · {keys.hint('compare')} back to one"
        )

    @property
    def _can_vote(self) -> bool:
        is_answered = self._sides is not None and self._sides.answers is not None
        return is_answered and self._replying is None

    def _vote_line(self) -> Content:
        assert self._sides is not None
        line = self._tally.line(self._sides.left, can_vote=self._can_vote)
        if self._sides.pair.answers_at_once is False:
            line = line.append_text("  ·  memory holds one: they answer in turn", "$quiet")
        return line.append_text(f"  ·  {self._chosen.brief()}", "$quiet")

    async def _show_conversations(self) -> None:
        assert self._sides is not None
        conversations = self._sides.pair.conversations
        for place, pane in enumerate(self._panes):
            await pane.transcript.show(conversations[self._sides.side_at(place)])
        self.call_after_refresh(self._align)

    def _redraw(self) -> None:
        for pane in self._panes:
            pane.transcript.redraw_last()
        self.show_panes()
        self._align()

    def _align(self) -> None:
        """Give both sides of an exchange the room of the longer one, so that they scroll alike.

        The last exchange has its own length on either side, so that the end of the shorter answer
        stays in view beside the end of the longer one. So has each where one side is shown.
        """
        left, right = (pane.transcript.exchanges for pane in self._panes)
        for number, (ours, theirs) in enumerate(zip(left, right, strict=False), start=1):
            has_own_length = self._is_narrow or number == len(left)
            longer = 0 if has_own_length else max(ours.num_lines, theirs.num_lines)
            ours.be_as_long_as(longer)
            theirs.be_as_long_as(longer)

    def _moved(self, place: int) -> None:
        """Move the other side along with the reader, not with an answer that grows."""
        panes = self._panes
        if self._is_moving or self._is_narrow or panes[place].transcript.follows:
            return
        self._is_moving = True
        try:
            panes[1 - place].transcript.move_with(panes[place].transcript)
        finally:
            self._is_moving = False

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Take the side that has the focus as the one that is meant."""
        for place, pane in enumerate(self._panes):
            if isinstance(event.widget, Transcript) and event.widget is pane.transcript:
                self._picked = place
        self.post_message(self.Changed())

    # ---- asking ------------------------------------------------------------------------

    def do_send(self) -> None:
        """Tell both what is written."""
        prompt = self.query_one("#prompt-both", Prompt)
        text = prompt.text.strip()
        if self._sides is None or self._replying is not None or not text:
            return
        prompt.text = ""
        self._reply(self._sides.pair.say(text, self._chosen.for_an_answer()), text)

    def do_regenerate(self) -> None:
        """Let both answer the last message again."""
        sides = self._sides
        if sides is not None and self._replying is None and sides.are_asked:
            self._reply(sides.pair.say_again(self._chosen.for_an_answer()), "")

    def _reply(self, news: "AsyncGenerator[Heard, None]", message: str) -> None:
        assert self._sides is not None
        self._sides.begin_to_wait()
        self._replying = asyncio.create_task(self._hear(news, message), name="both reply")
        self._replying.add_done_callback(self._reply_ended)
        rate = 10.0 if self._workbench.surroundings.frames_per_second > 1 else 5.0
        self._drawing = self.set_interval(1 / rate, self._redraw)
        self.show_panes()
        self.post_message(self.Changed())

    async def _hear(self, news: "AsyncGenerator[Heard, None]", message: str) -> None:
        assert self._sides is not None
        is_shown = False
        try:
            async with aclosing(news) as heard:
                async for each in heard:
                    self._take(each)
                    if not is_shown:
                        is_shown = True
                        await self._show_conversations()
        except asyncio.CancelledError:
            pass  # what came is in the transcripts
        except (WorkbenchError, OSError) as error:
            self._workbench.say_error("no answer: ", error)
        if message and self._sides.are_unanswered:
            self._sides.forget_unanswered()
            prompt = self.query_one("#prompt-both", Prompt)
            prompt.text = message + (f"\n{prompt.text}" if prompt.text else "")
            prompt.move_cursor(prompt.document.end)
            await self._show_conversations()

    def _take(self, heard: "Heard") -> None:
        assert self._sides is not None
        self._sides.take(heard)
        if heard.failure is not None:
            letter = LETTERS[self._sides.side_at(heard.side)]
            self._workbench.say_error(f"{letter}: no answer: ", heard.failure)
        elif heard.piece is not None and heard.piece.notice is not None:
            self._workbench.say(heard.piece.notice)

    def _reply_ended(self, task: asyncio.Task[None]) -> None:
        self._replying = None
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._workbench.say(f"{type(fault).__name__}: {fault}", "error")
        if self._sides is not None:
            for side in (0, 1):
                self._sides.stop_waiting(side)
        if self.is_mounted and self.is_attached:
            self._redraw()
            self.post_message(self.Changed())

    def do_stop_side(self) -> object:
        """Stop one side, then the other; else leave the field; else leave it to the screen."""
        sides = self._sides
        place = None if sides is None else sides.busy_place(self._picked)
        if sides is not None and place is not None:
            side = sides.side_at(place)
            sides.pair.stop(side)
            sides.stop_waiting(side)
            self.show_panes()
            self.post_message(self.Changed())
        elif self.query_one("#prompt-both").has_focus:
            self._panes[self._picked].transcript.focus()
        else:
            return NotImplemented
        return None

    def do_interrupt(self) -> object:
        """Stop both where one of them answers; else this key is the program's."""
        if self._replying is not None and not self.screen.get_selected_text():
            self._replying.cancel()
            return None
        return NotImplemented

    # ---- sides and votes ---------------------------------------------------------------

    def do_swap_sides(self) -> None:
        """Put the left model to the right and the right one to the left."""
        if self._sides is None:
            return
        self._sides.swap()
        self.show_panes()
        self.run_worker(self._show_conversations(), group="sides", exit_on_error=False)
        self.post_message(self.Changed())

    def do_other_side(self) -> None:
        """Go to the other side, and show it where one is shown at a time."""
        self._picked = 1 - self._picked
        self.show_panes()
        self._panes[self._picked].transcript.focus()
        self.call_after_refresh(self._redraw)

    def do_vote_left(self) -> None:
        """Note that the left answer is better."""
        self._vote("a")

    def do_vote_right(self) -> None:
        """Note that the right answer is better."""
        self._vote("b")

    def do_vote_tie(self) -> None:
        """Note that neither answer is better."""
        self._vote("tie")

    def _vote(self, choice: "Choice") -> None:
        from workbench.jobs.votes import FILE_NAME, save_vote, vote_of

        if self._sides is None or (answers := self._sides.answers) is None:
            return
        left, right = self._sides.side_at(0), self._sides.side_at(1)
        conversations, rows = self._sides.pair.conversations, self._sides.rows
        vote = vote_of(
            choice,
            (conversations[left], conversations[right]),
            (rows[left].path, rows[right].path),
            self._workbench.surroundings.clock(),
        )
        path = self._workbench.surroundings.project / "output" / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_vote(vote, path)
        except (WorkbenchError, OSError) as error:
            self._workbench.say_error("no vote: ", error)
            return
        better = {"a": left, "b": right, "tie": None}[choice]
        self._tally.note(answers, better)
        said = "a tie" if better is None else f"{rows[better].name} is better"
        self._workbench.say(f"{said}, noted in {self._workbench.shown_path(path)}")
        self.show_panes()
