"""A run folder is there whole or not at all, and keeps one config over its attempts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from workbench.config.load import ResolvedConfig, parse_overrides, read_resolved, resolve
from workbench.errors import RefusedError, RunError
from workbench.runs import create
from workbench.runs.create import (
    create_run,
    differing_keys,
    discard_new,
    may_change,
    plan_run,
)
from workbench.runs.environment import Surroundings, look_around
from workbench.runs.job_file import JOB_VARIABLE, JobFile, this_host, write_job_file
from workbench.runs.layout import RunFolder
from workbench.runs.lock import take_lock
from workbench.runs.outcome import Outcome, write_outcome

NOTHING = Surroundings({"time": 0.0}, b"")


def resolved(*settings: str) -> ResolvedConfig:
    return resolve("demo", overrides=parse_overrides(list(settings)))


def made(root: Path, *settings: str, template: str = "{{ messages }}") -> RunFolder:
    config = resolved(*settings)
    planned = plan_run(config, root)
    return create_run(config, planned, template=template, surroundings=NOTHING)


def ran(run: RunFolder, attempt: int = 1, job: str = "demo-1-aaaaaa") -> None:
    """Leave what an attempt leaves."""
    write_job_file(
        run.job,
        JobFile(job=job, attempt=attempt, host="h", boot_id="b", socket="/s", pid=1, start_time=1),
    )


def test_a_new_run_holds_every_key_and_who_stated_it(tmp_path: Path) -> None:
    run = made(tmp_path, "optimizer.learning_rate=0.25")
    assert run.path == tmp_path / "demo-1"
    config = read_resolved(run.config)
    assert config.optimizer.learning_rate == 0.25
    assert config.training.output_dir == str(run.path)
    origins = json.loads(run.origins.read_bytes())
    assert (origins["config"], Path(origins["file"]).name) == ("demo", "demo.yaml")
    rate = origins["leaves"]["optimizer.learning_rate"]
    assert rate["value"] == 0.25
    assert (rate["source"], rate["file"]) == ("key=value", None)
    assert [Path(old["file"]).name for old in rate["overrode"]] == ["demo.yaml", "training.yaml"]
    assert run.chat_template.read_text() == "{{ messages }}"
    assert not run.git_diff.exists()


def test_numbers_go_up_and_are_not_used_again(tmp_path: Path) -> None:
    assert made(tmp_path).name == "demo-1"
    assert made(tmp_path).name == "demo-2"
    (tmp_path / "demo-7").mkdir()
    (tmp_path / "demo-x").mkdir()
    assert made(tmp_path).name == "demo-8"


def test_a_start_that_fails_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved()
    planned = plan_run(config, tmp_path)
    whole = create.write_atomically

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == "environment.json":
            raise OSError(28, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(create, "write_atomically", full_disk)
    with pytest.raises(RunError, match="No space left"):
        create_run(config, planned, template="", surroundings=NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds no run"):
        plan_run(resolved(f"training.output_dir={tmp_path / 'mine'}"), tmp_path)
    with pytest.raises(RunError, match="is no folder"):
        plan_run(resolved(f"training.output_dir={tmp_path / 'mine/thesis.tex'}/run"), tmp_path)


def test_a_link_that_leads_nowhere_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(RunError, match="a link that leads nowhere"):
        plan_run(resolved(f"training.output_dir={tmp_path / 'link'}"), tmp_path)


def test_a_path_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9"))
    with pytest.raises(RunError, match="is not UTF-8") as raised:
        plan_run(resolved(), odd)
    str(raised.value).encode()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        plan_run(resolved(), tmp_path)


def test_the_model_is_never_written_into(tmp_path: Path) -> None:
    model = resolved().config.model.path
    with pytest.raises(RunError, match="the model it begins with"):
        plan_run(resolved(f"training.output_dir={model}/run"), tmp_path)


def test_only_what_says_how_a_run_goes_on_may_change() -> None:
    for key in ("memory.budget_gib", "checkpoints.keep", "training.max_steps", "logging.name"):
        assert may_change(key), key
    for key in ("batch.train", "batch.microbatches_", "training.seed", "model.path", "memoryx.a"):
        assert not may_change(key), key
    assert may_change("batch.microbatches")
    earlier, later = resolved().config, resolved("training.seed=7", "checkpoints.keep=9").config
    assert list(differing_keys(earlier, later)) == ["checkpoints.keep", "training.seed"]
    assert list(differing_keys(earlier, earlier)) == []


def test_a_later_attempt_keeps_the_earlier_config(tmp_path: Path) -> None:
    run = made(tmp_path)
    ran(run)
    before = run.config.read_bytes()
    here = f"training.output_dir={run.path}"
    same = plan_run(resolved(here), tmp_path)
    assert (same.attempt, same.is_new, same.changed) == (2, False, ())
    made(tmp_path, here, "checkpoints.keep=1")
    assert run.earlier_config(1).read_bytes() == before
    assert read_resolved(run.config).checkpoints.keep == 1


def test_another_config_is_refused_by_key_and_changes_nothing(tmp_path: Path) -> None:
    run = made(tmp_path)
    ran(run)
    before = sorted(run.path.iterdir())
    with pytest.raises(RunError, match=r"training\.seed was 42, is 7") as raised:
        made(tmp_path, f"training.output_dir={run.path}", "training.seed=7", "checkpoints.keep=1")
    assert "checkpoints" not in raised.value.what
    assert sorted(run.path.iterdir()) == before


def test_a_changed_template_is_another_config(tmp_path: Path) -> None:
    run = made(tmp_path)
    ran(run)
    with pytest.raises(RunError, match=r"data\.chat_template"):
        made(tmp_path, f"training.output_dir={run.path}", template="{{ other }}")


def test_a_folder_in_which_nothing_ran_takes_any_config(tmp_path: Path) -> None:
    run = made(tmp_path)
    made(tmp_path, f"training.output_dir={run.path}", "training.seed=7", template="new")
    assert read_resolved(run.config).training.seed == 7
    assert not run.earlier_config(0).exists()


def test_a_finished_run_is_started_only_for_more(tmp_path: Path) -> None:
    run = made(tmp_path, "training.max_steps=10")
    ran(run)
    write_outcome(run.outcome, Outcome(attempt=1, state="finished", step=10, time=1.0))
    here = f"training.output_dir={run.path}"
    for too_little in ("training.max_steps=10", "training.max_steps=5"):
        with pytest.raises(RefusedError, match="finished at step 10"):
            plan_run(resolved(here, too_little), tmp_path)
    assert plan_run(resolved(here, "training.max_steps=11"), tmp_path).changed == (
        "training.max_steps",
    )
    assert plan_run(resolved(here, "training.max_steps=null"), tmp_path).attempt == 2


def test_a_running_job_is_named_in_the_refusal(tmp_path: Path) -> None:
    run = made(tmp_path)
    ran(run)
    held = take_lock(run.lock)
    assert held is not None
    with pytest.raises(RefusedError, match="job demo-1-aaaaaa is running"):
        plan_run(resolved(f"training.output_dir={run.path}"), tmp_path)
    held.release()
    assert plan_run(resolved(f"training.output_dir={run.path}"), tmp_path).attempt == 2


def test_left_over_processes_of_a_lost_job_keep_a_start_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path)
    ran(run)
    job_file = msgspec.json.decode(run.job.read_bytes(), type=JobFile)
    write_job_file(run.job, msgspec.structs.replace(job_file, host=this_host()))
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env=os.environ | {JOB_VARIABLE: job_file.job},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        with pytest.raises(RefusedError, match=f"still there: {rank.pid}"):
            plan_run(resolved(f"training.output_dir={run.path}"), tmp_path)
        rank.communicate(b"\n")


def test_of_two_starts_in_one_new_folder_the_second_is_refused(tmp_path: Path) -> None:
    config = resolved(f"training.output_dir={tmp_path / 'run'}")
    planned = plan_run(config, tmp_path)
    run = create_run(config, planned, template="first", surroundings=NOTHING)
    with pytest.raises(RefusedError, match="another start"):
        create_run(config, planned, template="second", surroundings=NOTHING)
    assert run.chat_template.read_text() == "first"
    assert list(tmp_path.iterdir()) == [run.path]


def test_a_folder_that_a_supervisor_has_taken_is_not_discarded(tmp_path: Path) -> None:
    run = made(tmp_path)
    held = take_lock(run.lock)
    assert held is not None
    discard_new(run)
    assert run.config.exists()
    held.release()
    discard_new(run)
    assert not run.path.exists()


def test_only_a_folder_in_which_nothing_ran_is_discarded(tmp_path: Path) -> None:
    run, other = made(tmp_path), made(tmp_path)
    ran(other)
    discard_new(run)
    discard_new(other)
    assert not run.path.exists()
    assert other.config.exists()


def test_surroundings_tell_versions_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    told = look_around(tmp_path)
    assert told.environment["variables"].items() >= {("NCCL_DEBUG", "INFO")}  # type: ignore[attr-defined]
    assert "hush" not in json.dumps(told.environment)
    assert told.environment["versions"]["torch"]  # type: ignore[index]
    assert told.environment["git"] is None
    assert told.git_diff == b""


def test_surroundings_tell_what_a_dirty_tree_holds(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "config.yaml").write_text("a: 1\n")
    git("add", ".")
    git("commit", "-m", "one")
    clean = look_around(tmp_path)
    assert clean.environment["git"]["dirty"] == []  # type: ignore[index]
    assert clean.git_diff == b""
    (tmp_path / "config.yaml").write_text("a: 2\n")
    dirty = look_around(tmp_path)
    assert b"+a: 2" in dirty.git_diff
    assert dirty.num_dirty_files == 1
