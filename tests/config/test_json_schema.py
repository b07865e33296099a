"""The JSON Schema: what an editor completes and flags while a config is written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from workbench.cli.main import main
from workbench.config.find import shipped_configs
from workbench.config.json_schema import FILE_NAME, json_schema, schema_text
from workbench.config.load import dump_config, list_configs, resolve
from workbench.config.schema.keys import (
    accepts,
    all_keys,
    key_at,
    kind_of,
    value_type_of_mapping,
)
from workbench.config.yaml_reader import plain, read_file, read_text

VALIDATOR = Draft202012Validator(json_schema())
SHIPPED = sorted(shipped_configs().rglob("*.yaml"))
MODELINE = "# yaml-language-server: $schema="


def flagged(text: str) -> list[str]:
    """Give the paths of what an editor would underline in a config, as section.key."""
    stated, problems = read_text(text)
    assert not problems, problems
    errors = sorted(VALIDATOR.iter_errors(plain(stated)), key=lambda error: list(error.path))
    return [".".join(str(part) for part in error.path) for error in errors]


def test_the_schema_is_one_by_the_rules_of_json_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_committed_schema_is_the_one_the_structs_give() -> None:
    committed = (shipped_configs() / FILE_NAME).read_text()
    assert committed == schema_text(), "write it anew: workbench schema -o configs/schema.json"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_shipped_config_obeys_the_schema_and_names_it(file: Path) -> None:
    stated, problems = read_file(file)
    assert not problems
    assert [error.message for error in VALIDATOR.iter_errors(plain(stated))] == []
    first_line = file.read_text().splitlines()[0]
    assert first_line.startswith(MODELINE)
    named = (file.parent / first_line.removeprefix(MODELINE)).resolve()
    assert named == (shipped_configs() / FILE_NAME).resolve()


def test_there_are_configs_to_look_at() -> None:
    assert len(SHIPPED) > 20


def test_a_resolved_config_obeys_the_schema_too() -> None:
    names = [each.name for each in list_configs(None)]
    assert names
    for name in names:
        assert flagged(dump_config(resolve(name).config)) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        # misspelt keys
        ("optimizer: {learning_rte: 1e-5}", "optimizer"),
        ("optimzer: {learning_rate: 1e-5}", ""),
        ("data: {sources: {poems: {pth: poems.json}}}", "data.sources.poems"),
        ("args: {lr: optimizer.learning_rate}", "args"),
        ("args: {--lr: optimizer.learning_rte}", "args.--lr"),
        ("args: {--x: {path: data.sources.poems.pth}}", "args.--x"),
        ("args: {--lr: {path: optimizer.learning_rate, shrot: -l}}", "args.--lr"),
        # wrong types
        ("batch: {train: many}", "batch.train"),
        ("batch: {train: 1.5}", "batch.train"),
        ("data: {shuffle: yes}", "data.shuffle"),
        ("data: {split_at: [0.8]}", "data.split_at"),
        ("samples: {prompts: hello}", "samples.prompts"),
        ("training:", "training"),
        ("model: /m", "model"),
        ("extends: 7", "extends"),
        ("logging: {name: 42}", "logging.name"),
        # words that are not in the list
        ("data: {packing: best-fit}", "data.packing"),
        ("memory: {resident_fraction: most}", "memory.resident_fraction"),
        ("data: {roles: {narrator: sytem}}", "data.roles.narrator"),
        # bounds
        ("batch: {train: 0}", "batch.train"),
        ("memory: {budget_gib: 0}", "memory.budget_gib"),
        ("memory: {resident_fraction: 1.5}", "memory.resident_fraction"),
        ("data: {max_length: 8}", "data.max_length"),
        # null where it means nothing
        ("batch: {train: null}", "batch.train"),
    ],
)
def test_an_editor_flags_the_mistake_where_it_is(text: str, where: str) -> None:
    assert flagged(text) == [where]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "extends: [base/training.yaml, ../other.yaml]",
        "extends: base/training.yaml",
        "memory: {budget_gib: null}",
        "data: {sources: {poems: {path: poems.json}, letters: null}}",
        "args: {--lr: null, --poems: data.sources.poems.path, --as: data.roles.narrator}",
        "args: {--lr: {path: optimizer.learning_rate, short: -l, also: [--rate], help: Rate}}",
        "checkpoints: {save_strategy: no}",
        "optimizer: {learning_rate: 1}",
    ],
)
def test_an_editor_flags_nothing_in_what_is_right(text: str) -> None:
    assert flagged(text) == []


def schema_of(key: str) -> dict[str, Any]:
    found: Any = json_schema()
    for part in key.split("."):
        found = found["properties"][part]
    assert isinstance(found, dict)
    return found


LEAVES = [
    key
    for key in all_keys()
    if (found := key_at(key.split("."))) and value_type_of_mapping(found.annotation) is None
]


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_says_what_it_means_and_what_it_is_by_default(key: str) -> None:
    schema, found = schema_of(key), key_at(key.split("."))
    assert found is not None
    assert schema["description"] == found.description != ""
    assert schema["default"] == found.default
    assert Draft202012Validator(schema).is_valid(found.default)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats(-2, 40, allow_nan=False)
    | st.sampled_from(["auto", "no", "none", "steps", "", "gpu", "1f1b", "x"])
    | st.lists(st.floats(-1, 2, allow_nan=False) | st.text(max_size=2), max_size=3)
)


@settings(max_examples=300)
@given(key=st.sampled_from(LEAVES), value=VALUES)
def test_the_schema_and_the_loader_take_the_same_values(key: str, value: object) -> None:
    found = key_at(key.split("."))
    assert found is not None
    if isinstance(value, float) and kind_of(found.annotation) == "integer" and value % 1 == 0:
        return  # JSON Schema takes 3.0 for a whole number; the loader asks for 3
    assert math.isfinite(value) if isinstance(value, float) else True
    assert Draft202012Validator(schema_of(key)).is_valid(value) == accepts(found.annotation, value)


# ---- the command --------------------------------------------------------------------------------


def test_the_command_shows_the_schema_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text()
    assert main(["schema", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json_schema()


def test_the_command_writes_the_schema_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "schema.json"
    assert main(["schema", "-o", str(target)]) == 0
    told = capsys.readouterr()
    assert (told.out, str(target) in told.err) == ("", True)
    assert target.read_text() == schema_text()
    assert main(["schema", "-o", str(tmp_path / "nowhere" / "schema.json")]) != 0
    assert "name a file in a folder that can be written" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["schema.json"]


def test_the_command_takes_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "demo"]) == 2
    assert "see workbench schema --help" in capsys.readouterr().err
