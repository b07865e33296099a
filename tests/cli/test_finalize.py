"""``workbench finalize`` and ``workbench checkpoints``, through the real worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.inference.tiny_model import add_checkpoint, write_tiny_model
from workbench.cli.main import main
from workbench.config.flags import Override
from workbench.config.load import dump_config, resolve
from workbench.runs.checkpoints import Best, list_checkpoints, write_best
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(model: Path, tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.checkpoints.mkdir(parents=True)
    made.config.write_text("")
    for step in (10, 20, 30):
        add_checkpoint(made, model, step)
    write_best(made, Best(step=20, loss=1.25))
    return made


def damage(folder: Path) -> None:
    """Change one bit of the weights."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_newest_is_published_and_can_be_verified(
    capsys: pytest.CaptureFixture[str], run: RunFolder, tmp_path: Path
) -> None:
    status, out, err = told(capsys, "finalize", run.path, tmp_path / "out")
    assert status == 0, err
    assert out.startswith("published step 30, ")
    assert "equal the checkpoint's" in out
    assert not (tmp_path / "out" / "training_state").exists()
    assert [found.step for found in list_checkpoints(run)] == [10, 20, 30]
    status, out, _ = told(capsys, "checkpoints", "verify", tmp_path / "out", "--logits", "--json")
    (result,) = json.loads(out)
    assert (status, result["problem"]) == (0, None)
    assert result["difference"] < 1e-5
    damage(tmp_path / "out")
    status, out, _ = told(capsys, "checkpoints", "verify", tmp_path / "out")
    assert status == 1
    assert "model.safetensors has other content" in out


@pytest.mark.parametrize(("options", "step"), [(["--best"], 20), (["--step", "10"], 10)])
def test_another_checkpoint_is_published_when_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
    run: RunFolder,
    tmp_path: Path,
    options: list[str],
    step: int,
) -> None:
    status, out, err = told(capsys, "finalize", run.path, tmp_path / "out", *options, "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert (facts["step"], facts["discarded"]) == (step, None)
    assert read_manifest(tmp_path / "out").step == step


def test_what_cannot_be_published_is_told_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], run: RunFolder, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, words in (
        ([run.path, run.checkpoints / "mine"], "only read"),
        ([run.path, run.path / "latest" / "mine"], "only read"),
        ([run.path, out, "--step", "11"], "no checkpoint of step 11"),
        ([run.checkpoint(10), out, "--best"], "no run"),
        ([model, out, "--discard", "--yes"], "nothing to discard"),
        ([tmp_path / "nowhere", out], "no such folder"),
        ([run.path, model], "is there already"),
        ([run.path, out, "--best", "--step", "10"], "not allowed with"),
        ([run.path, out, "--gguf", "q2"], "invalid choice"),
    ):
        status, printed, err = told(capsys, "finalize", *arguments)
        assert (status, printed) == (2, ""), arguments
        assert words in err, arguments
    assert not list(tmp_path.glob("out*"))


def test_a_checkpoint_that_was_damaged_is_not_published(
    capsys: pytest.CaptureFixture[str], run: RunFolder, tmp_path: Path
) -> None:
    damage(run.checkpoint(30))
    status, out, err = told(capsys, "finalize", run.path, tmp_path / "out")
    assert (status, out) == (2, "")
    assert "model.safetensors has other content than when it was saved" in err
    assert not list(tmp_path.glob("out*"))
    status, out, _ = told(capsys, "checkpoints", "verify", run.path)
    lines = out.splitlines()
    assert status == 1
    assert ["whole" in line for line in lines] == [True, True, False]


def test_discarding_lists_files_and_bytes_and_spares_the_published_model(
    capsys: pytest.CaptureFixture[str], run: RunFolder, model: Path, tmp_path: Path
) -> None:
    out = run.path / "published"
    files = sorted(run.checkpoint(10).iterdir())
    run.tags.write_text('{"checkpoint-30": ["keep"]}')
    before = {path: path.read_bytes() for path in model.iterdir()}
    status, printed, err = told(
        capsys, "finalize", run.path, out, "--best", "--discard", "--yes", "--json"
    )
    assert status == 0, err
    for path in files:
        assert str(path) in err
    assert f"{(files[0].stat().st_size if files[0].exists() else 207):,}" in err
    facts = json.loads(printed)["discarded"]
    assert facts["folders"] == [str(run.checkpoint(10)), str(run.checkpoint(20))]
    assert facts["spared"] == {str(run.checkpoint(30)): "is tagged keep"}
    assert [found.step for found in list_checkpoints(run)] == [30]
    assert run.latest.resolve() == run.checkpoint(30)
    assert read_manifest(out).step == 20
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_the_model_that_a_run_began_with_is_never_discarded(
    capsys: pytest.CaptureFixture[str], run: RunFolder, tmp_path: Path
) -> None:
    """The run trains on from a checkpoint that lies among its own."""
    config = resolve("demo", overrides=[Override("model.path", str(run.checkpoint(10)), "typed")])
    run.config.write_text(dump_config(config.config))
    status, _, err = told(
        capsys, "finalize", run.path, tmp_path / "out", "--discard", "--yes", "--json"
    )
    assert status == 0, err
    assert [found.step for found in list_checkpoints(run)] == [10]
    assert "is in use as a model" in err


