"""``workbench estimate``: will a config fit, what does it cost, and what makes it fit.

Needs a model's ``config.json``, or only its name, and neither torch nor a GPU. Invariant: exit
status 4 means that it would not fit.
"""

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArguments,
    project_folder,
    read_config_arguments,
)
from workbench.cli.estimate_json import estimate_json
from workbench.cli.known_names import known_lines
from workbench.cli.narration import size
from workbench.config.inherit import is_folder
from workbench.config.known_models import near_names
from workbench.config.load import ResolvedConfig, key_value_words, typed_words
from workbench.config.memory_fit import VERDICT_WORDS, Counts
from workbench.config.memory_levers import Lever
from workbench.config.memory_parts import GIB
from workbench.config.memory_plan import (
    Estimate,
    basis_words,
    gib_enough,
    host_words,
    needed_budget,
    total_words,
)
from workbench.config.memory_ways import Combination, hardware_words, host_room_words
from workbench.config.model_facts import ModelFacts
from workbench.config.rank_fit import RankFit
from workbench.config.rates import CARDS, card_typed
from workbench.config.run_time import occasion_words, run_words, seconds_words
from workbench.errors import WorkbenchError
from workbench.jobs.fit import (
    estimate_here,
    estimate_of_start,
    find_model,
    machine_here,
    num_ranks,
    prepared_counts,
)
from workbench.jobs.preflight import output_root

EXAMPLES = (
    ("estimate -t 1gpu_llama_7b/packed -M mistral-7b", "a model by name, without any file"),
    (
        "estimate -t 1gpu_llama_7b/packed -M mistral-7b --gpu 3090 --host-gib 64",
        "on another machine",
    ),
    ("estimate --known", "the cards and models that are known by name"),
    ("estimate -t demo --gpu-gib 7.2 data.max_length=2048", "another budget, other values"),
)

# GiB, TFLOP/s or GB/s: beyond any machine, and small enough to be counted in bytes.
_MOST = 100_000

_BAR_CELLS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def run(arguments: list[str]) -> int:
    """Estimate; 0 where it fits or nothing says otherwise, 4 where it would not fit."""
    read = read_config_arguments(
        arguments,
        verb="estimate",
        summary="Say what a run takes of GPU, host memory, disk and time, and what makes it fit.\n"
        "The model is a folder, a config.json, or a known name such as mistral-7b.",
        add_options=_add_options,
        examples=EXAMPLES,
    )
    resolved, options = read.resolved, read.options
    name, facts = find_model(resolved)
    machine = replace(
        machine_here(options.devices, num_ranks(resolved.config)),
        budget_gib=options.gpu_gib,
        host_gib=options.host_gib,
        meant_gpu=options.gpu,
        tflops=options.tflops,
        link_gbps=options.link_gbps,
    )
    counts = _counts_of_data(resolved)
    root = output_root(project_folder(options.project))
    found = estimate_here(resolved, facts, root, machine=machine, counts=counts)
    if options.json:
        output.result_json(estimate_json(found, name, facts))
    else:
        for line in estimate_lines(found, name, facts, read):
            output.result(line)
    return 4 if found.verdict == "will_not_fit" else 0


def _counts_of_data(resolved: ResolvedConfig) -> Counts | None:
    """Give what prepared data comes to; what is wrong with data is told, and no reason to end."""
    try:
        return prepared_counts(resolved)
    except WorkbenchError as error:
        output.narrate(f"! data: {error}")
        return None


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--devices", metavar="GPUS", help="GPUs to hold it against; default: all"
    )
    parser.add_argument(
        "--gpu", type=_card_name, metavar="NAME", help="card that is meant, such as 'RTX 4060'"
    )
    parser.add_argument(
        "--gpu-gib", type=_above_0, metavar="GIB", help="budget in place of memory.budget_gib"
    )
    parser.add_argument(
        "--host-gib", type=_above_0, metavar="GIB", help="host memory of the machine that is meant"
    )
    parser.add_argument(
        "--tflops", type=_above_0, metavar="F", help="TFLOP/s that training reaches on the GPU"
    )
    parser.add_argument(
        "--link-gbps", type=_above_0, metavar="B", help="GB/s between host and GPU, one direction"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--known", action=_ShowKnown, help="list the cards and models that are known by name"
    )


