"""Rules of the key table, and of everything that could go round it."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.binding import Binding, BindingsMap
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget

import workbench.tui
from workbench.control.states import JobState
from workbench.tui import keys
from workbench.tui.app import WorkbenchApp
from workbench.tui.keys import BANNED, TABLE, KeyState, Scope

# Scopes whose keys are alive at the same time: a pane inside its screen, with the global ones.
TOGETHER: tuple[tuple[Scope, ...], ...] = (
    ("list", "pane", "filterable", "tree", "configs", "global"),
    ("list", "pane", "filterable", "job", "jobs", "global"),
    ("chart", "pane", "job", "jobs", "global"),
    ("pane", "launch", "global"),
    ("chat", "transcript", "conversation"),
    ("chat", "compare", "conversation"),
    ("transcript", "conversation", "global"),
    ("compare", "conversation", "global"),
    ("settings", "conversation"),
    ("list", "pane", "models", "global"),
    ("stop_menu", "dialog"),
    ("confirm", "dialog"),
    ("list", "filterable", "dialog"),
    ("list", "pane", "filterable", "checkpoints", "global"),
    ("choice", "form", "work", "dialog"),
    ("delete", "form", "dialog"),
)

# Rows of an inner scope that take a key from an outer one on purpose: what lies nearer wins.
SHADOWED = {
    ("open_row", "start_run"),
    ("stop_reply", "back"),
    ("stop_side", "back"),
    ("leave_models", "back"),
    ("leave_settings", "back"),
    ("leave_settings", "chat_settings"),
    ("close", "back"),
    ("open_row", "load_model"),
    ("open_row", "talk_to"),
    ("delete_now", "begin"),
}


def sources() -> Iterator[Path]:
    root = Path(workbench.tui.__file__).parent
    yield from (path for path in root.rglob("*.py") if path.name != "keys.py")


def nodes_of_the_program() -> Iterator[type[DOMNode]]:
    """Every screen and widget class that a module of the program defines."""
    for module in pkgutil.walk_packages(workbench.tui.__path__, "workbench.tui."):
        for value in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(value)
                and issubclass(value, (Screen, Widget, WorkbenchApp))
                and value.__module__.startswith("workbench.tui")
            ):
                yield value


def test_ids_are_unique() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("scopes", TOGETHER, ids=" ".join)
def test_no_key_means_two_things_at_once(scopes: tuple[Scope, ...]) -> None:
    taken: dict[str, str] = {}
    rows = keys.rows(scopes)
    assert rows
    for row in rows:
        for key in row.keys:
            other = taken.get(key)
            allowed = other is None or (row.id, other) in SHADOWED or (other, row.id) in SHADOWED
            assert allowed, f"{key} is {other} and {row.id} in {' '.join(scopes)}"
            taken[key] = row.id


def test_no_key_is_one_that_terminals_change_or_swallow() -> None:
    used = {key for row in TABLE for key in row.keys}
    assert not used & BANNED


def test_every_row_says_what_it_does() -> None:
    for row in TABLE:
        assert row.help.endswith("."), row.id
        assert row.label, row.id
        assert row.scope, row.id


def test_what_acts_on_jobs_has_a_command_and_is_refused_to_readers() -> None:
    acting = [row for row in TABLE if row.acts]
    assert {row.id for row in acting} >= {"save", "stop", "pause", "evaluate", "start_run"}
    for row in acting:
        assert row.danger >= 1, row.id
        assert row.command.startswith("workbench "), row.id
        assert row.refusal(KeyState(readonly=True, job="a-1", job_state="training")), row.id


def test_what_costs_work_meets_a_question_first() -> None:
    # The stop menu is the question; abort and delete ask for a number to be typed.
    costly = {row.id for row in TABLE if row.danger >= 2}
    menu = {"stop", "stop_save", "stop_discard", "stop_abort"}
    typed = {"abort_now", "delete_now"}
    assert costly == {*menu, *typed, "confirm_yes", "delete_checkpoint"}
    destroys = {row.id for row in TABLE if row.danger == 3}
    assert destroys == {*typed, "stop_abort", "delete_checkpoint"}
    for row_id in costly - typed:
        assert "enter" not in keys.BY_ID[row_id].keys


def test_every_row_is_carried_out_by_somebody() -> None:
    methods = {
        name.removeprefix("do_")
        for node in nodes_of_the_program()
        for name in dir(node)
        if name.startswith("do_")
    }
    assert {row.id for row in TABLE} - methods == set()


def test_no_binding_of_ours_goes_round_the_table() -> None:
    seen = 0
    for node in nodes_of_the_program():
        for key, binding in BindingsMap(node.__dict__.get("BINDINGS", [])):
            if binding.action.startswith("app.press("):
                seen += 1
                row = keys.BY_ID[binding.action.removeprefix("app.press('").removesuffix("')")]
                # Textual writes ! as exclamation_mark; the table does so as well.
                assert key in row.keys, (node, key)
    assert seen > 50


def test_no_binding_of_textuals_is_banned_or_takes_a_function_key() -> None:
    num_seen = 0
    for node in nodes_of_the_program():
        merged: BindingsMap = node._merge_bindings()
        for key, binding in merged:
            num_seen += 1
            assert key not in BANNED, (node.__name__, key)
            if key in keys.FUNCTION_KEYS:
                assert binding.action.startswith("app.press("), (node.__name__, key)
    assert num_seen > 100


KEY_NAME = re.compile(
    r"(?<![\w-])(ctrl|shift|alt)\+\w+|(?<!\w)[Ff][1-9](?!\w)|\b(escape|pagedown|pageup)\b"
)


def strings_of(path: Path) -> Iterator[ast.Constant]:
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_string and id(node) not in docstrings:
            yield node


def test_no_string_outside_the_table_names_a_key() -> None:
    num_strings = 0
    for path in sources():
        for node in strings_of(path):
            num_strings += 1
            assert not KEY_NAME.search(node.value), f"{path.name}:{node.lineno} {node.value!r}"
    assert num_strings > 500


def test_text_fields_keep_what_they_need() -> None:
    from textual.widgets import TextArea

    kept = {
        key
        for binding in keys.without_banned(TextArea.BINDINGS)
        if isinstance(binding, Binding)
        for key in binding.key.split(",")
    }
    assert {"left", "right", "backspace", "delete", "home", "end"} <= kept
    assert not kept & BANNED


@pytest.mark.parametrize(
    ("row_id", "state", "reason"),
    [
        ("save", "training", None),
        ("save", "finished", "the job has ended: finished"),
        ("save", "stopping", "the job is stopping"),
        ("stop", "stopping", None),
        ("stop", "failed", "the job has ended: failed"),
        ("pause", "paused", None),
        ("start_again", "training", "a-1 still runs"),
        ("start_again", "lost", None),
    ],
)
def test_a_key_is_refused_with_the_reason(row_id: str, state: JobState, reason: str | None) -> None:
    assert keys.BY_ID[row_id].refusal(KeyState(job="a-1", job_state=state)) == reason


def test_without_a_link_nothing_is_sent() -> None:
    state = KeyState(job="a-1", job_state="training", link="nobody answers")
    assert keys.BY_ID["save"].refusal(state) == "nobody answers"


def test_the_page_of_keys_is_that_of_the_table() -> None:
    """Made anew by: python -c 'from workbench.tui.keys import page; print(page(), end="")'."""
    committed = Path(workbench.tui.__file__).parents[2] / "docs" / "keys.md"
    assert committed.read_text() == keys.page()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("question_mark", "?"),
        ("f5", "F5"),
        ("ctrl+pagedown", "ctrl+PgDn"),
        ("escape", "esc"),
        ("S", "S"),
    ],
)
def test_keys_are_shown_as_people_know_them(key: str, expected: str) -> None:
    assert keys.shown(key) == expected


def test_a_field_is_offered_only_keys_that_it_leaves_alone() -> None:
    assert keys.BY_ID["help"].shown_while_typing == "F1"
    assert keys.BY_ID["palette"].shown_while_typing == "ctrl+p"
    assert keys.BY_ID["detach"].shown_while_typing == ""
    assert keys.BY_ID["send"].shown_while_typing == "enter"