def test_nothing_is_discarded_where_nobody_says_yes(run: RunFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "finalize", run.path, tmp_path / "out"]
    ended = subprocess.run(
        [*command, "--discard"], input="", capture_output=True, text=True, check=False
    )
    assert ended.returncode == 4
    assert "--yes" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_command_that_is_interrupted_leaves_nothing(run: RunFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "finalize", run.path, tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (tmp_path / "out.partial").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert not list(tmp_path.glob("out*"))


def test_a_list_says_which_is_the_newest_the_best_and_not_complete(
    capsys: pytest.CaptureFixture[str], run: RunFolder, tmp_path: Path
) -> None:
    run.tags.write_text('{"checkpoint-10": ["keep"]}')
    (run.checkpoint(30) / "model.safetensors").unlink()
    status, out, _ = told(capsys, "checkpoints", "list", run.path)
    assert status == 0
    rows = [line.split(None, 3) for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["10", "20", "30"]
    assert rows[0][3] == "keep"
    assert rows[1][3] == "newest, best (loss 1.2500)"
    assert rows[2][3] == "not complete: model.safetensors is missing"
    status, out, _ = told(capsys, "checkpoints", "list", run.path, "--json")
    facts = json.loads(out)
    assert [each["is_newest"] for each in facts] == [False, True, False]
    assert facts[1]["loss"] == 1.25
    empty = tmp_path / "empty"
    empty.mkdir()
    assert told(capsys, "checkpoints", "list", empty)[:2] == (0, "")
    assert told(capsys, "checkpoints", "verify", empty)[0] == 2
    assert told(capsys, "checkpoints", "list", tmp_path / "nowhere")[0] == 2


def test_a_gguf_file_and_a_modelfile_come_along(
    capsys: pytest.CaptureFixture[str], run: RunFolder, tmp_path: Path
) -> None:
    status, out, err = told(
        capsys, "finalize", run.path, tmp_path / "out", "--gguf", "f16", "--json"
    )
    assert status == 0, err
    facts = json.loads(out)
    assert facts["gguf"] == "out-f16.gguf"
    assert {"out-f16.gguf", "Modelfile", "model.safetensors"} <= facts["files"].keys()
    assert (tmp_path / "out" / "out-f16.gguf").read_bytes()[:4] == b"GGUF"
    assert told(capsys, "checkpoints", "verify", tmp_path / "out")[0] == 0
    # A published model can be published again, without what was made for others.
    status, _, err = told(capsys, "finalize", tmp_path / "out", tmp_path / "again")
    assert status == 0, err
    assert not list((tmp_path / "again").glob("*.gguf"))


def test_one_checkpoint_is_deleted_and_what_others_need_is_not(
    capsys: pytest.CaptureFixture[str], run: RunFolder
) -> None:
    status, out, err = told(capsys, "checkpoints", "delete", run.checkpoint(10))
    assert status == 4
    assert "nobody is there to be asked" in err
    status, out, err = told(capsys, "checkpoints", "delete", run.checkpoint(10), "--yes")
    assert status == 0, err
    assert out.startswith(f"removed {run.checkpoint(10)}: ")
    assert "model.safetensors" in err
    assert [found.step for found in list_checkpoints(run)] == [20, 30]
    child = RunFolder(run.path.parent / "child")
    child.path.mkdir()
    began = Override("model.path", str(run.checkpoint(20)), "--model")
    child.config.write_text(dump_config(resolve("demo", overrides=[began]).config))
    child.origins.write_text("{}")
    status, out, err = told(capsys, "checkpoints", "delete", run.checkpoint(20), "--yes")
    assert status == 4
    assert "is in use as a model" in err
    assert [found.step for found in list_checkpoints(run)] == [20, 30]


def test_nothing_but_a_checkpoint_of_a_run_is_deleted(
    capsys: pytest.CaptureFixture[str], run: RunFolder, model: Path
) -> None:
    for path in (model, run.path, run.checkpoints):
        status, _, err = told(capsys, "checkpoints", "delete", path, "--yes")
        assert status == 2
        assert "is no checkpoint in a run's folder" in err
        assert path.is_dir()
