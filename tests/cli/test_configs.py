"""ls and show: what they print."""

import json
import os
import threading
from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.cli.main import main
from workbench.config.load import resolve

PROJECT = {
    "configs/base/bottom.yaml": """
        optimizer: {learning_rate: 5e-6, warmup_steps: 200}
        data: {sources: {poems: {path: poems.json}}}
        args:
          --lr: optimizer.learning_rate
          --name: {path: logging.name, short: -N, help: What it is called}
    """,
    "configs/base/side.yaml": "batch: {train: 4}",
    "configs/7b/top.yaml": """
        extends: [../base/bottom.yaml, ../base/side.yaml]
        description: "a small one: 7b"
        optimizer:
          learning_rate: 3.5e-6
        samples: {prompts: ["Who are you?", "no", "-"]}
    """,
    "configs/broken.yaml": "optimizer:\n  learning_rte: 1\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_configs(tmp_path, PROJECT)


def test_ls_shows_name_gpus_context_description_and_the_mistake_of_a_broken_config(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-p", str(project), "ls"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["7b/top"].split(maxsplit=3)[1:] == ["1", "4,096", "a small one: 7b"]
    assert "broken.yaml:2 optimizer.learning_rte: no such key; did you mean" in lines["broken"]
    assert not any(name.startswith("base/") for name in lines)


def test_ls_does_not_wait_for_the_writer_of_a_named_pipe(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(project / "configs" / "pipe.yaml")
    assert main(["ls", "-p", str(project)]) == 0
    shown = capsys.readouterr().out
    assert "pipe.yaml: cannot be read: is a named pipe" in shown
    assert "7b/top" in shown


def test_ls_json_is_one_list(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json", "-p", str(project)]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["7b/top"]["num_gpus"] == 1
    assert listed["7b/top"]["context"] == 4096
    assert listed["7b/top"]["problem"] is None
    assert listed["broken"]["problem"]


def test_ls_r_finds_the_projects_below_but_no_runs(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configs(
        tmp_path,
        {
            "examples/poems/configs/ode.yaml": "description: odes",
            "output/run-1/metrics.jsonl": "",
            "output/run-1/configs/stale.yaml": "description: stale",
            ".hidden/configs/secret.yaml": "description: secret",
        },
    )
    assert main(["ls", "-r", "-p", str(project)]) == 0
    shown = capsys.readouterr().out
    assert "examples/poems: ode" in shown
    assert "stale" not in shown
    assert "secret" not in shown


def test_show_names_the_origin_of_every_value(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "-t", "7b/top", "-p", str(project), "--lr", "1e-6", "batch.train=2"]) == 0
    shown = {
        line.split(":")[0].strip(): line.partition("# ")[2]
        for line in capsys.readouterr().out.splitlines()
        if "  # " in line
    }
    assert shown["learning_rate"] == (
        "flag --lr, overrides 7b/top.yaml:4 (3.5e-06), base/bottom.yaml:1 (5.0e-06)"
    )
    assert shown["train"] == "key=value, overrides base/side.yaml:1 (4)"
    assert shown["seed"] == "default"
    assert len(shown) > 50


def test_loading_what_show_prints_gives_an_equal_config(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "-t", "7b/top", "-p", str(project)]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert (
        main(["show", "-t", "7b/top", "-p", str(project), "-o", str(tmp_path / "file.yaml")]) == 0
    )
    assert (tmp_path / "file.yaml").read_text() == shown.read_text()
    assert resolve(str(shown)).config == resolve("7b/top", project=project).config


def test_show_json_holds_values_origins_and_history(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "-t", "7b/top.yaml", "-p", str(project), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "7b/top"
    rate = shown["keys"]["optimizer.learning_rate"]
    assert (rate["value"], rate["origin"]["line"]) == (3.5e-6, 4)
    assert [each["value"] for each in rate["overrode"]] == [5e-6]


@pytest.mark.parametrize("is_json", [True, False])
def test_show_and_tree_write_files_and_name_the_flag_in_any_order_of_arguments(
    project: Path, tmp_path: Path, is_json: bool
) -> None:
    form = ["--json"] if is_json else []
    for verb in ("show", "tree"):
        for number, (before, behind) in enumerate(
            [
                (["-p", str(project), "-t", "7b/top"], []),
                ([], ["-t7b/top", f"--project={project}"]),
                (["-t", "7b/top"], ["-p", str(project)]),
            ]
        ):
            written = tmp_path / f"{verb}-{number}"
            given = ["--lr", "1e-6", *form, "-o", str(written)]
            assert main([*before, verb, *behind, *given]) == 0
            assert "flag --lr" in written.read_text()
            assert written.read_text().startswith("{") == is_json
        assert (tmp_path / f"{verb}-0").read_bytes() == (tmp_path / f"{verb}-2").read_bytes()


def test_help_lists_the_flags_of_the_config(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "-t", "7b/top", "-p", str(project), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "--lr" in line]
    assert row.split() == [
        "--lr",
        "number",
        "optimizer.learning_rate",
        "3.5e-06",
        "(7b/top.yaml:4)",
    ]
    (row,) = [line for line in lines if "--name" in line]
    assert row.split() == ["--name,", "-N", "text", "logging.name", "null", "(default)"]
    assert "      What it is called" in lines
    assert main(["show", "--help"]) == 0
    assert "add -t CONFIG" in capsys.readouterr().out


def test_a_result_goes_through_a_link_and_into_a_pipe_and_replaces_neither(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ["show", "-t", "7b/top", "-p", str(project), "-o"]
    target, link, pipe = tmp_path / "target.yaml", tmp_path / "link.yaml", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    assert main([*shown, str(link)]) == 0
    assert link.is_symlink()
    assert target.read_text().startswith("# 7b/top")
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert main([*shown, str(pipe)]) == 0
    reader.join(20)
    assert read == [target.read_text()]
    assert pipe.is_fifo()
    capsys.readouterr()


def test_a_folder_is_no_file_to_write_into(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    for folder in (".", "configs", ""):
        assert main(["tree", "-t", "7b/top", f"--output={folder}"]) == 2
        assert "Is a directory" in capsys.readouterr().err
