"""new: a child config that comes to its parent with the changes asked for."""

import json
import re
from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.cli.main import main
from workbench.config.find import shipped_configs
from workbench.config.load import parse_overrides, resolve

PROJECT = {
    "configs/base/bottom.yaml": """
        optimizer: {learning_rate: 5e-6}
        args:
          --lr: optimizer.learning_rate
          --model: {path: model.path, short: -M}
          --name: logging.name
    """,
    "configs/7b/top.yaml": """
        extends: ../base/bottom.yaml
        description: the parent
        data: {sources: {poems: {path: ../../poems.json}}}
    """,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_configs(tmp_path, PROJECT))
    return tmp_path


OVERRIDES = [
    "optimizer.learning_rate=1e-5",
    "logging.name=no",
    "samples.prompts=['a: b', 'no', '- c', '1']",
    "data.sources.odes.path=odes.json",
    "data.sources.odes.weight=0.5",
    "data.roles={human: user}",
    "training.max_steps=3",
    "batch.train=4",
    "checkpoints.save_strategy=no",
]


@pytest.mark.parametrize("name", ["mine", "mine.yaml", "configs/mine", "7b/deep/er/mine", "./mine"])
def test_the_child_comes_to_its_parent_with_the_changes(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "odes.json").touch()
    assert main(["new", "-t", "7b/top", name, *OVERRIDES]) == 0
    told = capsys.readouterr()
    path = project / told.out.strip()
    assert path.is_file()
    child = resolve(str(path)).config
    expected = resolve("7b/top", overrides=parse_overrides(OVERRIDES)).config
    assert child.description.startswith("7b/top with ")
    for section in type(child).__struct_fields__:
        if section != "description":
            assert getattr(child, section) == getattr(expected, section)
    assert "workbench show -t" in told.err


def test_what_is_written_is_short_nested_and_in_the_order_of_the_schema(project: Path) -> None:
    assert main(["new", "-t", "7b/top", "mine", *reversed(OVERRIDES), "--lr", "2e-5"]) == 0
    modeline, *lines = (project / "configs/mine.yaml").read_text().splitlines()
    assert modeline.startswith("# yaml-language-server: $schema=")
    assert lines == [
        "extends: 7b/top.yaml",
        "description: 7b/top with 9 keys changed",
        "",
        "data:",
        "  sources:",
        "    odes:",
        "      weight: 0.5",
        "      path: ../odes.json",
        "  roles:",
        "    human: user",
        "",
        "batch:",
        "  train: 4",
        "",
        "optimizer:",
        "  learning_rate: 2.0e-05",
        "",
        "logging:",
        '  name: "no"',
        "",
        "checkpoints:",
        '  save_strategy: "no"',
        "",
        "samples:",
        '  prompts: ["a: b", "no", "- c", "1"]',
        "",
        "training:",
        "  max_steps: 3",
    ]


def test_the_modeline_leads_to_the_schema(project: Path) -> None:
    assert main(["new", "-t", "demo", "mine"]) == 0
    (schema,) = re.findall(r"\$schema=(.*)", (project / "configs/mine.yaml").read_text())
    found = (project / "configs" / schema).resolve()
    assert found == (shipped_configs() / "schema.json").resolve()
    assert "properties" in json.loads(found.read_text())


def test_a_schema_of_the_project_is_named_before_the_shipped_one(project: Path) -> None:
    assert main(["schema", "-o", "configs/schema.json"]) == 0
    assert main(["new", "-t", "demo", "7b/mine"]) == 0
    first, *_ = (project / "configs/7b/mine.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=../schema.json"


@pytest.mark.parametrize("typed", ["~/models/x", "$HOME/models/x", "/abs/olute/x", "models/x"])
def test_a_path_means_the_same_from_the_new_file(project: Path, typed: str) -> None:
    assert main(["new", "-t", "7b/top", "7b/deep/mine", "-M", typed]) == 0
    written = (project / "configs/7b/deep/mine.yaml").read_text()
    assert (f"path: {typed}" in written) == (typed != "models/x")
    wanted = resolve("7b/top", overrides=parse_overrides([f"model.path={typed}"])).config
    assert resolve("7b/deep/mine").config.model.path == wanted.model.path


@pytest.mark.parametrize(
    ("parent", "name", "extends"),
    [
        ("7b/top", "7b/mine", "top.yaml"),
        ("7b/top", "mine", "7b/top.yaml"),
        ("configs/7b/top.yaml", "other/mine", "../7b/top.yaml"),
        ("1gpu_llama_7b/default", "mine", "1gpu_llama_7b/default.yaml"),
        ("demo", "7b/mine", "demo.yaml"),
        # Beside the new file the shipped name would be the new file itself.
        ("demo", "demo", str(shipped_configs() / "demo.yaml")),
    ],
)
def test_the_parent_is_named_relative_or_by_its_shipped_name(
    project: Path, parent: str, name: str, extends: str
) -> None:
    assert main(["new", "-t", parent, name]) == 0
    assert f"\nextends: {extends}\n" in (project / f"configs/{name}.yaml").read_text()
    assert resolve(name).files.shown == f"{name}.yaml"


def test_a_description_is_kept_as_given(project: Path) -> None:
    assert main(["new", "-t", "demo", "a", "--description", "mine: #1"]) == 0
    assert resolve("a").config.description == "mine: #1"
    assert main(["new", "-t", "demo", "b", "description='from a key'"]) == 0
    assert resolve("b").config.description == "from a key"
    assert main(["new", "-t", "demo", "c"]) == 0
    assert resolve("c").config.description == "as demo"
    assert main(["new", "-t", "demo", "d", "--max-steps", "20"]) == 0
    assert resolve("d").config.description == "demo with max_steps 20"


def test_the_project_may_be_another_folder_and_need_not_have_configs_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert main(["-p", "other", "new", "-t", "demo", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "mine"
    assert Path(told["file"]) == other / "configs/mine.yaml"
    assert resolve("mine", project=other).config.description == "as demo"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["7b/top"], 4, "there is a config of that name"),
        ([], 2, "no NAME is given"),
        (["a", "b"], 2, "unexpected argument 'b'"),
        (["a", "batch.train=many"], 2, "expected a whole number"),
        (["a", "batch.trian=3"], 2, "did you mean train?"),
        (["a", "--lrr", "3"], 2, "did you mean --lr?"),
        ([""], 2, "cannot be the name of a config"),
        ([".hidden/a"], 2, "cannot be the name of a config"),
        (["a/../../../b"], 2, "cannot be the name of a config"),
        (["a", "extends=b"], 2, "cannot be set beside the files"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    project: Path,
    arguments: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(project.rglob("*"))
    assert main(["new", "-t", "7b/top", *arguments]) == status
    assert said in capsys.readouterr().err
    assert sorted(project.rglob("*")) == before
