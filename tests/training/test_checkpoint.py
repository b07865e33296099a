import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import killed_saves
from tests.training.tiny import tiny_run
from workbench.control.messages import Event
from workbench.runs import checkpoints as folders
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import read_manifest, verify
from workbench.training import checkpoint
from workbench.training.loop import Intervals


def test_a_save_that_is_killed_at_any_moment_never_looks_complete(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    found = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_saves", str(tmp_path), "40", "11"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    kills = [json.loads(line) for line in found.stdout.splitlines()]
    in_the_middle = [kill["step"] for kill in kills if kill["partial"]]
    assert len(in_the_middle) >= 5, "too few children died while they wrote"
    assert any(not kill["killed"] for kill in kills) or len(in_the_middle) < 40
    complete = [found.step for found in folders.list_checkpoints(run) if found.is_complete]
    for step in complete:
        verify(run.checkpoint(step))
    assert 1 in complete
    assert not set(complete) & set(in_the_middle)
    # Every folder with a final name is complete: a rename is the last thing that happens.
    assert [found.step for found in folders.list_checkpoints(run)] == complete
    newest = folders.newest_complete(run)
    assert newest is not None
    assert newest.step == max(complete)
    assert run.latest.resolve().parent == run.checkpoints

    killed_saves.save(run, 99)
    partials = [path.name for path in run.checkpoints.iterdir() if path.name.endswith(".partial")]
    assert partials == [], "left-overs go with the next save"
    assert run.latest.resolve() == run.checkpoint(99)


def test_a_checkpoint_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, max_steps=1)
    run.train()
    folder = RunFolder(tmp_path).checkpoint(1)
    listed = set(read_manifest(folder).files)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - listed == {"manifest.json"}
    assert listed == {
        "config.json",
        "model.safetensors",
        "training_state/state.json",
        "training_state/optimizer-00000.safetensors",
        "training_state/random-00000.json",
    }
    verify(folder)


def test_a_step_that_is_saved_already_is_kept_and_a_damaged_one_written_anew(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    killed_saves.save(run, 5)
    before = (run.checkpoint(5) / "model.safetensors").stat()
    killed_saves.save(run, 5)
    after = (run.checkpoint(5) / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    with (run.checkpoint(5) / "model.safetensors").open("rb+") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    killed_saves.save(run, 5)
    verify(run.checkpoint(5))


def test_without_room_a_save_fails_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    killed_saves.save(run, 1)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1_000_000))
    with pytest.raises(checkpoint.SaveError, match=r"needs .* GB, 0.001 GB free") as caught:
        killed_saves.save(run, 2)
    assert caught.value.reason == "no_space"
    assert [found.step for found in folders.list_checkpoints(run)] == [1]
    assert not run.partial_checkpoint(2).exists()


def test_training_goes_on_after_a_failed_save_but_a_failed_last_save_fails_the_run(
    tmp_path: Path,
) -> None:
    every_step = Intervals(
        log=1, evaluate=None, max_evaluation_batches=None, save=2, save_at_end=True, keep=9
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def rate_while_step_4_cannot_write(step: int) -> float:
        # No file may grow beyond 20 kB: the kernel refuses, as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if step == 4 else soft, hard))
        return 1e-3

    run = tiny_run(tmp_path / "goes-on", max_steps=6, intervals=every_step)
    run.training.rate = rate_while_step_4_cannot_write
    run.train()
    assert run.training.state.step == 6
    assert [found.step for found in folders.list_checkpoints(run.training.run)] == [2, 6]

    last = tiny_run(tmp_path / "fails", max_steps=4, intervals=every_step)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(checkpoint.SaveError) as caught:
            last.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.reason == "save_failed"
    assert last.training.state.step == 4, "the run went on to its end"
    assert list(last.training.run.checkpoints.iterdir()) == [], "half a checkpoint fills no disk"
    assert len(last.losses()) == 4


class _Announced:
    """In the place of the line to the supervisor: which checkpoints are there at each event."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.seen: list[tuple[dict[str, object], list[int]]] = []

    def at(self, state: str, step: int, max_steps: int | None) -> None:
        """Nothing to note."""

    def send(self, message: object) -> None:
        if isinstance(message, Event):
            there = [found.step for found in folders.list_checkpoints(self._run)]
            self.seen.append((message.record, there))


def test_a_checkpoint_is_announced_before_older_ones_go(tmp_path: Path) -> None:
    announced = _Announced(RunFolder(tmp_path))
    keep_one = Intervals(
        log=9, evaluate=None, max_evaluation_batches=None, save=1, save_at_end=True, keep=1
    )
    run = tiny_run(tmp_path, max_steps=2, intervals=keep_one, publisher=announced)  # type: ignore[arg-type]
    run.train()
    assert [(record["pruned"], there) for record, there in announced.seen] == [
        ([], [1]),
        (["checkpoint-1"], [1, 2]),
    ]
    assert [found.step for found in folders.list_checkpoints(RunFolder(tmp_path))] == [2]


def test_a_saved_step_that_cannot_be_read_again_is_written_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    killed_saves.save(run, 5)
    state = run.checkpoint(5) / "training_state" / "state.json"
    content = state.read_bytes()
    state.unlink()
    # A folder of the same size in its place: it is there, and reading it is an error.
    state.mkdir()
    manifest = run.checkpoint(5) / "manifest.json"
    size = state.stat().st_size
    manifest.write_text(
        manifest.read_text().replace(f'"bytes": {len(content)},', f'"bytes": {size},')
    )
    killed_saves.save(run, 5)
    assert state.read_bytes() == content


def test_two_ranks_agree_on_commands_and_save_one_checkpoint_or_none(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr",
            "127.0.0.1", "--nproc-per-node", "2", "-m", "tests.training.two_ranks", str(tmp_path),
        ],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    refused = [line for line in found.stdout.splitlines() if line.startswith("refused")]
    assert len(refused) == 2
    assert all(line.endswith("(rank 1)") for line in refused)
    run = RunFolder(tmp_path)
    assert [found.step for found in folders.list_checkpoints(run)] == [1]
    manifest = verify(run.checkpoint(1))
    assert manifest.num_ranks == 2
    names = {name for name in manifest.files if "-0000" in name}
    assert names == {
        f"training_state/{kind}-0000{rank}.{ending}"
        for rank in (0, 1)
        for kind, ending in (("optimizer", "safetensors"), ("random", "json"))
    }
