"""Two models side by side: both at once, or one after the other where memory is short."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.inference.tiny_model import write_tiny_model
from workbench.errors import ControlError, RunError
from workbench.jobs.chat_settings import ChatSettings
from workbench.jobs.inference_process import InferenceProcess, ServerOptions, start_server
from workbench.jobs.side_by_side import SideBySide, fit_together

GREEDY = ChatSettings(max_tokens=8, temperature=0)
LONG = ChatSettings(max_tokens=900, temperature=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return write_tiny_model(folder / "a", seed=1), write_tiny_model(folder / "b", seed=2)


class Starter:
    """Starts real servers, and counts those that run at a time."""

    def __init__(self) -> None:
        self.started: list[Path] = []
        self.running: list[InferenceProcess] = []
        self.most = 0
        self.refuses: Path | None = None

    async def __call__(self, model: Path) -> InferenceProcess:
        if model == self.refuses:
            raise ControlError("out of memory", where=str(model), remedy="free some")
        self.started.append(model)
        server = await InferenceProcess.spawn(ServerOptions(model, device="cpu"))
        self.running = [each for each in self.running if not each.has_ended] + [server]
        self.most = max(self.most, len(self.running))
        return server


@pytest.fixture
async def starter(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Starter]:
    runtime = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    starter = Starter()
    yield starter
    assert all(server.has_ended for server in starter.running)


async def said(pair: SideBySide, message: str) -> list[int]:
    """Say something to both; give which side was heard, answer by answer."""
    heard = []
    async with aclosing(pair.say(message, GREEDY)) as news:
        async for each in news:
            assert each.failure is None
            if each.piece is not None:
                heard.append(each.side)
    return heard


def texts(pair: SideBySide) -> list[list[str]]:
    return [[turn.text for turn in conversation.path] for conversation in pair.conversations]


async def test_short_memory_and_plenty_give_the_same_answers(
    models: tuple[Path, Path], starter: Starter
) -> None:
    answers = []
    for at_once, most in ((False, 1), (True, 2)):
        starter.started.clear()
        starter.most = 0
        pair = SideBySide(models, at_once=at_once, system="Be kind.", start=starter)
        try:
            first = await said(pair, "Hello")
            second = await said(pair, "And?")
        finally:
            await pair.close()
        assert starter.most == most
        assert set(first) == set(second) == {0, 1}
        answers.append(texts(pair))
        if not at_once:
            # The side that was loaded last begins, so that three loads do for four answers.
            assert starter.started == [models[0], models[1], models[0]]
            assert (first, second) == (sorted(first), sorted(second, reverse=True))
    assert answers[0] == answers[1]
    ours, theirs = answers[0]
    assert (ours[0], ours[2]) == (theirs[0], theirs[2]) == ("Hello", "And?")
    assert ours[1] != theirs[1]
    assert all(len(side) == 4 for side in answers[0])


async def test_a_side_that_fails_does_not_end_the_other(
    models: tuple[Path, Path], starter: Starter
) -> None:
    starter.refuses = models[0]
    pair = SideBySide(models, at_once=False, start=starter)
    failures = []
    try:
        async with aclosing(pair.say("Hello", GREEDY)) as news:
            async for each in news:
                if each.failure is not None:
                    failures.append((each.side, str(each.failure)))
        assert [side for side, _ in failures] == [0]
        assert "out of memory" in failures[0][1]
        assert [len(side) for side in texts(pair)] == [1, 2]
        starter.refuses = None
        await said(pair, "And?")
    finally:
        await pair.close()
    assert [side[::2] for side in texts(pair)] == [["And?"], ["Hello", "And?"]]


async def test_closing_stops_both_and_what_came_stays(
    models: tuple[Path, Path], starter: Starter
) -> None:
    pair = SideBySide(models, at_once=True, start=starter)
    try:
        async with aclosing(pair.say("Hello", LONG)) as news:
            heard = set()
            async for each in news:
                if each.piece is not None and each.piece.text:
                    heard.add(each.side)
                if heard == {0, 1}:
                    break
        ends = [conversation.path[-1].ended for conversation in pair.conversations]
        assert "stopped" in ends
        again = [conversation.path[-1] for conversation in pair.conversations]
        async with aclosing(pair.say_again(GREEDY)) as news:
            async for each in news:
                assert each.failure is None
        for conversation, before in zip(pair.conversations, again, strict=True):
            assert len(conversation.siblings(before)) == 2
    finally:
        async with asyncio.timeout(30):
            await pair.close()


async def test_what_runs_is_not_loaded_again_and_only_the_rest_has_to_fit(
    models: tuple[Path, Path], starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Path]] = []

    def fit(models: list[Path]) -> bool:
        asked.append(models)
        return fit_together(models, free_bytes=3 << 30)

    monkeypatch.setattr("workbench.jobs.side_by_side.fit_together", fit)
    running = await start_server(models[0], device="cpu")
    starter.running.append(running)
    pair = SideBySide(models, start=starter)
    pair.adopt(0, running)
    try:
        stages: dict[int, list[str]] = {0: [], 1: []}
        async with aclosing(pair.say("Hello", GREEDY)) as news:
            async for each in news:
                if each.progress is not None:
                    stages[each.side].append(each.progress.stage)
        assert starter.started == [models[1]]
        assert stages[0] == []
        assert stages[1][0] == "starting a server"
        assert len(stages[1]) > 1
        assert asked == [[models[1]]]
        assert pair.answers_at_once is True
        assert pair.release(0) is running
        assert pair.release(0) is None
    finally:
        await pair.close()
    assert not running.has_ended
    await running.stop()


async def test_one_side_is_stopped_and_the_other_goes_on(
    models: tuple[Path, Path], starter: Starter
) -> None:
    side = 1  # the one that talks longer
    pair = SideBySide(models, at_once=True, start=starter)
    try:
        async with aclosing(pair.say("Hello", LONG)) as news:
            async for each in news:
                is_text = each.piece is not None and each.piece.text
                # Pieces that came before the stop are still told after it.
                if each.side == side and is_text and pair.is_busy(side):
                    pair.stop(side)
                    assert not pair.is_busy(side)
        stopped, other = (pair.conversations[each].last for each in (side, 1 - side))
        assert stopped is not None
        assert other is not None
        assert stopped.ended == "stopped"
        assert stopped.text
        assert other.ended in ("stop", "length")
    finally:
        await pair.close()


async def test_a_side_that_is_stopped_before_its_turn_is_not_loaded(
    models: tuple[Path, Path], starter: Starter
) -> None:
    pair = SideBySide(models, at_once=False, start=starter)
    try:
        async with aclosing(pair.say("Hello", GREEDY)) as news:
            async for each in news:
                assert each.side == 0
                pair.stop(1)
        assert starter.started == [models[0]]
        assert [len(side) for side in texts(pair)] == [2, 1]
    finally:
        await pair.close()


async def test_a_load_that_is_stopped_leaves_no_server(
    models: tuple[Path, Path], starter: Starter
) -> None:
    pair = SideBySide(models, at_once=True, start=starter)
    try:
        async with aclosing(pair.say("Hello", GREEDY)) as news:
            async for each in news:
                # Stopped while it loads, or while it waits for the other one to be loaded.
                pair.stop(each.side)
        assert [len(side) for side in texts(pair)] in ([1, 2], [2, 1], [1, 1])
    finally:
        await pair.close()


def test_whether_two_fit_is_a_matter_of_their_weights(models: tuple[Path, Path]) -> None:
    assert fit_together(models, free_bytes=8 << 30)
    assert not fit_together(models, free_bytes=3 << 30)
    assert fit_together(models[:1], free_bytes=3 << 30)


def test_a_folder_without_a_model_is_told_before_anything_is_loaded(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no such folder"):
        fit_together((models[0], tmp_path / "none"), free_bytes=1)
