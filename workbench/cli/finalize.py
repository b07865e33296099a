"""``workbench finalize``: publish a checkpoint as a model folder that other tools accept.

Invariant: at the destination there is nothing or a folder that was compared with the checkpoint;
what is discarded was listed before, and somebody said yes.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArgumentParser, examples_text, typed_path
from workbench.cli.narration import size
from workbench.errors import ConfigError, RefusedError, RunError
from workbench.jobs.model_worker import Notice, Progress, Published, publish
from workbench.jobs.publishing import GGUF_TYPES, check_place, models_of
from workbench.runs.checkpoints import Choice, checkpoint_folder, choose_checkpoint, run_of
from workbench.runs.discard import DiscardPlan, discard, plan_discard
from workbench.runs.layout import RunFolder, step_of

DESCRIPTION = """\
Publish a checkpoint: weights, tokenizer, chat template and a generation config with every token
that ends a reply; nothing of the training's own state. Hashes and logits are compared before the
folder gets its name.
"""

EXAMPLES = (
    ("finalize output/demo-1 ~/models/samantha", "the newest complete checkpoint of a run"),
    ("finalize output/demo-1 ~/models/samantha --best --gguf", "the best, for llama.cpp too"),
    ("finalize output/demo-1 ~/models/samantha --discard", "then throw its checkpoints away"),
)


def run(arguments: list[str]) -> int:
    """Publish, and discard where that is asked for."""
    options = _parser().parse_args(arguments)
    source = _Source.find(options)
    destination = typed_path(options.destination, "destination")
    protected = [destination, *source.models()]
    check_place(destination, [source.checkpoint, *source.shards, *source.models()], source.run)
    if options.discard:
        _check_can_discard(source, is_agreed=options.yes)
    made = _publish(source, destination, options.gguf)
    plan = None
    if options.discard:
        assert source.run is not None, "it was checked before"
        plan = plan_discard(source.run, protected)
        _discard(plan, is_agreed=options.yes)
    if options.json:
        output.result_json(_as_json(made, source, plan))
    else:
        for line in _lines(made):
            output.result(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ConfigArgumentParser(
        prog="workbench finalize",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN|CHECKPOINT", type=Path, help="what to publish")
    parser.add_argument("destination", metavar="DEST", type=Path, help="a folder to make")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--latest", action="store_true", help="the newest complete one (default)")
    which.add_argument("--best", action="store_true", help="the one with the lowest loss")
    which.add_argument("--step", type=_step, metavar="N", help="the one of a step")
    parser.add_argument(
        "--gguf",
        nargs="?",
        const="q8_0",
        choices=GGUF_TYPES,
        metavar="TYPE",
        help="also write a GGUF file and a Modelfile, for llama.cpp and Ollama: "
        f"{', '.join(GGUF_TYPES)}; default: q8_0",
    )
    parser.add_argument(
        "--shards",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="the same step as another host saved it, where each keeps its own shards; repeatable",
    )
    parser.add_argument(
        "--discard", action="store_true", help="then remove the run's checkpoints; asks before"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def _step(text: str) -> int:
    step = int(text)
    if step < 0:
        raise ValueError(text)
    return step


class _Source:
    """What is published: a checkpoint, and the run it belongs to where there is one."""

    def __init__(self, checkpoint: Path, run: RunFolder | None, shards: list[Path]) -> None:
        self.checkpoint, self.run, self.shards = checkpoint, run, shards

    @classmethod
    def find(cls, options: argparse.Namespace) -> "_Source":
        """Find it by what was typed.

        Raises:
            RunError: there is no such checkpoint, or it is not complete.
            ConfigError: a checkpoint was named, and which one of a run.
        """
        path = typed_path(options.source, "source")
        choice = _choice(options)
        if path.is_dir() and step_of(path.resolve()) is None and _is_run(path):
            checkpoint = choose_checkpoint(RunFolder(path), choice or "latest").path
        elif choice is None or (options.latest and path.is_dir()):
            checkpoint = checkpoint_folder(path)
        else:
            raise ConfigError(
                "is no run, so there is none to choose from",
                where=str(path),
                remedy="name the run, or leave out --best and --step",
            )
        step = step_of(checkpoint.resolve())
        shards = [_same_step(typed_path(each, "shards"), step) for each in options.shards]
        return cls(checkpoint, run_of(checkpoint), shards)

    def models(self) -> list[Path]:
        """Give the model that the run began with, where that can be told."""
        if self.run is None:
            return []
        return models_of(self.run)


def _choice(options: argparse.Namespace) -> Choice | None:
    if options.step is not None:
        return int(options.step)
    return "best" if options.best else "latest" if options.latest else None


def _is_run(path: Path) -> bool:
    run = RunFolder(path)
    return run.config.exists() or run.checkpoints.is_dir()


def _same_step(path: Path, step: int | None) -> Path:
    """Find another host's folder of a step: a checkpoint, or a run that has it."""
    if step is not None and path.is_dir() and step_of(path.resolve()) is None:
        return choose_checkpoint(RunFolder(path), step).path
    return checkpoint_folder(path)


