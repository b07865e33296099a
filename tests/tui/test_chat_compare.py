"""Two models side by side in the chat screen, each played by a scripted server."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import screen_text, type_into, wait_until
from tests.tui.scripted_server import ScriptedServer, ScriptedServers
from tests.tui.test_chat_screen import app_with, finished_run
from workbench.tui.screens.chat import ChatScreen
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.transcript import Transcript


@dataclass
class Comparing:
    """A program in which checkpoint-20 stands left and checkpoint-10 right."""

    pilot: Pilot[None]
    screen: ChatScreen
    a: ScriptedServer
    b: ScriptedServer
    surroundings: Surroundings

    @property
    def text(self) -> str:
        return screen_text(self.pilot)

    async def until(self, *texts: str) -> None:
        await wait_until(self.pilot, lambda: all(text in self.text for text in texts))

    async def ask(self, message: str = "Who?") -> None:
        await type_into(self.pilot, "#prompt-both", message)
        await self.pilot.press("enter")

    async def both_answer(self, message: str = "Who?") -> None:
        for server in (self.a, self.b):
            for _ in server.pieces:
                server.go_on.release()
        await self.ask(message)
        await wait_until(self.pilot, lambda: self.heads().count("✓ ended by itself") == 2)
        await wait_until(self.pilot, lambda: "Stop" not in self.text.splitlines()[-1])

    def heads(self) -> str:
        return self.text.splitlines()[2]

    def votes(self) -> list[dict[str, Any]]:
        path = self.surroundings.project / "output" / "votes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@asynccontextmanager
async def comparing(
    surroundings: Surroundings,
    a: ScriptedServer,
    b: ScriptedServer,
    size: tuple[int, int] = (120, 36),
) -> AsyncIterator[Comparing]:
    await finished_run(surroundings, steps=(10, 20), with_weights=True)
    app = app_with(ScriptedServers(checkpoint_20=a, checkpoint_10=b), surroundings)
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: "+1 older" in screen_text(pilot))
        await pilot.press("enter")
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        await pilot.press("f6")
        await wait_until(pilot, lambda: "Compare quick-1/checkpoint-20 with" in screen_text(pilot))
        # The cursor is beside the model that is there already.
        await wait_until(pilot, lambda: "▌           checkpoint-10" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt-both").has_focus)
        yield Comparing(pilot, screen, a, b, surroundings)
    # The program leaves no server behind, however it was left.
    assert a.num_stopped == a.num_started
    assert b.num_stopped == b.num_started


async def test_both_are_told_the_same_with_the_same_seed(surroundings: Surroundings) -> None:
    a, b = ScriptedServer("I am", " Ann."), ScriptedServer("I am", " Bob", ".")
    async with comparing(surroundings, a, b) as at:
        await at.until("A · quick-1/checkpoint-20", "B · quick-1/checkpoint-10", "not asked yet")
        await at.ask()
        a.go_on.release()
        await at.until("I am▌", "generating · 1 tok")
        for server in (a, b):
            for _ in range(3):
                server.go_on.release()
        await at.until("I am Ann.", "I am Bob.")
        await wait_until(at.pilot, lambda: at.heads().count("✓ ended by itself") == 2)
        assert "2 tok" in at.heads()
        assert "3 tok" in at.heads()
        assert "tok/s" in at.heads()
        assert a.num_started == b.num_started == 1
        assert b.path.name == "checkpoint-10"
        assert a.requests == b.requests
        assert a.requests[0]["messages"] == [{"role": "user", "content": "Who?"}]
        assert isinstance(a.requests[0]["seed"], int)
        await at.both_answer("And?")
        assert a.requests[1]["messages"] != b.requests[1]["messages"]
        assert a.requests[1]["seed"] == b.requests[1]["seed"] != a.requests[0]["seed"]


async def test_esc_stops_the_picked_side_and_then_the_other(surroundings: Surroundings) -> None:
    a, b = ScriptedServer("One ", "two"), ScriptedServer("Eins ", "zwei")
    async with comparing(surroundings, a, b) as at:
        await at.ask()
        for server in (a, b):
            server.go_on.release()
        await at.until("One ▌", "Eins ▌", "Stop A")
        await at.pilot.press("escape")
        await at.until("■ stopped by you", "generating", "Stop B")
        await wait_until(at.pilot, lambda: a.num_closed == 1)
        assert b.num_closed == 0
        await at.pilot.press("escape")
        await wait_until(at.pilot, lambda: at.heads().count("■ stopped by you") == 2)
        await wait_until(at.pilot, lambda: b.num_closed == 1)
        assert "One" in at.text
        assert "Eins" in at.text


async def test_the_side_that_has_the_focus_is_the_one_that_is_stopped(
    surroundings: Surroundings,
) -> None:
    a, b = ScriptedServer("One ", "two"), ScriptedServer("Eins ", "zwei")
    async with comparing(surroundings, a, b) as at:
        await at.ask()
        for server in (a, b):
            server.go_on.release()
        await at.until("One ▌", "Eins ▌")
        await at.pilot.press("shift+tab")
        await at.until("Stop B")
        await at.pilot.press("escape")
        await wait_until(at.pilot, lambda: b.num_closed == 1)
        assert a.num_closed == 0
        a.go_on.release()
        await at.until("✓ ended by itself", "■ stopped by you")


async def test_votes_are_written_and_follow_the_models_when_they_are_swapped(
    surroundings: Surroundings,
) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(surroundings, a, b) as at:
        await at.pilot.press("escape", "less_than_sign")
        await at.until("both have to answer first")
        at.screen.query_one("#prompt-both").focus()
        await at.both_answer()
        await at.pilot.press("escape", "less_than_sign")
        await at.until("quick-1/checkpoint-20 is better, noted in output/votes.jsonl", "A 1 – 0 B")
        (vote,) = at.votes()
        assert vote["vote"] == "a"
        assert vote["a"]["model"].endswith("checkpoint-20")
        assert (vote["a"]["answer"], vote["b"]["answer"]) == ("Ann.", "Bob.")
        assert vote["settings"]["seed"] == a.requests[0]["seed"]
        await at.pilot.press("f9")
        await at.until("A · quick-1/checkpoint-10", "B · quick-1/checkpoint-20", "A 0 – 1 B")
        await wait_until(at.pilot, lambda: "Bob.  " in at.text.splitlines()[7][:60])
        await at.pilot.press("less_than_sign")  # on the same answers: in the place of the vote
        await at.until("quick-1/checkpoint-10 is better", "A 1 – 0 B")
        (vote,) = at.votes()
        assert (vote["vote"], vote["a"]["answer"]) == ("a", "Bob.")
        for server in (a, b):
            server.go_on.release()
        await at.pilot.press("f5")
        await wait_until(at.pilot, lambda: at.text.count("‹ 2/2 ›") == 2)
        await wait_until(at.pilot, lambda: at.heads().count("✓ ended by itself") == 2)
        await wait_until(at.pilot, lambda: "esc Back" in at.text)
        await at.pilot.press("equals_sign")
        await at.until("a tie, noted", "A 1 – 0 B, 1 tied")
        assert [vote["vote"] for vote in at.votes()] == ["a", "tie"]


async def test_back_to_one_finds_the_conversation_and_the_server_as_they_were(
    surroundings: Surroundings,
) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(surroundings, a, b) as at:
        await at.both_answer()
        await type_into(at.pilot, "#prompt-both", "draft")
        await at.pilot.press("f6")
        await wait_until(at.pilot, lambda: at.screen.query_one("#prompt").has_focus)
        await wait_until(at.pilot, lambda: b.num_stopped == 1)
        assert a.num_stopped == 0
        assert at.screen.query_one("#prompt", Prompt).text == "draft"
        assert at.screen.conversation is not None
        assert at.screen.conversation.path == []
        a.go_on.release()
        await at.pilot.press("enter")
        await at.until("ended by itself", "Ann.")
        assert a.requests[-1]["messages"] == [{"role": "user", "content": "draft"}]
        # The same pair again: what was said is there, and the first one is not loaded anew.
        await at.pilot.press("f6")
        await at.until("Compare quick-1/checkpoint-20 with")
        await at.pilot.press("enter")
        await wait_until(at.pilot, lambda: at.screen.query_one("#prompt-both").has_focus)
        await at.until("Who?", "Bob.")
        assert a.num_started == 1


async def test_where_memory_is_short_they_answer_in_turn_and_the_first_is_loaded_again(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.jobs.side_by_side.fit_together", lambda _: False)
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(surroundings, a, b) as at:
        await at.ask()
        await at.until("‖ waiting for A")
        assert b.num_started == 0
        a.go_on.release()
        await wait_until(at.pilot, lambda: b.num_started == 1)
        assert a.num_stopped == 1
        b.go_on.release()
        await wait_until(at.pilot, lambda: at.heads().count("✓ ended by itself") == 2)
        await at.until("memory holds one: they answer in turn")
        await at.pilot.press("f6")
        await wait_until(at.pilot, lambda: at.screen.query_one("#prompt").has_focus)
        assert (a.num_started, a.num_stopped) == (2, 1)
        assert (b.num_started, b.num_stopped) == (1, 1)


async def test_a_side_that_fails_says_so_at_its_head_and_the_other_goes_on(
    surroundings: Surroundings,
) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    b.fails = True
    async with comparing(surroundings, a, b) as at:
        a.go_on.release()
        await at.ask()
        await at.until("✗ 500, the model fell over", "✓ ended by itself")
        b.fails = False
        await at.both_answer("Again?")
        assert b.requests[-1]["messages"] == [{"role": "user", "content": "Again?"}]
        b.fails = a.fails = True
        await at.ask("Both?")
        await wait_until(at.pilot, lambda: at.heads().count("✗ 500") == 2)
        field = at.screen.query_one("#prompt-both", Prompt)
        await wait_until(at.pilot, lambda: field.text == "Both?")


async def test_both_sides_scroll_together(surroundings: Surroundings) -> None:
    a = ScriptedServer(*(f"line {number}\n" for number in range(60)))
    b = ScriptedServer("short")
    async with comparing(surroundings, a, b) as at:
        await at.both_answer()
        left, right = at.screen.query_one("#compare").query(Transcript)
        # Each keeps to its own end: the short answer is not scrolled away by the long one.
        await wait_until(at.pilot, lambda: left.scroll_y == left.max_scroll_y > 20)
        await at.until("line 59", "short")
        await at.both_answer("And?")
        await wait_until(at.pilot, lambda: left.scroll_y == left.max_scroll_y > 80)
        await at.until("line 59", "short")
        # The second exchange begins at the same line on both sides.
        tops = [side.exchanges[1].virtual_region.y for side in (left, right)]
        assert tops[0] == tops[1] > 60
        await at.pilot.press("escape", "home")
        await wait_until(at.pilot, lambda: left.scroll_y == right.scroll_y == 0)
        await at.pilot.press("tab", "pagedown")
        await wait_until(at.pilot, lambda: left.scroll_y == right.scroll_y > 0)
        await at.pilot.press("end")
        await wait_until(at.pilot, lambda: left.scroll_y == right.scroll_y == right.max_scroll_y)


async def test_the_narrow_form_shows_one_side_at_a_time(surroundings: Surroundings) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(surroundings, a, b, (80, 24)) as at:
        for server in (a, b):
            server.go_on.release()
        await at.ask()
        await at.until("[A ✓]  B ✓ · quick-1/checkpoint-20", "Ann.")
        assert "Bob." not in at.text
        await at.pilot.press("escape", "right_square_bracket")
        await at.until("A ✓  [B ✓] · quick-1/checkpoint-10", "Bob.")
        assert "Ann." not in at.text
        await at.pilot.resize_terminal(120, 36)
        await at.until("Ann.", "Bob.", "A · quick-1/checkpoint-20")


async def test_an_older_checkpoint_is_loaded_from_elsewhere_while_two_are_compared(
    surroundings: Surroundings,
) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(surroundings, a, b) as at:
        await at.ask()
        a.go_on.release()
        await at.until("Ann.")
        at.screen.load(b.path, "quick-1")
        await at.until("quick-1/checkpoint-10 is loaded")
        await wait_until(at.pilot, lambda: at.screen.query_one("#prompt").has_focus)
        assert a.num_stopped == 1


async def test_without_leave_to_write_there_is_no_vote(surroundings: Surroundings) -> None:
    a, b = ScriptedServer("Ann."), ScriptedServer("Bob.")
    async with comparing(replace(surroundings, readonly=True), a, b) as at:
        await at.both_answer()
        await at.pilot.press("escape", "equals_sign")
        await at.until("started with --readonly")
        assert not (surroundings.project / "output" / "votes.jsonl").exists()