class _ShowKnown(argparse.Action):
    """Lists what is known by name, and ends: no config is needed for that."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, *_: object) -> None:
        """Print the lists."""
        for line in known_lines():
            output.result(line)
        raise SystemExit(0)


def _card_name(text: str) -> str:
    name = card_typed(text)
    if name is None:
        near = near_names(text, CARDS)
        guess = f"did you mean {near}? " if near else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is not in the table: {guess}--known lists the cards; for another one say "
            f"--gpu-gib, --tflops and --link-gbps"
        )
    return name


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_MOST:,}")
    return value


# ---- for people ----------------------------------------------------------------------------------


def estimate_lines(
    found: Estimate,
    name: str,
    facts: ModelFacts,
    read: ConfigArguments,
) -> Iterator[str]:
    """Give the lines of an estimate.

    Args:
        found: the estimate.
        name: of the model.
        facts: of the model.
        read: what was asked.
    """
    resolved = read.resolved
    millions = facts.num_parameters / 1e6
    yield f"{resolved.name} · {name}: {facts.family}, {millions:,.1f} M parameters"
    yield ""
    if len(found.fit.ranks) > 1:
        yield from _rank_lines(found)
        yield ""
        yield f"rank {found.fit.worst.rank}, which decides:"
    yield from _part_lines(found)
    yield ""
    yield from output.columns(list(_facts(found, resolved, read.options.host_gib is not None)))
    for note in found.fit.notes:
        yield f"note: {note}"
    if found.verdict == "will_not_fit":
        yield from _way_lines(found, read, facts)
    elif found.levers:
        yield ""
        yield "levers, cheapest first:"
        shown = _in_gib if found.fit.worst.total >= 2 * GIB else size
        yield from output.columns(
            [["  " + each for each in _lever_cells(lever, shown)] for lever in found.levers],
            right=(1,),
        )


def _way_lines(found: Estimate, read: ConfigArguments, facts: ModelFacts) -> Iterator[str]:
    """Say what to do about a config that does not fit: only what makes it fit."""
    resolved = read.resolved
    yield ""
    room = found.fit.host_room
    decides = found.fit.is_gpu and found.fit.host_decides
    if decides and room is not None and found.fit.host_needed > room:
        yield host_room_words(found.fit)
    if found.levers:
        yield "each of these alone makes it fit, cheapest first:"
        yield from output.columns(
            [["  " + each for each in _way_cells(lever, found)] for lever in found.levers]
        )
    else:
        yield "no single change makes it fit"
    for proposal in found.proposals:
        yield ""
        asked = read.options.gpu is not None or read.options.gpu_gib is not None
        yield from _proposal_lines(proposal, found, resolved, states_budget=asked)
    if not found.proposals:
        yield "no changes of the config make it fit" + (
            f"; blocks streamed through one GPU take less: {_streamed_config(facts)}"
            if len(found.fit.ranks) > 1
            else ""
        )
    if found.hardware is not None:
        yield ""
        yield f"what would hold it: {hardware_words(found.hardware, found.fit)}"


def dry_run_lines(
    resolved: ResolvedConfig, project: Path | None, devices: str | None = None
) -> list[str]:
    """Give the parts of what a start would take; [] where that cannot be said."""
    try:
        _, facts = find_model(resolved)
    except WorkbenchError:
        return []
    try:
        counts = prepared_counts(resolved)
    except WorkbenchError:  # the checks before these lines have told it
        counts = None
    root = output_root(project)
    machine = machine_here(devices, num_ranks(resolved.config))
    found = estimate_of_start(resolved, facts, root, counts, machine=machine, starts=False)
    ranks = _rank_lines(found) if len(found.fit.ranks) > 1 else []
    return [*ranks, *_part_lines(found), f"  {basis_words(found)}"]


def _rank_lines(found: Estimate) -> list[str]:
    rows = [["  rank", "blocks", "alive", "weights", "sums", "activations", "TOTAL", "host", ""]]
    for rank in found.fit.ranks:
        by_label = {_kind(part.label): part.num_bytes for part in rank.parts}
        rows.append(
            [
                f"  {rank.rank}",
                str(rank.blocks),
                str(rank.alive),
                *(_gib(by_label.get(kind, 0)) for kind in ("weights", "sums", "kept")),
                _gib(rank.total),
                _gib(rank.host.total),
                VERDICT_WORDS[found.fit.verdict_of(rank.total)],
            ]
        )
    return output.columns(rows, right=(1, 2, 3, 4, 5, 6, 7))


def _kind(label: str) -> str:
    if label.startswith("weights"):
        return "weights"
    if label.startswith("gradient sums"):
        return "sums"
    return "kept" if label.startswith(("activations", "block inputs")) else label


def _part_lines(found: Estimate) -> list[str]:
    rank, budget = found.fit.worst, found.fit.budget_bytes
    largest = max(budget or 0, rank.total)
    width = max(len(part.label) for part in rank.parts)
    # A small model has parts that are nothing in GiB.
    shown = _gib if rank.total >= 2 * GIB else size
    lines = [
        f"  {part.label.ljust(width)}  {shown(part.num_bytes):>9} "
        f"▏{bar(part.num_bytes / largest, _BAR_CELLS)}".rstrip()
        for part in rank.parts
    ]
    total, rest = total_words(found).split(" ", 1)
    if budget is None:
        rest += "; add --gpu-gib GIB, or set memory.budget_gib"
    label = "TOTAL" if found.total == rank.total else "TOTAL, measured"
    return [*lines, f"  {label.ljust(width)}  {total:>9} {rest}"]


def bar(share: float, cells: int) -> str:
    """Draw a share as blocks, in eighths of a cell; above 0 at least one eighth."""
    eighths = round(min(1.0, max(0.0, share)) * cells * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _facts(found: Estimate, resolved: ResolvedConfig, host_is_stated: bool) -> Iterator[list[str]]:
    fit = found.fit
    yield ["peak in", fit.worst.peak_phase]
    yield ["budget", fit.budget_source]
    needed = needed_budget(found)
    if needed is not None:
        yield ["least", f"{gib_enough(needed)} GiB, the smallest budget for these settings"]
    elif fit.least is not None and fit.least < fit.worst.total:
        yield ["least", f"{gib_enough(fit.least)} GiB are enough, for a slower plan"]
    where = "--host-gib" if host_is_stated else "here"
    here = "" if fit.host_available is None else f" of {_gib(fit.host_available)} GiB ({where})"
    if not fit.host_decides:
        here = ", on the host with that GPU"
    each = "; per rank" if len(fit.ranks) > 1 else ""
    yield ["host memory", f"{_gib(fit.host_needed)} GiB{here}{_host_words(fit.worst, each)}"]
    one = found.checkpoint_bytes
    kept = f", {size(one * found.num_checkpoints)} with those kept, the best and a new one"
    yield ["disk", f"{size(one)} per checkpoint" + (kept if found.num_checkpoints else "")]
    speed = fit.step_tokens / found.seconds_per_step
    yield [
        "time",
        f"{seconds_words(found.seconds_per_step)} per step of {fit.step_tokens:,} tokens, "
        f"{speed:,.0f} tokens/s",
    ]
    if found.steps_per_epoch is None:
        yield ["epoch", f"prepare the data first: {_prepare_command(resolved)}"]
    else:
        epoch = seconds_words(found.steps_per_epoch * found.seconds_per_step)
        yield ["epoch", f"{found.steps_per_epoch:,} steps, {epoch}"]
    yield from time_rows(found)
    yield ["basis", basis_words(found)]
    yield ["rates", found.rates.basis]


def time_rows(found: Estimate) -> Iterator[list[str]]:
    """Give the whole run's time, and what happens between steps, as names and words."""
    whole = run_words(found.run_time)
    if whole is not None:
        yield ["whole run", whole]
    for each in found.run_time.occasions:
        yield [each.kind, occasion_words(each)]


