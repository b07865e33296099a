"""Settings of the chat's answers: typed, checked, sent, remembered; the seed that is locked."""

from tests.tui.conftest import screen_text, wait_until
from tests.tui.scripted_server import ScriptedServer, ScriptedServers
from tests.tui.test_chat_screen import app_with, finished_run, talking
from workbench.jobs.chat_settings import BEGINNING, ChatSettings
from workbench.tui.chat.model_choices import base_of
from workbench.tui.screens.chat import ChatScreen
from workbench.tui.screens.chat_settings import ChatSettingsDialog
from workbench.tui.surroundings import Surroundings

# Field after field: temperature, top-p, top-k, min-p, rep. penalty, max new, seed, stop at.
TYPED = ("0.5", "0.9", "40", "0.05", "1.1", "64", "7", 'END \\n "two words"')


async def test_what_is_typed_at_the_side_is_sent_with_the_next_message(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):
        await pilot.press("f7")
        await wait_until(pilot, lambda: "rep. penalty" in screen_text(pilot))
        assert pilot.app.screen is screen
        for text in TYPED:
            await pilot.press(*text, "enter")
        await pilot.press("f7")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        text = screen_text(pilot)
        assert "top-p        0.9" in text
        assert "seed         7" in text
        server.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        sent = server.requests[0]
        assert {key: sent[key] for key in sent if hasattr(BEGINNING, key)} == {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "max_tokens": 64,
            "seed": 7,
            "stop": ["END", "\n", "two words"],
        }


async def test_a_wrong_value_is_said_at_its_field_and_the_one_before_stays(
    surroundings: Surroundings,
) -> None:
    async with talking(surroundings, ScriptedServer("yes")) as (pilot, screen):
        await pilot.press("f7", "3")
        await wait_until(pilot, lambda: "✗ 3 is too large; 0.7 stays" in screen_text(pilot))
        assert screen.settings == BEGINNING
        await pilot.press("escape")
        await wait_until(pilot, lambda: "temperature: 3 is too large; 0.7" in screen_text(pilot))
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        # Opened again, the field holds what is in force.
        await pilot.press("f7")
        await wait_until(pilot, lambda: "✗ 3" not in screen_text(pilot).split("\n", 30)[3])
        await pilot.press("1", "full_stop", "5")
        await wait_until(pilot, lambda: screen.settings.temperature == 1.5)
        await pilot.press("backspace", "backspace", "backspace")
        await wait_until(pilot, lambda: screen.settings == BEGINNING)


async def test_without_room_at_the_side_the_fields_are_in_a_box(
    surroundings: Surroundings,
) -> None:
    async with talking(surroundings, ScriptedServer("yes"), (100, 30)) as (pilot, screen):
        await pilot.press("f7")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, ChatSettingsDialog))
        await wait_until(pilot, lambda: "Settings of the next answers" in screen_text(pilot))
        await pilot.press("1", "down", "2", "down", "5")
        await wait_until(pilot, lambda: "✗ 2 is too large; off stays" in screen_text(pilot))
        await pilot.press("f7")
        await wait_until(pilot, lambda: pilot.app.screen is screen)
        await wait_until(pilot, lambda: "top-p: 2 is too large; off stays" in screen_text(pilot))
        assert screen.settings == ChatSettings(temperature=1.0, top_k=5)


async def test_the_side_is_given_back_where_the_window_becomes_too_narrow(
    surroundings: Surroundings,
) -> None:
    async with talking(surroundings, ScriptedServer("yes")) as (pilot, screen):
        await pilot.press("f7", "1")
        await pilot.resize_terminal(100, 30)
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        assert screen.settings.temperature == 1.0
        await wait_until(pilot, lambda: "temperature  1" in screen_text(pilot))
        await pilot.resize_terminal(80, 24)
        await wait_until(pilot, lambda: "quick-1/checkpoint-10 · T 1" in screen_text(pilot))


async def test_a_locked_seed_is_that_of_every_answer_until_it_is_unlocked(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    async with talking(surroundings, server) as (pilot, screen):

        async def answer(key: str, number: int) -> object:
            server.go_on.release()
            await pilot.press(key)
            await wait_until(pilot, lambda: len(server.requests) == number)
            await wait_until(pilot, lambda: "generating" not in screen_text(pilot))
            await wait_until(pilot, lambda: not screen.key_state().refused)
            return server.requests[-1]["seed"]

        await pilot.press("a")
        first = await answer("enter", 1)
        await pilot.press("f8")
        await wait_until(pilot, lambda: f"are made with seed {first}" in screen_text(pilot))
        assert f"{first} · F8 unlocks" in screen_text(pilot)
        assert [await answer("f5", number) for number in (2, 3)] == [first, first]
        await pilot.press("f8")
        await wait_until(pilot, lambda: "drawn · F8 locks" in screen_text(pilot))
        assert screen.settings.seed is None
        seeds = [await answer("f5", number) for number in (4, 5, 6)]
        assert seeds != [first] * 3


async def test_settings_are_remembered_when_another_checkpoint_is_loaded(
    surroundings: Surroundings,
) -> None:
    older, newer = ScriptedServer("old"), ScriptedServer("new")
    servers = ScriptedServers(checkpoint_10=older, checkpoint_20=newer)
    await finished_run(surroundings, steps=(10, 20))
    app = app_with(servers, surroundings)
    async with app.run_test(size=(120, 36)) as pilot:
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        await wait_until(pilot, lambda: "checkpoint-20  finished" in screen_text(pilot))
        assert "checkpoint-10" not in screen_text(pilot)
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        await pilot.press("f7", "0", "escape", "escape", "escape")
        await wait_until(pilot, lambda: "Talk to · 2 checkpoints" in screen_text(pilot))
        await pilot.press("space")
        await wait_until(pilot, lambda: "checkpoint-10  16m ago" in screen_text(pilot))
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: "checkpoint-10 is loaded" in screen_text(pilot))
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus)
        older.go_on.release()
        await pilot.press("a", "enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        assert older.requests[0]["temperature"] == 0
    assert (older.num_stopped, newer.num_stopped) == (1, 1)


async def test_a_checkpoint_is_loaded_by_its_path_before_the_screen_is_there(
    surroundings: Surroundings,
) -> None:
    server = ScriptedServer("yes")
    await finished_run(surroundings)
    wanted = surroundings.project / "output" / "quick-1" / "checkpoints" / "checkpoint-10"
    app = app_with(server, surroundings, wanted=wanted)
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "quick-1/checkpoint-10 is loaded" in screen_text(pilot))
    assert server.num_stopped == 1


def test_the_model_that_a_run_began_with_is_offered_where_it_is_here(
    surroundings: Surroundings,
) -> None:
    configs = surroundings.project / "configs"
    run = surroundings.project / "output" / "quick-1"
    run.mkdir(parents=True)
    config = "model:\n  path: {}\n  weights: {}\ntraining:\n  device: cpu\n"
    (run / "config.yaml").write_text(config.format(configs / "model", "load"))
    assert base_of(run) is None, "it has no weights"
    (configs / "model" / "model.safetensors").write_bytes(bytes(100))
    assert base_of(run) == configs / "model"
    (run / "config.yaml").write_text(config.format(configs / "model", "random"))
    assert base_of(run) is None, "it began with random weights"
    (run / "config.yaml").write_text("model: [")
    assert base_of(run) is None
