"""Two models that are told the same, side by side; which answer is better is noted on disk.

The left side is A and the right one B, also after they were swapped. Invariants: both sides get
the same prompt, settings and seed; a message that neither side answered is back in the field; a
vote is on the answers that are shown.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
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
from workbench.tui.chosen_settings import ChosenSettings
from workbench.tui.keys import KeyRow
from workbench.tui.model_server import ModelServer, stage_of
from workbench.tui.program import Program
from workbench.tui.widgets.model_list import ModelRow
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.side_pane import LETTERS, SidePane, SideState
from workbench.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from workbench.jobs.conversation import Conversation, Turn
    from workbench.jobs.side_by_side import Heard, SideBySide
    from workbench.jobs.votes import Choice

_VOTES = ("vote_left", "vote_right", "vote_tie")


@dataclass
class _Tally:
    """Votes for either model of the pair, and ties; each answer has one vote at most."""

    votes: dict[object, int | None]

    def count(self, side: int | None) -> int:
        return sum(vote == side for vote in self.votes.values())


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
        self._pair: SideBySide | None = None
        self._rows: tuple[ModelRow, ModelRow] | None = None
        self._left = 0  # which of the pair stands there
        self._picked = 0  # the side, from the left, that keys are meant for
        self._states = [SideState(), SideState()]  # of the pair, not from the left
        self._tally = _Tally({})
        self._replying: asyncio.Task[None] | None = None
        self._drawing: Timer | None = None
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
        for at, pane in enumerate(self._panes):
            self.watch(pane.transcript, "scroll_y", lambda at=at: self._moved(at), init=False)
        self.query_one("#message-both").border_title = "message to both"

    async def on_unmount(self) -> None:
        """Leave no server behind."""
        if self._replying is not None:
            self._replying.cancel()
        if self._pair is not None:
            await self._pair.close()

    # ---- what the screen asks for ------------------------------------------------------

    @property
    def pair(self) -> "SideBySide | None":
        """The two models, and what has been said with each."""
        return self._pair

    @property
    def left(self) -> int:
        """Which of the pair stands at the left."""
        return self._left

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
        rows = (model.row, second)
        known = None if self._rows is None else tuple(row.path for row in self._rows)
        if self._pair is None or known != (rows[0].path, rows[1].path):
            if self._pair is not None:
                await self._pair.close()
            surroundings = self._workbench.surroundings
            self._pair = SideBySide(
                (rows[0].path, rows[1].path),
                system=system,
                start=model.start,
                clock=surroundings.clock,
                stopwatch=surroundings.stopwatch,
            )
            self._rows, self._left, self._tally = rows, 0, _Tally({})
            self._states = [SideState(), SideState()]
        for conversation in self._pair.conversations:
            conversation.system = system
        if (server := model.give()) is not None:
            self._pair.adopt(0, server)
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
        assert self._pair is not None
        assert self._rows is not None
        server = self._pair.release(0)
        await self._pair.close()
        if server is not None:
            model.take(server, self._rows[0])
        return server is not None

    def take_focus(self) -> None:
        """Let the field be written into."""
        self.query_one("#prompt-both").focus()

    @property
    def last_seed(self) -> int | None:
        """The seed of the last answers."""
        answers = [] if self._pair is None else [each.last for each in self._pair.conversations]
        return next((each.seed for each in answers if each is not None and each.seed), None)

    def refused(self) -> list[tuple[str, str]]:
        """Say which keys do nothing now, and why."""
        refused = []
        if self._replying is not None:
            refused += [(row, "the models are answering") for row in ("send", "regenerate")]
        elif not self._are_asked:
            refused.append(("regenerate", "nothing was asked yet"))
        if self._workbench.surroundings.readonly:
            refused += [(row, "started with --readonly") for row in _VOTES]
        elif self._replying is not None:
            refused += [(row, "the models are answering") for row in _VOTES]
        elif self._answers is None:
            refused += [(row, "both have to answer first") for row in _VOTES]
        return refused

    def label_of(self, row: KeyRow) -> str | None:
        """Give the footer's word for a row where it depends on what is going on."""
        if row.id == "stop_side":
            place = self._place_to_stop()
            if place is not None:
                return f"Stop {LETTERS[place]}"
            return "Leave" if self.query_one("#prompt-both").has_focus else "Back to one"
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

    def _side_at(self, place: int) -> int:
        """Give which of the pair stands at a place, 0 being the left."""
        return place ^ self._left

    def on_resize(self, event: events.Resize) -> None:
        """Show both sides, or one at a time where there is no room for two."""
        del event
        self.show_panes()

    def show_panes(self) -> None:
        """Show titles, heads and votes as they stand."""
        if self._rows is None:
            return
        panes = self._panes
        for place, pane in enumerate(panes):
            is_seen = not self._is_narrow or place == self._picked
            if pane.display != is_seen:
                pane.display = is_seen
                self.call_after_refresh(self._align)
            side = self._side_at(place)
            pane.show_state(self._state_of(side))
        for place, pane in enumerate(panes):
            other = panes[1 - place].state if self._is_narrow else None
            pane.entitle(place, self._rows[self._side_at(place)].name, other)
        self.query_one("#votes", Static).update(self._vote_line())
        field = self.query_one("#message-both")
        field.border_subtitle = (
            f"{keys.hint('send')} sends to both · {keys.hint('compare')} back to one"
        )

    def _vote_line(self) -> Content:
        counts = [self._tally.count(self._side_at(place)) for place in (0, 1)]
        can_vote = self._answers is not None and self._replying is None
        style = "bold $primary" if can_vote else "$quiet"
        parts: list[Content | str | tuple[str, str]] = [(" vote ", "$quiet")]
        for row_id, name in zip(_VOTES, ("A", "B", "tie"), strict=True):
            parts += [(f" {keys.hint(row_id)} ", style), (f"{name} ", "" if can_vote else "$quiet")]
        ties = self._tally.count(None)
        if self._tally.votes:
            tied = f", {ties} tied" if ties else ""
            parts.append((f"  A {counts[0]} – {counts[1]} B{tied}", "$secondary"))
        if self._pair is not None and self._pair.answers_at_once is False:
            parts.append(("  ·  memory holds one: they answer in turn", "$quiet"))
        parts.append((f"  ·  {self._chosen.brief()}", "$quiet"))
        return Content.assemble(*parts)

    def _state_of(self, side: int) -> SideState:
        """Give what a side does, with the numbers of its last answer."""
        assert self._pair is not None
        state = self._states[side]
        answer = self._pair.conversations[side].last
        if answer is None or answer.role != "assistant" or state.doing in ("loading", "waiting"):
            return state
        state = replace(state, num_tokens=answer.num_tokens, seconds=answer.seconds)
        if not answer.ended:
            return replace(state, doing="answering")
        if state.doing == "failed":
            return state
        return replace(state, doing="ended", text=answer.ended)

    async def _show_conversations(self) -> None:
        assert self._pair is not None
        for place, pane in enumerate(self._panes):
            await pane.transcript.show(self._pair.conversations[self._side_at(place)])
        self.call_after_refresh(self._align)

    def _redraw(self) -> None:
        for pane in self._panes:
            pane.transcript.redraw_last()
        self.show_panes()
        self._align()

    def _align(self) -> None:
        """Give both sides of an exchange the room of the longer one, so that they scroll alike.

        Where one side is shown at a time, each has its own length.
        """
        left, right = (pane.transcript.exchanges for pane in self._panes)
        for ours, theirs in zip(left, right, strict=False):
            longer = 0 if self._is_narrow else max(ours.num_lines, theirs.num_lines)
            ours.be_as_long_as(longer)
            theirs.be_as_long_as(longer)

    def _moved(self, place: int) -> None:
        """Move the other side along."""
        if self._is_moving or self._is_narrow:
            return
        panes = self._panes
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

    @property
    def _are_asked(self) -> bool:
        if self._pair is None:
            return False
        return all(each.question is not None for each in self._pair.conversations)

    @property
    def _answers(self) -> "tuple[Turn, Turn] | None":
        """The last answers, where both sides have given one."""
        if self._pair is None:
            return None
        first, second = (each.last for each in self._pair.conversations)
        is_said = all(
            each is not None and each.role == "assistant" and each.ended and each.text.strip()
            for each in (first, second)
        )
        return cast("tuple[Turn, Turn]", (first, second)) if is_said else None

    def do_send(self) -> None:
        """Tell both what is written."""
        prompt = self.query_one("#prompt-both", Prompt)
        text = prompt.text.strip()
        if self._pair is None or self._replying is not None or not text:
            return
        prompt.text = ""
        self._reply(self._pair.say(text, self._chosen.for_an_answer()), text)

    def do_regenerate(self) -> None:
        """Let both answer the last message again."""
        if self._pair is not None and self._replying is None and self._are_asked:
            self._reply(self._pair.say_again(self._chosen.for_an_answer()), "")

    def _reply(self, news: "AsyncGenerator[Heard, None]", message: str) -> None:
        self._states = [SideState("waiting", self._waits_for(side)) for side in (0, 1)]
        self._replying = asyncio.create_task(self._hear(news, message), name="both reply")
        self._replying.add_done_callback(self._reply_ended)
        rate = 10.0 if self._workbench.surroundings.frames_per_second > 1 else 5.0
        self._drawing = self.set_interval(1 / rate, self._redraw)
        self.show_panes()
        self.post_message(self.Changed())

    def _waits_for(self, side: int) -> str:
        is_together = self._pair is not None and self._pair.answers_at_once
        place = 1 - self._side_at(side)
        return "waiting" if is_together else f"waiting for {LETTERS[place]}"

    async def _hear(self, news: "AsyncGenerator[Heard, None]", message: str) -> None:
        assert self._pair is not None
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
        if message and all(each.last and each.last.role == "user" for each in self._conversations):
            for conversation in self._conversations:
                if conversation.question is not None:
                    conversation.drop(conversation.question)
            prompt = self.query_one("#prompt-both", Prompt)
            prompt.text = message + (f"\n{prompt.text}" if prompt.text else "")
            prompt.move_cursor(prompt.document.end)
            await self._show_conversations()

    @property
    def _conversations(self) -> "tuple[Conversation, Conversation]":
        assert self._pair is not None
        return self._pair.conversations

    def _take(self, heard: "Heard") -> None:
        if heard.progress is not None:
            self._states[heard.side] = SideState("loading", stage_of(heard.progress))
        elif heard.failure is not None:
            error = heard.failure
            what = error.what if isinstance(error, WorkbenchError) else str(error)
            self._states[heard.side] = SideState("failed", what)
            place = heard.side ^ self._left
            self._workbench.say_error(f"{LETTERS[place]}: no answer: ", error)
        elif heard.piece is not None:
            self._states[heard.side] = SideState("answering")
            if heard.piece.notice is not None:
                self._workbench.say(heard.piece.notice)

    def _reply_ended(self, task: asyncio.Task[None]) -> None:
        self._replying = None
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._workbench.say(f"{type(fault).__name__}: {fault}", "error")
        for side, state in enumerate(self._states):
            if state.doing in ("loading", "waiting"):
                self._states[side] = SideState("ended", "stopped")
        if self.is_mounted and self.is_attached:
            self._redraw()
            self.post_message(self.Changed())

    def _place_to_stop(self) -> int | None:
        """Give the side that esc stops: the picked one, or else the other; None: none is busy."""
        if self._pair is None:
            return None
        for place in (self._picked, 1 - self._picked):
            if self._pair.is_busy(self._side_at(place)):
                return place
        return None

    def do_stop_side(self) -> object:
        """Stop one side, then the other; else leave the field; else leave it to the screen."""
        place = self._place_to_stop()
        if place is not None:
            assert self._pair is not None
            side = self._side_at(place)
            self._pair.stop(side)
            if self._states[side].doing in ("loading", "waiting"):
                self._states[side] = SideState("ended", "stopped")
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
        if self._pair is None:
            return
        self._left = 1 - self._left
        for side in (0, 1):
            if self._states[side].doing == "waiting":
                self._states[side] = SideState("waiting", self._waits_for(side))
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

        answers = self._answers
        if answers is None or self._pair is None or self._rows is None:
            return
        sides = (self._side_at(0), self._side_at(1))
        conversations = self._pair.conversations
        now = self._workbench.surroundings.clock()
        vote = vote_of(
            choice,
            (conversations[sides[0]], conversations[sides[1]]),
            (self._rows[sides[0]].path, self._rows[sides[1]].path),
            now,
        )
        path = self._workbench.surroundings.project / "output" / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_vote(vote, path)
        except (WorkbenchError, OSError) as error:
            self._workbench.say_error("no vote: ", error)
            return
        better = None if choice == "tie" else sides["ab".index(choice)]
        self._tally.votes[answers] = better
        said = "a tie" if better is None else f"{self._rows[better].name} is better"
        self._workbench.say(f"{said}, noted in {self._workbench.shown_path(path)}")
        self.show_panes()
