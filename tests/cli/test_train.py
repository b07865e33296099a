"""What ends a start before it begins: what, where, remedy, exit status, and no folder left."""

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.cli.main import main
from workbench.config.find import shipped_configs

GOOD_ROW = {
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello, friend."}]
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield work


def data_of(workplace: Path, content: str) -> str:
    (workplace / "rows.jsonl").write_text(content)
    return "data.sources={demo: {path: rows.jsonl}}"


def refused(
    capsys: pytest.CaptureFixture[str], workplace: Path, *arguments: str
) -> tuple[int, str]:
    """Start, and make sure that nothing is on stdout and no run folder is there."""
    before = sorted(workplace.rglob("*"))
    status = main(["--batch", "-t", "demo.yaml", *arguments])
    told = capsys.readouterr()
    assert told.out == ""
    assert sorted(workplace.rglob("*")) == before
    assert "Traceback" not in told.err
    return status, told.err


def test_a_config_with_mistakes_exits_2_and_shows_them_all(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    status, told = refused(
        capsys, workplace, "optimizer.learning_rte=1", "training.max_steps=soon", "training.seed=-1"
    )
    assert status == 2
    assert "did you mean" in told
    assert "optimizer.learning_rte" in told
    assert "training.max_steps" in told
    assert "training.seed" in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["training.engine=pipeline"], "training.engine"),
        (["model.attention=flex", "training.device=cpu"], "model.attention"),
        (["model.attention=varlen", "training.device=cpu"], "model.attention"),
        (["--model", "/nowhere/model"], "/nowhere/model"),
        (["data.max_length=100000"], "data.max_length"),
        (["model.weights=load"], "model.safetensors"),
        (["--chat-template", "chatml2"], "chatml2"),
        (["--chat-template", "/nowhere/x.jinja"], "/nowhere/x.jinja"),
        (["--output-dir", "/dev/null/run"], "/dev/null"),
        (["--", "--nproc-per-node", "2"], "the config needs 1"),
        (["--", "train.py"], "no option of torchrun"),
        (["-d", "gpu"], "names no GPU"),
        (["--no-such-flag"], "--no-such-flag"),
        (["-p", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_before_the_start_exits_2_and_names_its_place(
    capsys: pytest.CaptureFixture[str], workplace: Path, arguments: list[str], named: str
) -> None:
    status, told = refused(capsys, workplace, *arguments)
    assert status == 2, told
    assert named in told


def test_a_dry_run_without_a_gpu_warns_of_attention_that_needs_one(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workplace))  # no nvidia-smi
    assert main(["train", "-t", "demo.yaml", "model.attention=varlen", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "! config: key=value model.attention: varlen attention does not train on a CPU" in told


def test_a_package_that_an_optimizer_needs_is_looked_for_before_the_start(
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = "optimizer.name=adamw_8bit"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torchao", None)  # as if it were not installed
        status, told = refused(capsys, workplace, setting)
    assert status == 2, told
    assert "optimizer.name: adamw_8bit needs the package torchao" in told
    assert "python -m pip install torchao" in told
    if importlib.util.find_spec("torchao") is None:
        (tmp_path / "packages" / "torchao").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / "packages")
    main(["train", "-t", "demo.yaml", setting, "--dry-run"])
    assert "needs the package" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "rows.jsonl"),
        (json.dumps(GOOD_ROW) + "\n{broken\n", "rows.jsonl:2"),
        (json.dumps({"conversations": [{"from": "human", "value": "Hi"}]}) + "\n", "rows.jsonl:1"),
        (json.dumps({"words": "no roles"}) + "\n", "rows.jsonl"),
    ],
    ids=["empty", "broken line", "no assistant turn", "unknown form"],
)
def test_bad_data_is_found_before_the_start(
    capsys: pytest.CaptureFixture[str], workplace: Path, content: str, named: str
) -> None:
    setting = data_of(workplace, content)
    status, told = refused(capsys, workplace, setting)
    assert status == 2, told
    assert "✗ data" in told
    assert named in told


def test_a_missing_data_file_is_found_before_the_start(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    status, told = refused(capsys, workplace, "data.sources={demo: {path: nowhere.jsonl}}")
    assert status == 2
    assert "nowhere.jsonl" in told


def test_a_socket_path_that_is_too_long_is_found_before_the_start(
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    status, told = refused(capsys, workplace)
    assert status == 2
    assert "an address holds 107" in told


def test_a_disk_without_room_for_a_checkpoint_exits_4(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    """A model whose config.json says that it is larger than any disk."""
    model = workplace.parent / "huge"
    model.mkdir()
    for path in (shipped_configs() / "demo" / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    stated = json.loads((model / "config.json").read_text())
    stated |= {"num_hidden_layers": 10_000, "intermediate_size": 1 << 28}
    (model / "config.json").write_text(json.dumps(stated))
    status, told = refused(capsys, workplace, "--model", str(model))
    assert status == 4
    assert "a checkpoint needs" in told


def test_a_dry_run_writes_the_folder_and_gives_a_line_to_paste(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    status = main(
        ["train", "-t", "demo.yaml", "--max-steps", "3", "--dry-run", "--", "--max-restarts", "2"]
    )
    told = capsys.readouterr()
    assert status == 0, told.err
    assert "needs 0.0" not in told.err
    (line,) = told.out.splitlines()
    words = [word for word in shlex.split(line) if "=" not in word or word.startswith("-")]
    run = workplace / "output" / "demo-1"
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[-3:] == ["-m", "workbench.training", str(run)]
    command = json.loads((run / "command.json").read_text())
    assert command["arguments"] == words
    assert command["arguments"][command["arguments"].index("--max-restarts") + 1] == "2"
    names = {path.name for path in run.iterdir()} - {"git.diff"}
    assert names == {
        "config.yaml",
        "origins.json",
        "environment.json",
        "chat_template.jinja",
        "command.json",
    }
    for check in ("config", "model", "template", "folder", "disk", "device", "data"):
        assert f"✓ {check}" in told.err


def test_the_help_lists_the_flags_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-t", "demo.yaml", "--help"]) == 0
    told = capsys.readouterr().out
    for word in ("--dry-run", "--detach", "--devices", "--max-steps", "training.max_steps"):
        assert word in told


def test_another_number_of_ranks_is_refused_before_the_data_are_read(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    # The data are not there either: whoever is told of them has waited for the preflight.
    rows = "data.sources={demo: {path: not_there.jsonl}}"
    status, told = refused(capsys, workplace, rows, "--", "--nnodes", "3")
    assert status == 2
    assert "3 x 1 ranks make 3, the config needs 1" in told
    assert "not_there" not in told