def _host_words(rank: RankFit, each: str) -> str:
    told = host_words(rank.host)
    return f" ({told}{each})" if told else ""


def _streamed_config(facts: ModelFacts) -> str:
    """Name the shipped config that streams a model of about this size."""
    if facts.num_parameters > 45e9:
        return "1gpu_llama_70b/24gb"
    return "1gpu_llama_30b/12gb" if facts.num_parameters > 15e9 else "1gpu_llama_7b/8gb"


def _way_cells(lever: Lever, found: Estimate) -> list[str]:
    host = f", host {_gib(lever.host_bytes)}" if found.fit.is_gpu and lever.host_bytes else ""
    return [
        " ".join(key_value_words(lever.overrides)),
        lever.words,
        f"{_gib(lever.total)} GiB{host}",
        f"{_time_words(lever.time_ratio)} time per token",
        VERDICT_WORDS[lever.verdict],
        _marks(lever),
    ]


def _marks(lever: Lever) -> str:
    marks = ["changes training"] if lever.changes_training else []
    if not lever.can_start:
        marks.append("cannot start: see the notes")
    return ", ".join(marks)


def _lever_cells(lever: Lever, shown: Callable[[int], str]) -> list[str]:
    return [
        lever.words,
        f"-{shown(lever.saved_bytes)}",
        f"{_time_words(lever.time_ratio)} time per token",
        VERDICT_WORDS[lever.verdict],
        _marks(lever),
    ]


