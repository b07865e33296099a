"""A resolved config becomes a run folder, or one more attempt of a run.

``plan_run`` decides and writes nothing; ``create_run`` writes. A new folder is written beside and
renamed into its place, so that no mistake leaves half of one. Invariant: a run keeps one config;
only what says how it goes on may change between attempts.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workbench.config.load import ResolvedConfig, dump_config, read_resolved
from workbench.config.problems import ConfigProblems
from workbench.config.schema.config import Config
from workbench.errors import RefusedError, RunError
from workbench.runs.atomic import sync_folder, write_atomically
from workbench.runs.environment import Surroundings
from workbench.runs.job_file import last_attempt, processes_of, read_job_file, this_host
from workbench.runs.layout import RunFolder
from workbench.runs.lock import is_locked, take_lock
from workbench.runs.registry import readable_outcome

MAY_CHANGE = (
    "memory",
    "pipeline",
    "evaluation",
    "logging",
    "checkpoints",
    "samples",
    "batch.microbatches",
    "training.engine",
    "training.device",
    "training.epochs",
    "training.max_steps",
    # Neither says what is learned: a line for people, and where the folder lies.
    "description",
    "training.output_dir",
)
"""Keys and sections that say how a run goes on, and may differ between its attempts."""

BEFORE_LAUNCH = frozenset(
    {
        "config.yaml",
        "origins.json",
        "environment.json",
        "git.diff",
        "chat_template.jinja",
        "command.json",
        "lock",
        "supervisor.log",
    }
)
"""What a folder may hold in which no process has run yet."""


@dataclass(frozen=True)
class PlannedRun:
    """Where a start would go.

    Attributes:
        folder: the run folder; a numbered one is drawn anew when it is written.
        root: the folder in which numbered run folders lie, None where the folder was named.
        attempt: number of the attempt, from 1.
        is_new: there is no run in the folder yet.
        changed: keys that differ from the earlier attempt's config.
    """

    folder: RunFolder
    root: Path | None
    attempt: int
    is_new: bool
    changed: tuple[str, ...] = ()


def plan_run(resolved: ResolvedConfig, output_root: Path) -> PlannedRun:
    """Decide in which folder a start goes, as which attempt; write nothing.

    Args:
        resolved: the config; ``training.output_dir`` names the folder.
        output_root: where a numbered folder is made if it names none.

    Raises:
        RunError: the folder cannot be written, holds something else, or another config's run.
        RefusedError: a job is running there, or the run has finished and no more is asked for.
    """
    _check_can_be_written_down(resolved, output_root)
    named = resolved.config.training.output_dir
    if named is None:
        _check_writable(output_root)
        folder = RunFolder(output_root / _numbered(resolved.name, output_root))
        return PlannedRun(folder, output_root, attempt=1, is_new=True)
    folder = RunFolder(named)
    _check_not_the_model(folder, resolved.config)
    _check_writable(folder.path)
    if not folder.path.is_dir() or not any(folder.path.iterdir()):
        return PlannedRun(folder, None, attempt=1, is_new=True)
    if not folder.config.is_file():
        raise RunError(
            "the folder is not empty and holds no run",
            where=str(folder.path),
            remedy="name another folder: --output-dir DIR",
        )
    check_not_running(folder)
    attempt = last_attempt(folder) + 1
    if attempt == 1:
        # Written by --dry-run, say: nothing has been learned that another config could contradict.
        return PlannedRun(folder, None, attempt=1, is_new=False)
    earlier = _earlier_config(folder)
    changed = tuple(differing_keys(earlier, resolved.config))
    refused = [key for key in changed if not may_change(key)]
    if refused:
        raise RunError(
            f"the run in this folder was made with another {', '.join(refused)}: "
            + "; ".join(_difference(key, earlier, resolved.config) for key in refused),
            where=str(folder.path),
            remedy="start in another folder (--output-dir DIR), or with the values it was made "
            "with",
        )
    _check_not_finished(folder, earlier, resolved.config)
    # Where the folder lies is no difference that a later reader should find.
    worth_telling = tuple(key for key in changed if key != "training.output_dir")
    return PlannedRun(folder, None, attempt=attempt, is_new=False, changed=worth_telling)


def create_run(
    resolved: ResolvedConfig,
    planned: PlannedRun,
    *,
    template: str,
    surroundings: Surroundings,
) -> RunFolder:
    """Write the run folder up to, but without, ``command.json``.

    Args:
        resolved: the config.
        planned: by ``plan_run``, with the same config.
        template: source of the chat template.
        surroundings: versions, GPUs and git state.

    Raises:
        RunError: the folder cannot be written; nothing of a new one is left.
        RefusedError: a job has been started there meanwhile.
    """
    try:
        if planned.is_new:
            return _create_new(resolved, planned, template, surroundings)
        return _create_attempt(resolved, planned, template, surroundings)
    except OSError as error:
        raise _unwritable(planned.folder.path, error) from error


def discard_new(run: RunFolder) -> None:
    """Remove a run folder in which nothing has run; one that holds anything else is left.

    So is one whose lock is held: another start has taken it meanwhile.
    """
    try:
        lock = take_lock(run.lock)
        if lock is None:
            return
        try:
            names = {path.name for path in run.path.iterdir()}
            if names <= BEFORE_LAUNCH:
                for name in names:
                    (run.path / name).unlink()
                run.path.rmdir()
        finally:
            lock.release()
    except OSError:
        return


def differing_keys(earlier: Config, later: Config) -> Iterator[str]:
    """Give every key, as ``section.key``, whose value differs, in the order of the schema."""
    before, after = _leaves(earlier), _leaves(later)
    for key in dict.fromkeys([*after, *before]):
        if before.get(key, ...) != after.get(key, ...):
            yield key


def may_change(key: str) -> bool:
    """Tell whether a key may differ between the attempts of one run."""
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def check_not_running(run: RunFolder) -> None:
    """Make sure that no process of an earlier start is at work in a run folder.

    Raises:
        RefusedError: a supervisor holds the lock, or processes of a lost job are left.
    """
    try:
        job_file = read_job_file(run.job)
    except RunError:
        job_file = None
    job = job_file.job if job_file is not None else "another job"
    if is_locked(run.lock):
        raise RefusedError(
            f"job {job} is running in this folder",
            where=str(run.path),
            remedy=f"wait for its end, or stop it: workbench control stop {job}",
        )
    if job_file is not None and job_file.host == this_host() and (left := processes_of(job)):
        listed = ", ".join(str(pid) for pid in left)
        raise RefusedError(
            f"job {job} lost its supervisor, but its processes are still there: {listed}",
            where=str(run.path),
            remedy="wait until they have saved and ended, or end them: workbench control cleanup",
        )


# ---- writing ------------------------------------------------------------------------------------


def _create_new(
    resolved: ResolvedConfig, planned: PlannedRun, template: str, surroundings: Surroundings
) -> RunFolder:
    run = _reserve(resolved, planned)
    beside = run.path.with_name(f".{run.name}.{os.getpid()}")
    try:
        beside.mkdir()
        for name, content in _contents(resolved, run, template, surroundings).items():
            write_atomically(beside / name, content)
        # Onto the empty folder that was reserved: rename replaces it in one step.
        try:
            beside.rename(run.path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise RefusedError(
                "another start has taken the folder meanwhile",
                where=str(run.path),
                remedy="wait for its end, or name another folder: --output-dir DIR",
            ) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.path.rmdir()
        raise
    sync_folder(run.path.parent)
    return run


def _reserve(resolved: ResolvedConfig, planned: PlannedRun) -> RunFolder:
    """Make the folder, empty; of two who start at once each gets one of their own."""
    if planned.root is None:
        planned.folder.path.mkdir(parents=True, exist_ok=True)
        return planned.folder
    planned.root.mkdir(parents=True, exist_ok=True)
    while True:
        run = RunFolder(planned.root / _numbered(resolved.name, planned.root))
        try:
            run.path.mkdir()
        except FileExistsError:
            continue
        return run


def _create_attempt(
    resolved: ResolvedConfig, planned: PlannedRun, template: str, surroundings: Surroundings
) -> RunFolder:
    run = planned.folder
    check_not_running(run)
    kept = run.chat_template.read_text(encoding="utf-8") if run.chat_template.is_file() else None
    if kept is not None and kept != template and planned.attempt > 1:
        raise RunError(
            "the chat template has changed since the run was made (data.chat_template)",
            where=str(run.chat_template),
            remedy="start in another folder, or name the run's own: "
            f"--chat-template {run.chat_template}",
        )
    if planned.changed:
        write_atomically(run.earlier_config(planned.attempt - 1), run.config.read_bytes())
    contents = _contents(resolved, run, template, surroundings)
    for name, content in contents.items():
        write_atomically(run.path / name, content)
    if run.git_diff.name not in contents:
        run.git_diff.unlink(missing_ok=True)
    return run


def _contents(
    resolved: ResolvedConfig, run: RunFolder, template: str, surroundings: Surroundings
) -> Mapping[str, bytes]:
    training = msgspec.structs.replace(resolved.config.training, output_dir=str(run.path))
    config = msgspec.structs.replace(resolved.config, training=training)
    contents = {
        run.config.name: dump_config(config).encode(),
        run.origins.name: _as_json(origins_of(resolved)),
        run.environment.name: _as_json(surroundings.environment),
        run.chat_template.name: template.encode(),
    }
    if surroundings.git_diff:
        contents[run.git_diff.name] = surroundings.git_diff
    return contents


def origins_of(resolved: ResolvedConfig) -> dict[str, object]:
    """Give the content of origins.json: for every leaf who states it and what it overrode."""

    def told(value: object, source: str, file: Path | None, line: int | None) -> dict[str, object]:
        where = str(file) if file is not None else None
        return {"value": value, "source": source, "file": where, "line": line}

    leaves: dict[str, object] = {}
    for key, leaf in resolved.leaves.items():
        origin = leaf.origin
        leaves[key] = told(leaf.value, origin.source, origin.file, origin.line) | {
            "overrode": [
                told(old.value, old.origin.source, old.origin.file, old.origin.line)
                for old in leaf.overrode
            ]
        }
    return {"config": resolved.name, "file": str(resolved.file), "leaves": leaves}


# ---- small things -------------------------------------------------------------------------------


def _numbered(config_name: str, root: Path) -> str:
    """Give the next free name: one more than the highest number that is there."""
    stem = re.sub(r"[^\w.+-]+", "-", config_name.rsplit("/", 1)[-1]).lstrip(".-") or "run"
    pattern = re.compile(re.escape(stem) + r"-(\d{1,9})")
    numbers = [0]
    if root.is_dir():
        for path in root.iterdir():
            if match := pattern.fullmatch(path.name):
                numbers.append(int(match.group(1)))
    return f"{stem}-{max(numbers) + 1}"


def _check_writable(folder: Path) -> None:
    """Look whether a folder, or the nearest one above it that exists, takes new files."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        if nearest.is_symlink():
            raise RunError(
                f"{nearest} is a link that leads nowhere",
                where=f"output folder {folder}",
                remedy="remove the link, or name another folder: --output-dir DIR",
            )
        nearest = nearest.parent
    if not nearest.is_dir():
        raise RunError(
            f"{nearest} is no folder",
            where=f"output folder {folder}",
            remedy="name another folder: --output-dir DIR",
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(
            f"{nearest} cannot be written",
            where=f"output folder {folder}",
            remedy="name another folder (--output-dir DIR), or change its permissions",
        )


def _check_can_be_written_down(resolved: ResolvedConfig, output_root: Path) -> None:
    """Make sure that every path is text: what a run writes down is UTF-8, names may be anything."""
    paths = {"config": resolved.file, "folder": output_root}
    for name, value in (paths | _leaves(resolved.config)).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            told = os.fsencode(str(value)).decode("utf-8", errors="replace")
            raise RunError(
                "is not UTF-8 in this locale, so it cannot be written down",
                where=f"{name} {told}",
                remedy="rename it, or set a locale of UTF-8, such as LC_ALL=C.UTF-8",
            ) from None


def _check_not_the_model(run: RunFolder, config: Config) -> None:
    if config.model.path is None:
        return
    model, output = Path(config.model.path).resolve(), run.path.resolve()
    if output == model or model in output.parents:
        raise RunError(
            "the run would be written into the model it begins with",
            where=f"output folder {run.path}",
            remedy="name another folder: --output-dir DIR",
        )


def _earlier_config(run: RunFolder) -> Config:
    try:
        return read_resolved(run.config)
    except ConfigProblems as error:
        raise RunError(
            f"the config of the run cannot be read: {error.what}",
            where=str(run.config),
            remedy="start in another folder: --output-dir DIR",
        ) from error


def _check_not_finished(run: RunFolder, earlier: Config, later: Config) -> None:
    """Refuse to start a finished run unless more steps or epochs are asked for."""
    outcome = readable_outcome(run)
    if outcome is None or outcome.state != "finished" or later.checkpoints.resume == "no":
        return
    before, after = earlier.training, later.training
    is_longer = after.epochs > before.epochs or (
        before.max_steps is not None
        and (after.max_steps is None or after.max_steps > before.max_steps)
    )
    if not is_longer or (after.max_steps is not None and after.max_steps <= outcome.step):
        raise RefusedError(
            f"the run has finished at step {outcome.step}",
            where=str(run.path),
            remedy="ask for more: training.max_steps=N or training.epochs=N; or start in another "
            "folder",
        )


def _difference(key: str, earlier: Config, later: Config) -> str:
    missing = "nothing"
    before, after = _leaves(earlier).get(key, missing), _leaves(later).get(key, missing)
    return f"{key} was {before}, is {after}"


def _leaves(config: Config) -> dict[str, object]:
    found: dict[str, object] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else str(name))
        else:
            found[path] = value

    walk(msgspec.to_builtins(config), "")
    return found


def _as_json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        remedy="name another folder (--output-dir DIR), or change its permissions",
    )
