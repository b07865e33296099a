"""The chat screen against a scripted server: streaming, stopping, answering again, failing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.screen import Screen

from tests.tui.conftest import screen_text, wait_until
from tests.tui.scripted_server import ScriptedServer, ScriptedServers
from tests.tui.scripted_supervisor import NOW, ScriptedSupervisor, write_checkpoint
from workbench.jobs.chat_settings import SUGGESTED_TEMPERATURE
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome
from workbench.tui.app import WorkbenchApp
from workbench.tui.screens.chat import ChatScreen
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.transcript import Transcript


async def finished_run(
    surroundings: Surroundings,
    name: str = "quick-1",
    steps: tuple[int, ...] = (10,),
    *,
    with_weights: bool = False,
) -> None:
    """Leave a run with complete checkpoints behind."""
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / name))
    last = steps[-1]
    job.log_metrics(last, 2.0)
    for step in steps:
        write_checkpoint(job.run, step, with_weights=with_weights)
    checkpoint = f"checkpoints/checkpoint-{last}"
    job.end(Outcome(attempt=1, state="finished", step=last, time=NOW, checkpoint=checkpoint))
    await job.close_files()


def app_with(
    server: ScriptedServer | ScriptedServers,
    surroundings: Surroundings,
    *,
    wanted: Path | None = None,
) -> WorkbenchApp:
    """Make a program whose chat talks to scripted servers; ``wanted`` is loaded at once."""

    def chat() -> Screen[Any]:
        screen = ChatScreen(server.start)
        if wanted is not None:
            screen.load(wanted, "quick-1")
        return screen

    class AppWithServer(WorkbenchApp):
        MODES = {**WorkbenchApp.MODES, "chat": chat}  # noqa: RUF012

    return AppWithServer(surroundings, screen="chat")


@asynccontextmanager
async def talking(
    surroundings: Surroundings, server: ScriptedServer, size: tuple[int, int] = (120, 36)
) -> AsyncIterator[tuple[Pilot[None], ChatScreen]]:
    await finished_run(surroundings)
    app = app_with(server, surroundings)
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: "checkpoint-10" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "quick-1/checkpoint-10 is loaded" in screen_text(pilot))
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        yield pilot, screen
    assert server.num_stopped == 1


async def test_a_reply_streams_and_says_how_it_ended(surroundings: Surroundings) -> None:
    server = ScriptedServer("My name ", "is Samantha", ".")
    async with talking(surroundings, server) as (pilot, screen):
        assert server.path.name == "checkpoint-10"
        await pilot.press(*"Who?", "enter")
        server.go_on.release()
        await wait_until(pilot, lambda: "My name ▌" in screen_text(pilot))
        assert "generating" in screen_text(pilot)
        server.go_on.release()
        server.go_on.release()
        await wait_until(pilot, lambda: "My name is Samantha." in screen_text(pilot))
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        text = screen_text(pilot)
        assert "3 tok" in text
        assert "tok/s" in text
        assert "context 23 / 512" in text
        sent = server.requests[0]
        assert sent["messages"] == [{"role": "user", "content": "Who?"}]
        assert sent["stream"] is True
        assert screen.query_one("#prompt", Prompt).text == ""


async def test_esc_stops_the_reply_and_keeps_what_came(surroundings: Surroundings) -> None:
    server = ScriptedServer("One ", "two ", "three")
    async with talking(surroundings, server) as (pilot, _):
        await pilot.press("a", "enter")
        server.go_on.release()
        await wait_until(pilot, lambda: "One ▌" in screen_text(pilot))
        await pilot.press("escape")
        await wait_until(pilot, lambda: "stopped by you" in screen_text(pilot))
        await wait_until(pilot, lambda: server.num_closed == 1)
        assert "One" in screen_text(pilot)
        assert "▌" not in screen_text(pilot).replace("│▌", "")


async def test_regenerate_keeps_the_answer_before_beside_the_new_one(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        server.pieces = ("no",)
        server.go_on.release()
        await pilot.press("f5")
        await wait_until(pilot, lambda: "‹ 2/2 ›" in screen_text(pilot))
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        first, second = (request["seed"] for request in server.requests)
        assert first != second
        assert server.requests[1]["messages"] == [{"role": "user", "content": "a"}]
        assert screen.conversation is not None
        question = screen.conversation.path[0]
        assert [answer.text for answer in question.after] == ["yes", "no"]
        await pilot.press("escape", "left_square_bracket")
        await wait_until(pilot, lambda: "‹ 1/2 ›" in screen_text(pilot))


async def test_the_next_message_carries_the_conversation(surroundings: Surroundings) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, _):
        for _ in range(2):
            server.go_on.release()
            await pilot.press("a", "enter")
            await wait_until(pilot, lambda: "the model is answering" not in screen_text(pilot))
            await wait_until(pilot, lambda: screen_text(pilot).count("ended by itself") >= 1)
        await wait_until(pilot, lambda: screen_text(pilot).count("ended by itself") == 2)
        assert server.requests[1]["messages"] == [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "a"},
        ]


async def test_a_failed_send_puts_the_text_back(surroundings: Surroundings) -> None:
    server = ScriptedServer()
    server.fails = True
    async with talking(surroundings, server) as (pilot, screen):
        await pilot.press(*"Hello", "enter")
        await wait_until(pilot, lambda: "the model fell over" in screen_text(pilot))
        assert screen.query_one("#prompt", Prompt).text == "Hello"
        assert screen.conversation is not None
        assert screen.conversation.path == []
        await wait_until(pilot, lambda: "you ─" not in screen_text(pilot))


async def test_a_new_line_is_not_a_send(surroundings: Surroundings) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        await pilot.press("a", "ctrl+j", "b")
        assert screen.query_one("#prompt", Prompt).text == "a\nb"
        assert server.requests == []


async def test_keys_that_write_text_do_not_act(surroundings: Surroundings) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        await pilot.press("q", "1", "S", "question_mark")
        assert screen.query_one("#prompt", Prompt).text == "q1S?"
        assert pilot.app.screen is screen
        text = screen_text(pilot)
        assert "F1 Help" in text
        assert "q Detach" not in text


async def test_esc_leads_back_to_the_checkpoints_and_the_server_stays(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        await pilot.press("escape", "escape")
        await wait_until(pilot, lambda: "Talk to" in screen_text(pilot))
        assert server.num_stopped == 0
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)


async def test_a_checkpoint_that_is_served_already_is_not_loaded_again(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    clock = [NOW]
    later = replace(surroundings, clock=lambda: clock[0])
    async with talking(later, server) as (pilot, screen):
        await pilot.press("escape", "escape")
        clock[0] += 3600  # the list says another age by now
        await wait_until(pilot, lambda: "1h ago" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        assert server.num_stopped == 0


async def test_the_newest_answer_stays_in_view_however_long_the_conversation(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer(*(f"line {number}\n" for number in range(30)), "last line")
    async with talking(surroundings, server, (80, 24)) as (pilot, screen):
        transcript = screen.query_one("#transcript", Transcript)
        for _ in range(2):
            await pilot.press("a", "enter")
            for _ in server.pieces:
                server.go_on.release()
            await wait_until(pilot, lambda: "last line" in screen_text(pilot))
            await wait_until(pilot, lambda: transcript.scroll_y == transcript.max_scroll_y)


async def test_a_reply_is_asked_for_at_the_suggested_temperature(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, _):
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        assert server.requests[0]["temperature"] == SUGGESTED_TEMPERATURE


async def test_the_system_prompt_is_written_in_the_field_and_the_draft_comes_back(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        prompt = screen.query_one("#prompt", Prompt)
        await pilot.press(*"draft", "f3")
        await wait_until(pilot, lambda: "system prompt" in screen_text(pilot))
        assert prompt.text == ""
        await pilot.press(*"Rhyme", "escape")
        assert prompt.text == "draft"
        await pilot.press("f3", *"Be kind", "enter")
        assert prompt.text == "draft"
        assert server.requests == []
        await wait_until(pilot, lambda: "system       Be kind" in screen_text(pilot))
        server.go_on.release()
        await pilot.press("enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        assert server.requests[0]["messages"] == [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "draft"},
        ]
        await pilot.press("f3")
        assert prompt.text == "Be kind"


async def test_an_edited_message_is_a_branch_and_both_can_be_shown(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        prompt = screen.query_one("#prompt", Prompt)
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        server.pieces = ("no",)
        server.go_on.release()
        await pilot.press(*"draft", "escape", "e")
        await wait_until(pilot, lambda: "edit message" in screen_text(pilot))
        assert prompt.text == "a"
        await pilot.press("b", "enter")
        await wait_until(pilot, lambda: "« 2/2 »" in screen_text(pilot))
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        assert prompt.text == "draft"
        assert server.requests[1]["messages"] == [{"role": "user", "content": "ab"}]
        assert "yes" not in screen_text(pilot)
        await pilot.press("escape", "left_curly_bracket")
        await wait_until(pilot, lambda: "« 1/2 »" in screen_text(pilot))
        await wait_until(pilot, lambda: "yes" in screen_text(pilot))
        assert screen.conversation is not None
        assert [turn.text for turn in screen.conversation.path] == ["a", "yes"]


async def test_a_dropped_exchange_is_neither_shown_nor_told(surroundings: Surroundings) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: screen_text(pilot).count("ended by itself") == 1)
        server.go_on.release()
        await pilot.press("b", "enter")
        await wait_until(pilot, lambda: screen_text(pilot).count("ended by itself") == 2)
        await pilot.press("escape", "delete")
        await wait_until(pilot, lambda: screen_text(pilot).count("ended by itself") == 1)
        assert screen.conversation is not None
        assert [turn.text for turn in screen.conversation.path] == ["a", "yes"]


async def test_a_chat_is_saved_with_its_branches(surroundings: Surroundings) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, _):
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        server.pieces = ("no",)
        server.go_on.release()
        await pilot.press("f5")
        await wait_until(pilot, lambda: "‹ 2/2 ›" in screen_text(pilot))
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        pilot.app.action_press("save_chat")  # type: ignore[attr-defined]
        await wait_until(pilot, lambda: "2 conversations saved" in screen_text(pilot))
        lines = (surroundings.project / "output" / "chat.jsonl").read_text().splitlines()
        for line, answer in zip(lines, ("yes", "no"), strict=True):
            assert json.loads(line)["messages"] == [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": answer},
            ]


async def test_the_narrow_form_streams_too(surroundings: Surroundings) -> None:
    server = ScriptedServer("My name is Samantha.")
    async with talking(surroundings, server, (80, 24)) as (pilot, _):
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "My name is Samantha." in screen_text(pilot))


async def test_without_a_checkpoint_the_screen_says_where_they_come_from(
    surroundings: Surroundings,
) -> None:
    app = app_with(ScriptedServer(), surroundings)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "No checkpoint yet" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "there is no checkpoint" in screen_text(pilot))


async def test_a_checkpoint_that_cannot_be_served_says_why(surroundings: Surroundings) -> None:
    """The real server is started: this folder has a config.json without weights."""
    await finished_run(surroundings)
    app = WorkbenchApp(surroundings, screen="chat")
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "checkpoint-10" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "✗ not loaded: " in screen_text(pilot))
