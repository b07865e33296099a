"""A launch that fails leaves neither process nor folder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.config.find import shipped_configs
from workbench.config.load import ResolvedConfig, parse_overrides, resolve
from workbench.errors import ControlError, RefusedError
from workbench.jobs.launch import dry_run, launch, start_supervisor, write_run
from workbench.jobs.preflight import Check, preflight
from workbench.runs.checkpoints import complete_checkpoint
from workbench.runs.job_file import JobFile, new_job_id, this_host, write_job_file
from workbench.runs.layout import RunFolder
from workbench.runs.lock import take_lock
from workbench.runs.manifest import write_hashed, write_manifest


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield


def demo(*settings: str) -> ResolvedConfig:
    return resolve("demo", overrides=parse_overrides(list(settings)))


def processes_in(folder: Path) -> list[int]:
    """Every process that works in a folder, as supervisors do in theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_supervisor_that_cannot_bind_its_socket_is_quoted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(ControlError, match="an address holds 107"):
        launch(demo())
    assert list((tmp_path / "output").iterdir()) == []


def test_a_locked_folder_is_not_started_in(tmp_path: Path) -> None:
    run, _ = write_run(demo())
    held = take_lock(run.lock)
    assert held is not None
    before = sorted(run.path.iterdir())
    with pytest.raises(RefusedError, match="is running in this folder"):
        start_supervisor(run)
    assert sorted(run.path.iterdir()) == before
    held.release()


def test_a_run_without_a_command_is_not_started(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "empty")
    run.path.mkdir()
    with pytest.raises(ControlError, match=r"command\.json"):
        start_supervisor(run)
    assert not run.job.exists()
    assert processes_in(run.path) == []


def test_preflight_finds_nothing_wrong_with_the_demo_and_writes_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    checks = [check for check in preflight(demo()) if isinstance(check, Check)]
    assert {check.name for check in checks} == {
        "config", "model", "template", "folder", "disk", "device", "memory", "data", "time",
    }  # fmt: skip
    assert [check for check in checks if check.state == "error"] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gpu_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = preflight(demo("training.device=cuda"))
    found = {check.name: check for check in checks if isinstance(check, Check)}
    assert (found["device"].state, found["device"].exit_status) == ("error", 2)
    assert "training.device: cpu" in found["device"].remedy
    assert "data" not in found, "the data is read only when all else is sound"


def test_absent_weights_are_named_and_older_ones_are_as_good(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(shipped_configs() / "demo" / "model", model)
    resolved = demo(f"model.path={model}", "model.weights=load")

    def message() -> str:
        (check,) = [
            each
            for each in preflight(resolved)
            if isinstance(each, Check) and each.name == "model" and each.state == "error"
        ]
        return f"{check.message}; {check.remedy}"

    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    (model / shards[0]).touch()
    assert message() == (
        f"model folder {model}: lacks weight files: model-00002-of-00002.safetensors; "
        "download them, or set model.weights: random"
    )
    (model / "model.safetensors.index.json").unlink()
    assert "lacks weight files: model.safetensors;" in message()
    (model / "pytorch_model.bin").touch()
    states = [(each.name, each.state) for each in preflight(resolved) if isinstance(each, Check)]
    assert ("model", "ok") in states


def test_a_model_that_is_only_named_has_a_forecast(tmp_path: Path) -> None:
    named = resolve(
        "1gpu_llama_7b/8gb",
        overrides=parse_overrides(
            ["model.path=mistralai/Mistral-7B-Instruct-v0.3", "training.max_steps=100"]
        ),
    )
    checks = [each for each in preflight(named, starts=False) if isinstance(each, Check)]
    found = {each.name: each for each in checks}
    assert found["model"].state == "error", "it cannot be started"
    assert "by the published shapes of mistral-7b-v0.3" in found["memory"].message
    assert "FITS" in found["memory"].message
    assert found["time"].message.startswith("at most 100 steps, at most ")
    assert "evaluation" in found["time"].message
    unknown = resolve("1gpu_llama_7b/8gb", overrides=parse_overrides(["model.path=me/mine-7b"]))
    checks = [each for each in preflight(unknown, starts=False) if isinstance(each, Check)]
    assert not {"memory", "time"} & {each.name for each in checks}


def begun(tmp_path: Path, step: int) -> RunFolder:
    """A run of the demo that has a checkpoint and has ended."""
    resolved = demo(f"training.output_dir={tmp_path / 'run'}")
    run, _ = write_run(resolved, project=tmp_path)
    job = JobFile(
        job=new_job_id("run"),
        attempt=1,
        host=this_host(),
        boot_id="b",
        socket="/none",
        pid=1,
        start_time=1,
    )
    write_job_file(run.job, job)
    partial = run.partial_checkpoint(step)
    partial.mkdir(parents=True)
    files = {"model.safetensors": write_hashed(partial / "model.safetensors", b"weights")}
    write_manifest(partial, files, step=step, num_ranks=1)
    complete_checkpoint(run, step)
    return run


def test_a_start_says_from_which_checkpoint_it_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path, 30)
    again = resolve(str(run.config), overrides=parse_overrides(["training.max_steps=40"]))
    checks = [each for each in preflight(again, project=tmp_path) if isinstance(each, Check)]
    found = {each.name: each for each in checks}
    assert found["start"].message == (
        "begins at step 30, with all of checkpoint-30: weights, optimizer state, place in the "
        "data, random states"
    )
    assert "random weights" not in found["model"].message
    assert "weights come from the checkpoint" in found["model"].message
    fresh = {each.name for each in preflight(demo()) if isinstance(each, Check)}
    assert "start" not in fresh


def test_a_dry_run_of_a_run_that_has_begun_changes_nothing(tmp_path: Path) -> None:
    run = begun(tmp_path, 30)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    again = resolve(str(run.config), overrides=parse_overrides(["training.max_steps=40"]))
    folder, command, was_written = dry_run(again, project=tmp_path)
    assert (folder.path, was_written) == (run.path, False)
    assert str(run.path) in command.line
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    _, _, was_written = dry_run(demo(), project=tmp_path)
    assert was_written