# ---- publishing ----------------------------------------------------------------------------------


def _publish(source: _Source, destination: Path, gguf: str | None) -> Published:
    output.narrate(f"publishing {source.checkpoint}")
    made: Published | None = None
    try:
        for record in publish([source.checkpoint, *source.shards], destination, gguf):
            match record:
                case Progress():
                    output.passing(_progress_line(record))
                case Notice():
                    output.passing("")
                    output.narrate(f"note: {record.what}; {record.remedy}")
                case Published():
                    made = record
                case _:
                    assert_never(record)
    finally:
        output.passing("")
    assert made is not None, "a worker that ends well has published"
    return made


def _progress_line(progress: Progress) -> str:
    if not progress.total:
        return f"{progress.stage} …"
    return f"{progress.stage} {size(progress.done)} of {size(progress.total)}"


def _lines(made: Published) -> Iterator[str]:
    what = f"step {made.step}" if made.step is not None else "model"
    yield f"published {what}, {size(made.bytes)} in {len(made.files)} files: {made.path}"
    yield f"logits    equal the checkpoint's (difference {made.difference:.0e})"
    if made.reference_difference is not None:
        yield f"          and those of transformers ({made.reference_difference:.0e})"
    yield f"stops     {' '.join(map(str, made.stop_ids)) or 'none'}"
    if made.gguf is not None:
        yield f"gguf      {Path(made.path) / made.gguf}"
        yield f"ollama    cd {made.path} && ollama create {Path(made.path).name} -f Modelfile"
    yield f"try it    workbench serve -m {made.path}"


# ---- discarding ----------------------------------------------------------------------------------


def _check_can_discard(source: _Source, *, is_agreed: bool) -> None:
    if source.run is None:
        raise ConfigError(
            "is no checkpoint of a run, so there is nothing to discard",
            where=str(source.checkpoint),
            remedy="leave out --discard, or name the run",
        )
    if not is_agreed and not sys.stdin.isatty():
        raise RefusedError(
            "nobody is there to be asked",
            where="--discard",
            remedy="add --yes to discard without a question",
        )


def _discard(plan: DiscardPlan, *, is_agreed: bool) -> None:
    """List what goes, ask, and remove it.

    Raises:
        RefusedError: the answer was not yes, or a job is at work there.
    """
    for path, reason in plan.spared.items():
        output.narrate(f"stays  {path} {reason}")
    if not plan.files:
        output.narrate("nothing to discard")
        return
    rows = [
        [f"{found:,}", str(path)] for held in plan.files.values() for path, found in held.items()
    ]
    for line in output.columns(rows, right=(0,)):
        output.narrate(f"goes  {line}")
    num_files = sum(len(held) for held in plan.files.values())
    total = (
        f"{len(plan.files)} folders, {num_files} files, {plan.bytes:,} bytes ({size(plan.bytes)})"
    )
    if not is_agreed:
        output.narrate(f"{total} will be removed. Type yes to remove them:")
        if sys.stdin.readline().strip().lower() != "yes":
            raise RefusedError(
                "nothing was discarded; the model is published",
                where=str(plan.run.path),
                remedy="answer yes, or add --yes",
            )
    try:
        discard(plan)
    except OSError as error:
        raise RunError(
            f"cannot be removed: {error}", where=str(plan.run.checkpoints), remedy="remove by hand"
        ) from error
    output.narrate(f"removed {total}")


def _as_json(made: Published, source: _Source, plan: DiscardPlan | None) -> dict[str, object]:
    return {
        **{name: getattr(made, name) for name in made.__struct_fields__},
        "source": source.checkpoint,
        "discarded": None
        if plan is None
        else {
            "folders": [str(path) for path in plan.files],
            "bytes": plan.bytes,
            "spared": {str(path): reason for path, reason in plan.spared.items()},
        },
    }
