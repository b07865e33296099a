"""The configs screen: list, filter, tree, keys with their origin, broken configs."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import screen_text, type_into, wait_until
from workbench.tui.app import WorkbenchApp
from workbench.tui.fuzzy import score
from workbench.tui.screens.configs import ConfigsScreen
from workbench.tui.screens.frame import WorkbenchScreen
from workbench.tui.screens.launch_preview import LaunchPreview
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.config_list import ConfigList, ConfigRow
from workbench.tui.widgets.config_tree import ConfigTree


@asynccontextmanager
async def on_configs(
    surroundings: Surroundings, size: tuple[int, int] = (120, 36)
) -> AsyncIterator[tuple[Pilot[None], ConfigsScreen]]:
    app = WorkbenchApp(surroundings, screen="configs")
    async with app.run_test(size=size) as pilot:
        screen = app.screen
        assert isinstance(screen, ConfigsScreen)
        await wait_until(pilot, lambda: screen.resolution is not None)
        yield pilot, screen


def names(screen: ConfigsScreen) -> list[str]:
    rows: list[ConfigRow] = list(screen.query_one("#config-list", ConfigList).rows)
    return [row.name for row in rows if not row.is_folder]


async def choose(pilot: Pilot[None], screen: ConfigsScreen, name: str) -> None:
    assert screen.query_one("#config-list", ConfigList).choose(name)
    await wait_until(pilot, lambda: screen.resolution and screen.resolution.name == name)


async def test_every_config_is_listed_the_broken_one_with_its_mistake(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        assert {"small/quick", "small/longer", "small/wrong", "demo"} <= set(names(screen))
        assert not [name for name in names(screen) if name.startswith("base/")]
        text = screen_text(pilot)
        assert "ten steps on a CPU" in text
        assert "! line 3 optimizer." in text


async def test_the_list_tells_what_a_config_runs_on_and_its_context(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings, (80, 24)) as (pilot, _):
        await wait_until(pilot, lambda: "ten steps on a CPU" in screen_text(pilot))
        lines = [" ".join(line.split()) for line in screen_text(pilot).splitlines()]
        assert any("quick ten steps on a CPU CPU 4,096" in line for line in lines), lines
        await pilot.press("slash", *"packed")
        await wait_until(pilot, lambda: "1 GPU   4,096" in screen_text(pilot))


async def test_a_broken_config_shows_every_mistake_and_cannot_be_launched(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/wrong")
        await wait_until(pilot, lambda: "did you mean learning_rate?" in screen_text(pilot))
        assert "configs/small/wrong.yaml:3 optimizer.learning_rte" in screen_text(pilot)
        await pilot.press("L")
        await wait_until(
            pilot, lambda: "! L Launch: small/wrong has a mistake" in screen_text(pilot)
        )
        assert pilot.app.screen is screen


async def test_the_tree_and_the_chain_tell_who_set_a_value(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        text = screen_text(pilot)
        assert "└─ extends quick.yaml" in text
        assert "   └─ extends base/common.yaml" in text
        screen.query_one("#key-table").focus()
        await pilot.press("slash")
        await type_into(pilot, "#key-filter", "learning_rate")
        await pilot.press("enter")
        await wait_until(
            pilot,
            lambda: (
                "chain 5e-6 base/common.yaml:5  →  3e-6 small/longer.yaml:4" in screen_text(pilot)
            ),
        )
        await pilot.press("enter")
        await wait_until(pilot, lambda: "Rate after warm-up" in screen_text(pilot))
        await pilot.press("escape")
        await wait_until(pilot, lambda: pilot.app.screen is screen)


async def test_a_file_of_the_tree_narrows_the_keys_to_its_own(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        screen.query_one("#config-tree").focus()
        await pilot.press("j", "enter")
        await wait_until(pilot, lambda: "only quick.yaml" in screen_text(pilot))
        rows = screen.query_one("#key-table").rows  # type: ignore[attr-defined]
        assert [row.key for row in rows] == ["training.device"]
        await pilot.press("escape")
        await wait_until(pilot, lambda: "only quick.yaml" not in screen_text(pilot))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("lngr small", ["small/longer"]),
        ("hundred small", ["small/longer"]),
        ("key:max_steps small", ["small/longer", "small/quick"]),
        ("set:3e-6 small", ["small/longer"]),
    ],
)
async def test_the_filter_finds_names_descriptions_keys_and_values(
    surroundings: Surroundings, query: str, expected: list[str]
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await pilot.press("slash")
        await type_into(pilot, "#config-filter", query)
        await wait_until(pilot, lambda: sorted(names(screen)) == expected)
        await pilot.press("escape")
        await wait_until(pilot, lambda: len(names(screen)) > 3)


async def test_the_cursor_goes_to_the_name_most_like_what_is_typed(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        config_list = screen.query_one("#config-list", ConfigList)
        await choose(pilot, screen, "pipeline_llama_7b/zb_6gpu")
        await pilot.press("slash", *"demo")
        await wait_until(pilot, lambda: names(screen) == ["demo", "demo_pipeline"])
        assert config_list.current is not None
        assert config_list.current.name == "demo"
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.resolution and screen.resolution.name == "demo")


async def test_a_filter_without_a_match_says_how_to_clear_it(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await pilot.press("slash", *"zzz")
        await wait_until(pilot, lambda: "match “zzz”: esc clears." in screen_text(pilot))
        assert names(screen) == []


async def test_the_narrow_form_has_a_summary_below_its_tabs(surroundings: Surroundings) -> None:
    async with on_configs(surroundings, (80, 24)) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        text = screen_text(pilot)
        assert "[Configs]  Tree  Keys" in text
        assert "quick ← base/common" in text
        await pilot.press("right_square_bracket")
        await wait_until(pilot, lambda: "Configs  [Tree]  Keys" in screen_text(pilot))
        assert "extends base/common.yaml" in screen_text(pilot)


async def test_the_choice_is_remembered_for_the_next_start(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
    async with on_configs(surroundings) as (pilot, screen):
        await wait_until(
            pilot, lambda: screen.resolution and screen.resolution.name == "small/quick"
        )


async def test_a_broken_memory_is_replaced_not_an_error(surroundings: Surroundings) -> None:
    surroundings.state_folder.mkdir(parents=True)
    (surroundings.state_folder / "tui.json").write_text("{not json")
    async with on_configs(surroundings) as (_, screen):
        assert len(names(screen)) > 3


async def test_ascii_draws_nothing_else(surroundings: Surroundings) -> None:
    async with on_configs(replace(surroundings, ascii=True)) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        text = screen_text(pilot)
        assert "+- Tree ---" in text
        assert "+- extends quick.yaml" in text
        assert text.isascii()


async def test_help_lists_the_keys_and_runs_one(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await pilot.press("question_mark")
        await wait_until(pilot, lambda: "Keys here" in screen_text(pilot))
        assert "Open the launch preview of the selected config" in screen_text(pilot)
        await pilot.press("slash")
        await type_into(pilot, "#help-filter", "show the jobs")
        await pilot.press("enter", "enter")
        await wait_until(pilot, lambda: pilot.app.current_mode == "jobs")
        assert pilot.app.screen is not screen


async def test_p_opens_the_preview_to_look_only(surroundings: Surroundings) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        await pilot.press("p")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, LaunchPreview))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "opened to look only" in screen_text(pilot))
        assert not (surroundings.project / "output").exists()


@pytest.mark.parametrize(
    ("query", "better", "worse"),
    [("lc", "long_context", "alchemy"), ("def", "default", "dxexf")],
)
def test_what_fits_better_scores_higher(query: str, better: str, worse: str) -> None:
    high, low = score(query, better), score(query, worse)
    assert high is not None
    assert low is not None
    assert high > low


def test_characters_in_another_order_do_not_match() -> None:
    assert score("ba", "ab") is None
    assert score("", "anything") == 0


async def test_what_threads_tell_arrives_in_order_and_not_on_a_screen_that_is_gone(
    surroundings: Surroundings,
) -> None:
    told: list[int] = []
    async with on_configs(surroundings) as (pilot, screen):
        await pilot.press("p")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, LaunchPreview))
        preview = pilot.app.screen
        assert isinstance(preview, LaunchPreview)

        def tell(first: WorkbenchScreen, numbers: range) -> None:
            for number in numbers:
                first.from_thread(told.append, number)

        await asyncio.to_thread(tell, preview, range(5))
        await wait_until(pilot, lambda: told == [0, 1, 2, 3, 4])
        await pilot.press("escape")
        await wait_until(pilot, lambda: pilot.app.screen is screen)
        await wait_until(pilot, lambda: not preview.is_attached)
        await asyncio.to_thread(tell, preview, range(5, 10))
        await asyncio.to_thread(tell, screen, range(10, 12))
        await wait_until(pilot, lambda: told == [0, 1, 2, 3, 4, 10, 11])


async def test_a_thread_that_tells_something_never_waits_for_the_screens(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        told: list[int] = []
        thread = threading.Thread(target=screen.from_thread, args=(told.append, 1))
        thread.start()
        thread.join(5)  # holds the loop up, as one that has ended would
        assert not thread.is_alive()
        assert told == []
        await wait_until(pilot, lambda: told == [1])


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_long_mistakes_can_be_read_whole_in_the_tree(
    surroundings: Surroundings, size: tuple[int, int]
) -> None:
    text = "a value that nobody would write but that is long enough for several lines"
    wrong = surroundings.project / "configs" / "small" / "wrong.yaml"
    wrong.write_text(
        "extends: ../base/common.yaml\n"
        f"memory:\n  budget_gib: {text}\n"
        "optimizer:\n  name: adafactorial\n  warmup_steps: -3\n  learning_rte: 1\n"
        "batch:\n  microbatchs: 4\n  train: none at all\n"
    )
    async with on_configs(surroundings, size) as (pilot, screen):
        await choose(pilot, screen, "small/wrong")
        tree = screen.query_one("#config-tree", ConfigTree)
        if size[0] == 80:
            await pilot.press("right_square_bracket")
        await wait_until(pilot, lambda: tree.size.width > 20 and len(tree.rows) > 15)
        assert screen.resolution is not None
        assert screen.resolution.problems is not None
        lines = [row.text.plain for row in tree.rows if row.text is not None]
        assert max(len(line) for line in lines) <= tree.text_width
        whole = " ".join(" ".join(lines).split())
        for problem in screen.resolution.problems.problems:
            assert problem.what in whole
            assert problem.remedy in whole
        # Nothing can be chosen, and yet keys reach the last line.
        assert len(lines) > tree.size.height
        tree.focus()
        await pilot.press("end")
        await wait_until(pilot, lambda: lines[-1].strip() in screen_text(pilot))
        await pilot.press("home")
        await wait_until(pilot, lambda: lines[0].strip() in screen_text(pilot))