def _time_words(ratio: float) -> str:
    percent = round((ratio - 1) * 100)
    return "same" if percent == 0 else f"{percent:+d} %"


def _proposal_lines(
    proposal: Combination, found: Estimate, resolved: ResolvedConfig, *, states_budget: bool
) -> Iterator[str]:
    kind = "changes training" if proposal.changes_training else "same training"
    start = "" if proposal.can_start else "; it cannot start: see the notes"
    fit = proposal.found
    host = f", host memory {_gib(fit.host_needed)}" if fit.is_gpu and fit.host_needed else ""
    yield (
        f"this fits ({kind}{start}): {_gib(fit.worst.total)} GiB{host}, "
        f"{VERDICT_WORDS[fit.verdict]}, {_time_words(proposal.time_ratio)} time per token"
    )
    overrides = dict(proposal.overrides)
    if states_budget and found.fit.budget_bytes is not None and found.fit.is_gpu:
        # Without it the child would be held against the budget of its parent.
        overrides.setdefault("memory.budget_gib", round(found.fit.budget_bytes / GIB, 6))
    rest = " ".join([*typed_words(resolved, overrides), *key_value_words(overrides)])
    name = resolved.name.rsplit("/", 1)[-1]
    if proposal.can_start:
        yield f"  workbench train -t {shlex.quote(resolved.name)} {rest}"
    yield f"  workbench new -t {shlex.quote(resolved.name)} {shlex.quote(name)}_fits {rest}"
    if proposal.can_start and not is_folder(Path(str(resolved.config.model.path))):
        yield "  training needs the model's folder: --model DIR"


def _prepare_command(resolved: ResolvedConfig) -> str:
    """Give the command that prepares the data of this very config; tokens need a model's folder."""
    model = resolved.config.model.path
    has_folder = model is not None and is_folder(Path(model))
    words = typed_words(resolved, () if has_folder else ("model.path",))
    if not has_folder:
        words.append("--model DIR")
    return " ".join(["workbench data prepare -t", shlex.quote(resolved.name), *words])


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f}"


def _in_gib(num_bytes: float) -> str:
    return f"{_gib(num_bytes)} GiB"
