"""``workbench control``: see and steer jobs, answered with the outcome, never with the receipt.

Invariant: no verb here changes a job unless its name says so, and an interrupted one leaves the job
alone.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArgumentParser, examples_text
from workbench.cli.follow import attempt_of, write_record
from workbench.cli.narration import (
    event_line,
    measured,
    metrics_line,
    peak,
    size,
    span,
)
from workbench.control.messages import (
    Abort,
    AnyResult,
    Command,
    CommandName,
    Done,
    Ended,
    Evaluate,
    Evaluated,
    Failed,
    Held,
    Pause,
    Resume,
    Save,
    Saved,
    Status,
    Stop,
    Subscribed,
)
from workbench.errors import ControlError, RefusedError
from workbench.jobs.cleanup import Tidied, clean_up, plan_cleanup
from workbench.jobs.connection import JobConnection
from workbench.jobs.follow import (
    EndedUpdate,
    EventUpdate,
    LinkUpdate,
    LogUpdate,
    MetricsUpdate,
    StatusUpdate,
)
from workbench.jobs.link import link_to, request_status
from workbench.runs.catalog import last_metrics, summarise
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import utilization_words
from workbench.runs.registry import JobEntry, find_job, latest_entries, liveness

COMMANDS: dict[CommandName, str] = {
    "save": "write a checkpoint at the next step boundary",
    "evaluate": "evaluate at the next step boundary; training is unchanged by it",
    "pause": "hold at the next step boundary; memory stays taken",
    "resume": "go on after a pause",
    "stop": "save at the next step boundary, then end",
    "abort": "end every process of the job now; nothing is saved",
}

EXAMPLES = (
    ("control list", "the jobs of this user, with their ids"),
    ("control status demo-1", "where one stands, by the name of its run"),
    ("control stop demo-1", "save, then end it"),
)

REFUSALS = frozenset({"stopping", "not_paused", "not_rank_0", "protocol", "ended"})

_STATUS_SECONDS = 2.0
_JOB_WIDTH = 34


def run(arguments: list[str]) -> int:
    """Run one of the control verbs."""
    options = _parser().parse_args(arguments)
    match options.verb:
        case "list":
            return _list(as_json=options.json)
        case "status":
            return _status(find_job(options.job), as_json=options.json)
        case "watch":
            return asyncio.run(_watch(find_job(options.job), as_json=options.json))
        case "cleanup":
            return _clean_up(dry_run=options.dry_run, as_json=options.json)
        case _:
            return _command(options)


def _parser() -> argparse.ArgumentParser:
    parser = ConfigArgumentParser(
        prog="workbench control",
        description="See and steer jobs: each verb answers with the outcome.",
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, line: str, *, takes_job: bool = True) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=line, description=line, allow_abbrev=False)
        if takes_job:
            verb.add_argument(
                "job", metavar="JOB", help="job id or its beginning, run name, or run folder"
            )
        verb.add_argument("--json", action="store_true", help="for machines")
        return verb

    add("list", "list running and ended jobs", takes_job=False)
    add("status", "show where a job stands")
    add("watch", "print a line for each event until the job ends")
    for name, line in COMMANDS.items():
        verb = add(name, line)
        if name == "stop":
            verb.add_argument("--no-save", action="store_true", help="end without a checkpoint")
        if name == "abort":
            verb.add_argument("--force", action="store_true", help="do not ask")
    tidy = add("cleanup", "end what is left of lost jobs, drop what has ended", takes_job=False)
    tidy.add_argument("--dry-run", action="store_true", help="list only")
    return parser


# ---- list and status ----------------------------------------------------------------------------


def _list(*, as_json: bool) -> int:
    facts = [_facts(entry) for entry in latest_entries()]
    if as_json:
        output.result_json(facts)
        return 0
    if not facts:
        output.narrate("no jobs yet; start one: workbench train -t CONFIG")
        return 0
    rows = [["job", "state", "step", "age", "host"]]
    rows += [
        [
            shortened(str(each["job"]), _JOB_WIDTH),
            str(each["state"]),
            _step_of(each),
            span(time.time() - each["started"]) if each["started"] is not None else "-",
            shortened(str(each["host"]), 16),
        ]
        for each in facts
    ]
    for line in output.columns(rows, right=(2, 3)):
        output.result(line)
    return 0


def shortened(text: str, width: int) -> str:
    """Cut a text in its middle so that it fits: the end of a job id tells it from others."""
    if len(text) <= width:
        return text
    tail = width // 2
    return f"{text[: width - tail - 1]}…{text[-tail:]}"


def _step_of(facts: dict[str, Any]) -> str:
    of = facts["max_steps"]
    return f"{facts['step']}/{of}" if of is not None else str(facts["step"])


def _status(entry: JobEntry, *, as_json: bool) -> int:
    facts = _facts(entry)
    if as_json:
        output.result_json(facts)
    else:
        for line in _status_lines(facts):
            output.result(line)
    if facts["is_silent_supervisor"]:
        output.narrate("its supervisor lives but does not answer; shown from the run's files")
        return ControlError.exit_status
    return 0


def _facts(entry: JobEntry) -> dict[str, Any]:
    """Collect what is known of a job: from its files, and from its supervisor where it answers."""
    summary = summarise(entry.folder)
    job_of_folder = summary.job.job if summary.job is not None else None
    is_alive = liveness(entry) == "alive"
    status = _asked(entry) if is_alive else None
    state: str | None = status.state if status is not None else summary.state
    if job_of_folder != entry.job and status is None:
        # The folder is gone or was started again elsewhere: all that is left is the entry.
        state = "lost" if liveness(entry) == "lost" else state
    metrics = last_metrics(entry.folder)
    step = status.step if status is not None else summary.step
    max_steps = status.max_steps if status is not None else summary.max_steps
    facts: dict[str, Any] = {
        "job": entry.job,
        "run": entry.run,
        "state": state or "unknown",
        "reason": summary.reason,
        "message": summary.message,
        "step": step,
        "max_steps": max_steps,
        "attempt": entry.attempt,
        "host": entry.host,
        # Zero stands for a run folder that is gone.
        "started": summary.started or None,
        "since": status.since if status is not None else summary.since or None,
        "idle_seconds": status.idle_seconds if status is not None else None,
        "pending": msgspec.to_builtins(status.pending) if status is not None else [],
        "checkpoint": status.checkpoint if status is not None else summary.checkpoint,
        "loss": metrics.loss if metrics is not None else None,
        "learning_rate": metrics.learning_rate if metrics is not None else None,
        "tokens_per_second": metrics.tokens_per_second if metrics is not None else None,
        "mfu": metrics.mfu if metrics is not None else None,
        "peak_gpu_bytes": metrics.peak_gpu_bytes if metrics is not None else [],
        "peak_host_bytes": metrics.peak_host_bytes if metrics is not None else [],
        "eta_seconds": None,
        "is_silent_supervisor": is_alive and status is None,
    }
    if metrics is not None and status is not None and max_steps is not None:
        facts["eta_seconds"] = max(0, max_steps - step) * metrics.step_seconds
    return facts


def _asked(entry: JobEntry) -> Status | None:
    try:
        return request_status(entry, seconds=_STATUS_SECONDS)
    except ControlError:
        return None


def _status_lines(facts: dict[str, Any]) -> list[str]:
    now = time.time()
    state = str(facts["state"])
    if facts["reason"]:
        state += f"({facts['reason']})"
    if facts["since"] is None:
        state += "; its run folder is gone"
    else:
        state += f" for {span(now - facts['since'])}"
    rows = [
        ["job", str(facts["job"])],
        ["state", state],
        ["step", _step_of(facts)],
    ]
    if facts["message"]:
        rows.append(["message", facts["message"]])
    if facts["idle_seconds"] is not None:
        rows.append(["idle", f"{facts['idle_seconds']:.1f} s"])
    metrics = last_metrics(RunFolder(facts["run"]))
    if metrics is not None:
        rows += [
            ["loss", measured(metrics.loss)],
            ["rate", f"{metrics.learning_rate:.3g}"],
            ["speed", f"{metrics.tokens_per_second:,.0f} tokens/s"],
            ["peak", peak(metrics)],
        ]
        if used := utilization_words(metrics):
            rows.append(["used", used])
    if facts["eta_seconds"] is not None:
        rows.append(["ETA", span(facts["eta_seconds"])])
    rows += [
        [f"command {each['command']}", f"{each['name']} for {span(now - each['since'])}"]
        for each in facts["pending"]
    ]
    if facts["checkpoint"] is not None:
        rows.append(["checkpoint", str(facts["checkpoint"])])
    rows += [
        ["attempt", str(facts["attempt"])],
        ["host", str(facts["host"])],
        ["run", str(facts["run"])],
    ]
    return output.columns(rows)


# ---- watch --------------------------------------------------------------------------------------


async def _watch(entry: JobEntry, *, as_json: bool) -> int:
    """Print a line for each event, and for each metrics window from now on, until the end."""
    if entry.attempt and liveness(entry) == "elsewhere":
        output.narrate(f"the job runs on host {entry.host}; shown from its files")
    seen = last_metrics(entry.folder)
    known_step = (seen.attempt, seen.step) if seen is not None else (0, -1)
    connection = JobConnection(entry.folder, log_history_bytes=0)
    async with contextlib.aclosing(connection.updates()) as updates:
        async for update in updates:
            if attempt_of(update) not in (None, entry.attempt):
                continue
            if as_json:
                write_record(update)
            match update:
                case EventUpdate(event=event) if not as_json:
                    output.result(event_line(event))
                case MetricsUpdate(record=record) if not as_json:
                    if (record.attempt, record.step) > known_step:
                        output.result(metrics_line(record))
                case LinkUpdate(connected=False, reason=reason):
                    output.narrate(f"the supervisor does not answer: {reason}")
                case EndedUpdate(outcome=outcome):
                    if outcome.state == "lost" and not as_json:
                        output.result(f"lost: {outcome.message}")
                    return outcome.exit_status
                case EventUpdate() | MetricsUpdate() | LogUpdate() | StatusUpdate() | LinkUpdate():
                    pass
    raise AssertionError("the updates ended without an outcome")


# ---- commands -----------------------------------------------------------------------------------


def _command(options: argparse.Namespace) -> int:
    entry = find_job(options.job)
    name: CommandName = options.verb
    with link_to(entry.folder, entry) as link:
        if name == "abort" and not options.force:
            _ask_to_abort(entry)
        command = _message(options)
        answer = link.command(command)
        if isinstance(answer, Failed):
            return _tell_failed(entry, name, answer, as_json=options.json)
        output.narrate(f"{entry.job}: {name} accepted as command {answer.command}, {answer.when}")
        result = link.result(command)
    if isinstance(result, Failed):
        return _tell_failed(entry, name, result, as_json=options.json)
    return _tell_done(entry, name, result, as_json=options.json)


def _message(options: argparse.Namespace) -> Command:
    name: CommandName = options.verb
    match name:
        case "save":
            return Save(id=1)
        case "evaluate":
            return Evaluate(id=1)
        case "pause":
            return Pause(id=1)
        case "resume":
            return Resume(id=1)
        case "stop":
            return Stop(id=1, save=not options.no_save)
        case "abort":
            return Abort(id=1)
        case _:
            assert_never(name)


def _ask_to_abort(entry: JobEntry) -> None:
    """Ask before work is thrown away.

    Raises:
        RefusedError: the answer was not yes, or there is nobody to ask.
    """
    summary = summarise(entry.folder)
    newest = summary.checkpoint or "no checkpoint"
    if not sys.stdin.isatty():
        raise RefusedError(
            "nobody is there to be asked", where=entry.job, remedy="add --force to abort it"
        )
    output.narrate(f"{entry.job}: everything after {newest} will be lost. Type yes to abort:")
    if sys.stdin.readline().strip().lower() != "yes":
        raise RefusedError("not aborted", where=entry.job, remedy="answer yes, or add --force")


def _tell_failed(entry: JobEntry, name: str, failed: Failed, *, as_json: bool) -> int:
    if as_json:
        output.result_record(failed)
    output.narrate(f"{entry.job}: {name} failed ({failed.reason}): {failed.message}")
    if failed.remedy:
        output.narrate(failed.remedy)
    return RefusedError.exit_status if failed.reason in REFUSALS else 1


def _tell_done(entry: JobEntry, name: str, done: Done, *, as_json: bool) -> int:
    if as_json:
        output.result_record(done)
    else:
        output.result(f"{entry.job}: {_in_words(entry.folder, done.result)}")
    ended_badly = isinstance(done.result, Ended) and done.result.state == "failed"
    return 1 if ended_badly and name == "stop" else 0


def _in_words(run_folder: RunFolder, result: AnyResult) -> str:
    match result:
        case Saved():
            return (
                f"saved {run_folder.path / result.path} at step {result.step}: "
                f"{size(result.bytes)} in {result.seconds:.1f} s"
            )
        case Evaluated():
            return (
                f"evaluated at step {result.step}: loss {measured(result.loss)} over "
                f"{result.tokens:,} target tokens in {result.seconds:.1f} s"
            )
        case Held(paused=True):
            return f"paused at step {result.step}; its memory stays taken"
        case Held():
            return f"goes on at step {result.step}"
        case Ended():
            told = f"{result.state} at step {result.step}"
            if result.checkpoint is not None:
                told += f", newest checkpoint {run_folder.path / result.checkpoint}"
            return told + (f", {result.killed} processes killed" if result.killed else "")
        case Subscribed():
            return "subscribed"
        case _:
            assert_never(result)


# ---- cleanup ------------------------------------------------------------------------------------


def _clean_up(*, dry_run: bool, as_json: bool) -> int:
    planned = plan_cleanup()
    done = planned if dry_run else [clean_up(each) for each in planned]
    if as_json:
        output.result_json([_tidied_json(each) for each in done])
    else:
        _tell_tidied(done, dry_run=dry_run)
    return 1 if any(each.problem is not None for each in done) else 0


def _tell_tidied(done: Sequence[Tidied], *, dry_run: bool) -> None:
    for each in done:
        if each.action == "keep":
            continue
        words = f"{each.entry.job}: {each.liveness}"
        if each.processes:
            words += f", processes {', '.join(str(pid) for pid in each.processes)}"
        if each.problem is not None:
            output.narrate(f"{words}: {each.problem}")
        else:
            output.result(f"{words}: {'would be dropped' if dry_run else 'dropped'}")
    num_kept = sum(each.action == "keep" for each in done)
    output.narrate(f"{num_kept} kept: alive, or of other hosts")


def _tidied_json(each: Tidied) -> dict[str, object]:
    return {
        "job": each.entry.job,
        "run": each.entry.run,
        "host": each.entry.host,
        "liveness": each.liveness,
        "action": each.action,
        "processes": list(each.processes),
        "problem": each.problem,
    }
