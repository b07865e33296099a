"""``workbench checkpoints``: list the checkpoints of a run, prove that they are whole, delete one.

Invariant: list and verify change no file; what is deleted was listed before, and somebody said yes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArgumentParser, examples_text, typed_path
from workbench.cli.narration import size
from workbench.errors import RefusedError, RunError, WorkbenchError
from workbench.jobs.model_worker import Progress, Verified, verify_logits
from workbench.runs.catalog import runs_under
from workbench.runs.checkpoint_facts import models_in_use, run_facts
from workbench.runs.checkpoints import (
    Checkpoint,
    list_checkpoints,
    newest_complete,
    read_best,
    read_tags,
)
from workbench.runs.discard import discard, plan_discard
from workbench.runs.layout import PARTIAL_SUFFIX, CheckpointFolder, RunFolder, step_of
from workbench.runs.lock import is_locked
from workbench.runs.manifest import verify
from workbench.runs.registry import latest_entries

EXAMPLES = (
    ("checkpoints list output/demo-1", "step, size, and which is the newest and the best"),
    ("checkpoints verify output/demo-1", "read every byte of all of them"),
    ("checkpoints verify ~/models/samantha --logits", "of a published model, compare logits too"),
    ("checkpoints delete output/demo-1/checkpoints/checkpoint-50", "list its files, ask, delete"),
)


def run(arguments: list[str]) -> int:
    """List, verify or delete."""
    options = _parser().parse_args(arguments)
    path = typed_path(options.path, "path")
    if not path.is_dir():
        raise RunError("no such folder", where=str(path), remedy="name a run or a checkpoint")
    if options.verb == "list":
        return _list(RunFolder(path), as_json=options.json)
    if options.verb == "delete":
        return _delete(path, is_agreed=options.yes, as_json=options.json)
    return _verify(path, with_logits=options.logits, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = ConfigArgumentParser(
        prog="workbench checkpoints",
        description="List the checkpoints of a run, prove that they are whole, delete one.",
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, line: str, metavar: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=line, description=line, allow_abbrev=False)
        verb.add_argument("path", metavar=metavar, type=Path, help="a folder")
        verb.add_argument("--json", action="store_true", help="for machines")
        return verb

    add("list", "list the checkpoints of a run", "RUN")
    verifier = add(
        "verify",
        "compare every byte with the hashes of when it was saved",
        "RUN|CHECKPOINT",
    )
    verifier.add_argument(
        "--logits", action="store_true", help="compare logits with those of transformers too"
    )
    deleter = add("delete", "remove a checkpoint of a run; asks before", "CHECKPOINT")
    deleter.add_argument("--yes", action="store_true", help="do not ask")
    return parser


# ---- list ----------------------------------------------------------------------------------------


def _list(run: RunFolder, *, as_json: bool) -> int:
    found = list_checkpoints(run)
    newest, best, tags = newest_complete(run), read_best(run), read_tags(run)
    facts: list[dict[str, Any]] = [
        {
            "step": each.step,
            "path": each.path,
            "bytes": each.bytes,
            "is_complete": each.is_complete,
            "problem": each.problem,
            "other_hosts": list(each.other_hosts),
            "is_newest": newest is not None and each.step == newest.step,
            "is_best": best is not None and each.step == best.step,
            "loss": best.loss if best is not None and each.step == best.step else None,
            "tags": tags.get(each.path.name, []),
        }
        for each in found
    ]
    if as_json:
        output.result_json(facts)
        return 0
    if not found:
        output.narrate(f"{run.path}: no checkpoints")
        return 0
    rows = [["step", "size", ""], *map(_row, facts)]
    for line in output.columns(rows, right=(0, 1)):
        output.result(line)
    return 0


def _row(facts: dict[str, Any]) -> list[str]:
    words = []
    if facts["problem"] is not None:
        words.append(f"not complete: {facts['problem']}")
    if facts["is_newest"]:
        words.append("newest")
    if facts["is_best"]:
        words.append(f"best (loss {facts['loss']:.4f})")
    if others := facts["other_hosts"]:
        words.append(f"parts of it on {', '.join(others)}")
    return [str(facts["step"]), size(facts["bytes"]), ", ".join([*words, *facts["tags"]])]


# ---- verify --------------------------------------------------------------------------------------


def _verify(path: Path, *, with_logits: bool, as_json: bool) -> int:
    results = [_verified(each, with_logits=with_logits) for each in _folders(path)]
    if as_json:
        output.result_json(results)
    else:
        for each in results:
            output.result(_line(each))
    return 0 if all(each["problem"] is None for each in results) else 1


def _folders(path: Path) -> list[Path]:
    """Give the folders that are meant: all checkpoints of a run, else the folder itself."""
    if step_of(path.resolve()) is not None or CheckpointFolder(path).manifest.is_file():
        return [path]
    found: list[Checkpoint] = list_checkpoints(RunFolder(path))
    if not found:
        raise RunError(
            "holds no checkpoint and no manifest",
            where=str(path),
            remedy="name a run, a checkpoint, or a model that `workbench finalize` has made",
        )
    return [each.path for each in found]


def _verified(folder: Path, *, with_logits: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"path": folder, "bytes": 0, "difference": None, "problem": None}
    output.passing(f"reading {folder} …")
    try:
        manifest = verify(folder)
        result |= {"bytes": manifest.total_bytes, "files": len(manifest.files)}
        if with_logits:
            result["difference"] = _difference(folder)
    except WorkbenchError as error:
        result["problem"] = error.what
    except OSError as error:
        result["problem"] = f"cannot be read: {error.strerror or error}"
    finally:
        output.passing("")
    return result


def _difference(folder: Path) -> float:
    difference = float("nan")
    for record in verify_logits(folder):
        match record:
            case Progress():
                output.passing(f"{record.stage} …")
            case Verified():
                difference = record.difference
    return difference


def _line(result: dict[str, Any]) -> str:
    if result["problem"] is not None:
        return f"{result['path']}: {result['problem']}"
    line = f"{result['path']}: whole, {size(result['bytes'])} in {result['files']} files"
    if result["difference"] is not None:
        line += f", logits as transformers' ({result['difference']:.0e})"
    return line


# ---- delete --------------------------------------------------------------------------------------


def _delete(path: Path, *, is_agreed: bool, as_json: bool) -> int:
    run = RunFolder(path.absolute().parent.parent)
    is_one = step_of(path.name.removesuffix(PARTIAL_SUFFIX)) is not None
    if not is_one or path.absolute().parent != run.checkpoints or not run.config.exists():
        raise RunError(
            "is no checkpoint in a run's folder",
            where=str(path),
            remedy="name one: RUN/checkpoints/checkpoint-STEP; a model is removed by hand",
        )
    if not is_agreed and not sys.stdin.isatty():
        raise RefusedError(
            "nobody is there to be asked",
            where=f"checkpoints delete {path}",
            remedy="add --yes to delete without a question",
        )
    plan = plan_discard(run, list(_in_use(run)), only=[path.absolute()])
    for reason in plan.spared.values():
        raise RefusedError(f"it {reason}", where=str(path), remedy="leave it, or end its use first")
    files = plan.files[path.absolute()]
    for line in output.columns(
        [[f"{held:,}", str(file)] for file, held in files.items()], right=(0,)
    ):
        output.narrate(f"goes  {line}")
    total = f"{len(files)} files, {plan.bytes:,} bytes ({size(plan.bytes)})"
    if not is_agreed:
        output.narrate(f"{total} will be removed. Type yes to remove them:")
        if sys.stdin.readline().strip().lower() != "yes":
            raise RefusedError("nothing was removed", where=str(path), remedy="answer yes")
    discard(plan)
    if as_json:
        output.result_json({"path": path, "files": len(files), "bytes": plan.bytes})
    else:
        output.result(f"removed {path}: {total}")
    return 0


def _in_use(run: RunFolder) -> dict[Path, str]:
    """Say what the runs of this user, and those beside this one, need."""
    runs = {run.path: run}
    for each in (*runs_under(run.path.parent), *(RunFolder(e.run) for e in latest_entries())):
        runs.setdefault(each.path, each)
    at_work = {path for path, each in runs.items() if is_locked(each.lock)}
    return models_in_use((run_facts(each) for each in runs.values()), at_work)
