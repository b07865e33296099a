"""diff: which keys differ, both values, who states each."""

import json
from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.cli.main import main
from workbench.config.load import ResolvedConfig, parse_overrides, resolve
from workbench.runs.create import create_run, plan_run
from workbench.runs.environment import Surroundings
from workbench.runs.layout import RunFolder

PROJECT = {
    "configs/left.yaml": """
        description: left
        optimizer: {learning_rate: 1e-5}
        data: {sources: {poems: {path: poems.json}}}
    """,
    "configs/right.yaml": """
        extends: left.yaml
        description: right
        optimizer:
          learning_rate: 0.5e-5
        batch: {train: 8}
    """,
    "configs/same.yaml": """
        extends: left.yaml
        description: other words
        optimizer: {learning_rate: 0.00001}
    """,
    "configs/odes.yaml": "data: {sources: {odes: {path: odes.json}}}",
    "configs/broken.yaml": "optimizer: {learning_rte: 1}",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_configs(tmp_path, PROJECT))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def written_run(resolved: ResolvedConfig, project: Path) -> RunFolder:
    planned = plan_run(resolved, project / "output")
    nothing = Surroundings({}, b"")
    return create_run(resolved, planned, template="", surroundings=nothing)


def test_only_the_keys_that_differ_are_told_with_both_values_and_origins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["diff", "left", "right"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["A", "left", "config"]
    assert lines[lines.index("optimizer.learning_rate") :][1:3] == [
        "  A  1.0e-05  left.yaml:2",
        "  B  5.0e-06  right.yaml:4",
    ]
    # Both files come to 8: one states it, the other leaves it to the schema.
    assert "batch.train" not in lines
    assert lines[-1].startswith("2 of ")


def test_values_written_in_other_words_are_equal_but_the_description_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["diff", "left", "same", "--exit-code"]) == 1
    told = capsys.readouterr().out
    assert "equal but for the description" in told
    assert "learning_rate" not in told


def test_a_config_is_equal_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "left", "configs/left.yaml", "--exit-code"]) == 0
    assert "equal in all" in capsys.readouterr().out


def test_a_key_that_one_side_lacks_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-t", "left", "diff", "odes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["keys"]["data.sources.odes.path"]["left"] is None
    assert told["keys"]["data.sources.poems.path"]["right"] is None
    assert told["keys"]["data.sources.poems.path"]["left"]["origin"]["line"] == 3
    assert "data.sources" not in told["keys"]
    assert not told["equal"]


def test_a_run_stands_beside_the_config_it_came_from(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = parse_overrides(["optimizer.learning_rate=2e-5", "model.path=m"])
    (project / "m").mkdir()
    resolved = resolve("left", overrides=overrides)
    run = written_run(resolved, project)
    assert main(["diff", "left", str(run.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["left"]["kind"], told["right"]["kind"]) == ("config", "run")
    # The folder of a run is its own; only what was asked for differs.
    assert set(told["keys"]) == {"optimizer.learning_rate", "model.path"}
    rate = told["keys"]["optimizer.learning_rate"]
    assert (rate["right"]["value"], rate["right"]["origin"]["source"]) == (2e-5, "key=value")


def test_a_run_without_its_origins_names_the_lines_of_its_own_config(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written_run(resolve("left"), project)
    run.job.write_text("{}")
    run.origins.unlink()
    assert main(["diff", str(run.path), "right"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = lines[lines.index("optimizer.learning_rate") + 1]
    number = int(told.rpartition("config.yaml:")[2])
    assert run.config.read_text().splitlines()[number - 1].strip() == "learning_rate: 1.0e-05"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["left"], "compares two, 1 given"),
        (["left", "right", "same"], "compares two, 3 given"),
        (["left", "lefd"], "did you mean left?"),
        (["left", "broken"], "broken.yaml:1 optimizer.learning_rte"),
        (["left", "configs"], "is a folder, but no run folder"),
        (["left", "right", "batch.train=3"], "would belong to neither"),
        (["left", "right", "--lr", "3"], "--lr"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out
