"""A connection gives every record of the files once, whatever happens to the supervisor."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.conftest import Supervised
from workbench.control.messages import Done, Ended, Failed, Saved
from workbench.errors import ControlError, RefusedError, RunError
from workbench.jobs.connection import JobConnection
from workbench.jobs.follow import (
    EndedUpdate,
    EventUpdate,
    LinkUpdate,
    LogUpdate,
    StatusUpdate,
    Update,
)
from workbench.jobs.link import Link, link_to, request_status
from workbench.runs.events import CommandEvent, ExitEvent, StateEvent
from workbench.runs.layout import RunFolder

LIMIT_SECONDS = 30.0


async def collect(connection: JobConnection, until: type | None = None) -> list[Update]:
    """Collect updates to the end, or to the first of a kind."""
    found: list[Update] = []
    async with asyncio.timeout(LIMIT_SECONDS), aclosing(connection.updates()) as updates:
        async for update in updates:
            found.append(update)
            if until is not None and isinstance(update, until):
                return found
    return found


class Following:
    """Updates collected in the background, as a screen does."""

    def __init__(self, run: RunFolder) -> None:
        self.connection = JobConnection(run)
        self.found: list[Update] = []
        self.task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async with aclosing(self.connection.updates()) as updates:
            async for update in updates:
                self.found.append(update)

    async def wait_for(self, kind: type, **fields: object) -> Any:  # noqa: ANN401
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                for update in self.found:
                    if isinstance(update, kind) and all(
                        getattr(update, name) == value for name, value in fields.items()
                    ):
                        return update
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def following(supervised: Supervised) -> AsyncIterator[Following]:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    made = Following(supervised.run)
    yield made
    if not made.task.done():
        await made.close()


def events_of(updates: list[Update]) -> list[int]:
    return [update.offset for update in updates if isinstance(update, EventUpdate)]


def offsets_in(supervised: Supervised) -> list[int]:
    offsets, position = [], 0
    for line in supervised.run.events.read_bytes().splitlines(keepends=True):
        offsets.append(position)
        position += len(line)
    return offsets


async def test_every_event_is_given_once_from_the_first_to_the_end(
    supervised: Supervised, following: Following
) -> None:
    await following.wait_for(LinkUpdate, connected=True)
    for _ in range(3):
        handle = await following.connection.command("save")
        assert isinstance(await handle.result(), Done)
    handle = await following.connection.command("stop", save=False)
    result = await handle.result()
    assert isinstance(result, Done)
    assert isinstance(result.result, Ended)
    await following.task
    assert events_of(following.found) == offsets_in(supervised)
    last_event = [each for each in following.found if isinstance(each, EventUpdate)][-1]
    assert isinstance(last_event.event, ExitEvent)
    ended = following.found[-1]
    assert isinstance(ended, EndedUpdate)
    assert ended.outcome.state == "stopped"


async def test_a_late_viewer_gets_the_whole_history(
    supervised: Supervised, following: Following
) -> None:
    await following.wait_for(LinkUpdate, connected=True)
    for _ in range(5):
        await (await following.connection.command("save")).result()
    late = Following(supervised.run)
    await late.wait_for(StatusUpdate)
    assert events_of(late.found) == events_of(following.found) == offsets_in(supervised)
    await late.close()


async def test_commands_are_accepted_then_answered(following: Following) -> None:
    await following.wait_for(LinkUpdate, connected=True)
    handle = await following.connection.command("save")
    accepted = await handle.accepted()
    assert not isinstance(accepted, Failed)
    done = await handle.result()
    assert isinstance(done, Done)
    assert isinstance(done.result, Saved)
    refused = await (await following.connection.command("resume")).result()
    assert isinstance(refused, Failed)
    assert refused.reason == "not_paused"


async def test_a_command_without_a_supervisor_says_so(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    connection = JobConnection(supervised.run)
    with pytest.raises(ControlError, match="does not answer"):
        await connection.command("save")


async def test_a_supervisor_that_dies_is_concluded_to_be_lost(
    supervised: Supervised, following: Following
) -> None:
    await following.wait_for(LinkUpdate, connected=True)
    assert supervised.process is not None
    supervised.process.kill()
    # Reaped, as init does it for a detached one: a zombie's pid would still be its own.
    supervised.process.wait()
    async with asyncio.timeout(LIMIT_SECONDS):
        await following.task
    ended = following.found[-1]
    assert isinstance(ended, EndedUpdate)
    assert ended.outcome.state == "lost"
    assert not supervised.run.outcome.exists(), "a reader writes no outcome"
    with pytest.raises(ControlError):
        link_to(supervised.run, supervised.job_file)


async def test_a_stopped_supervisor_is_waited_for_and_files_are_read_meanwhile(
    supervised: Supervised,
) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    assert supervised.process is not None
    address = Path(supervised.job_file.socket)
    moved = address.rename(address.with_suffix(".away"))
    following = Following(supervised.run)
    down = await following.wait_for(LinkUpdate, connected=False)
    assert "no socket" in down.reason
    with supervised.run.log.open("ab") as log:
        log.write(b"written while nobody answered\n")
    await following.wait_for(LogUpdate, text="written while nobody answered\n")
    moved.rename(address)
    await following.wait_for(LinkUpdate, connected=True)
    await following.wait_for(StatusUpdate)
    await following.close()


async def test_leaving_and_coming_back_changes_nothing_in_the_run(
    supervised: Supervised, following: Following
) -> None:
    await following.wait_for(StatusUpdate)
    before = supervised.run.events.read_bytes()
    for _ in range(20):
        found = await collect(JobConnection(supervised.run), until=LinkUpdate)
        assert events_of(found) == offsets_in(supervised)
    assert supervised.run.events.read_bytes() == before


async def test_an_ended_run_is_given_from_its_files(supervised: Supervised) -> None:
    supervised.start("connect", "step=3", "finish")
    supervised.ended()
    found = await collect(JobConnection(supervised.run))
    assert events_of(found) == offsets_in(supervised)
    assert isinstance(found[-1], EndedUpdate)
    assert not any(isinstance(update, (LinkUpdate, StatusUpdate)) for update in found)


async def test_a_folder_that_was_never_started_is_no_run_to_follow(supervised: Supervised) -> None:
    supervised.run.path.mkdir()
    with pytest.raises(RunError, match="never started"):
        await collect(JobConnection(supervised.run))


async def test_half_lines_and_garbage_in_the_files_are_passed_over(supervised: Supervised) -> None:
    supervised.start("connect", "step=3", "finish")
    supervised.ended()
    with supervised.run.events.open("ab") as file:
        file.write(b'garbage\n\xff\n{"event":"dance"}\n{"event":"st')
    supervised.run.metrics.write_bytes(b"null\n[]\n")
    supervised.run.log.write_bytes(b"\xff\xfe broken\n" * 3 + b"half")
    found = await collect(JobConnection(supervised.run))
    kinds = [type(u.event) for u in found if isinstance(u, EventUpdate)]
    assert kinds == [StateEvent, StateEvent, ExitEvent]
    text = "".join(update.text for update in found if isinstance(update, LogUpdate))
    assert text.count("broken\n") == 3
    assert "half" not in text


async def test_of_a_long_log_only_the_end_is_history(supervised: Supervised) -> None:
    supervised.start("connect", "step=3", "finish")
    supervised.ended()
    lines = "".join(f"line {number}\n" for number in range(10_000))
    supervised.run.log.write_text(lines)
    found = await collect(JobConnection(supervised.run, log_history_bytes=1000))
    text = "".join(update.text for update in found if isinstance(update, LogUpdate))
    assert len(text) <= 1000
    assert lines.endswith(text)
    assert text.startswith("line ")


def test_one_question_gets_one_answer(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    assert request_status(supervised.job_file).state == "training"
    assert supervised.process is not None
    supervised.process.send_signal(signal.SIGTERM)
    supervised.ended()
    with pytest.raises(RefusedError, match="stopped"):
        link_to(supervised.run, supervised.job_file)


def test_a_frozen_supervisor_is_not_waited_for_long(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    assert supervised.process is not None
    supervised.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ControlError, match="does not answer"):
            Link(supervised.job_file, seconds=0.2)
    finally:
        supervised.process.send_signal(signal.SIGCONT)


def test_commands_in_their_events_are_typed(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        viewer.ask(type="save", id=1)
        viewer.receive_until(type="done", id=1)
    found = asyncio.run(collect(JobConnection(supervised.run), until=StatusUpdate))
    phases = [
        update.event.phase
        for update in found
        if isinstance(update, EventUpdate) and isinstance(update.event, CommandEvent)
    ]
    assert phases == ["accepted", "done"]
