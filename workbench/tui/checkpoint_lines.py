"""What the list of checkpoints says of each, and the details of the selected one; pure."""

from pathlib import Path

from textual.content import Content

from workbench.control.states import END_STATES
from workbench.runs.checkpoint_facts import CheckpointFacts, RunFacts
from workbench.tui import keys, words
from workbench.tui.checkpoint_filter import Filterable
from workbench.tui.checkpoint_index import ModelFacts, RunCheckpoints
from workbench.tui.job_index import KnownRun
from workbench.tui.marks import mark_of
from workbench.tui.verifying import Verification
from workbench.tui.widgets.checkpoint_list import CheckpointRow

MODELS = Path("models")
"""Stands for the heading above the models, which is no folder."""

Line = tuple[str, Content]

MODELS_DETAILS = [
    ("listed", Content("what runs began with, and what was published or converted here")),
    ("", Content.assemble(("only read: nothing here deletes a model", "$quiet"))),
]


def run_row(held: RunCheckpoints, awaits: str = "", *, is_folded: bool) -> CheckpointRow:
    """Give the heading above the checkpoints of a run; ``awaits``: when the first comes."""
    known = held.known
    mark, colour = " ", "$quiet"
    if known.state is not None:
        mark, colour = mark_of(known.state)
    found = held.facts.checkpoints
    return CheckpointRow(
        "run",
        known.path,
        known.name,
        state=known.state or "never started",
        mark=mark,
        colour=colour,
        size=words.size(sum(each.bytes for each in found)) if found and is_folded else "",
        tags=awaits or words.number_of(len(found), "checkpoint"),
        is_folded=is_folded,
    )


def checkpoint_row(
    facts: CheckpointFacts, found: Verification | None, whole_bytes: int, now: float
) -> CheckpointRow:
    """Give a checkpoint as a line.

    Args:
        facts: what is known of it.
        found: what became of comparing its hashes.
        whole_bytes: of another checkpoint of its run, 0 where there is none.
        now: epoch seconds.
    """
    state, mark, colour = state_of(facts, found)
    size = words.size(facts.bytes)
    if facts.is_partial and facts.problem == "is being written" and whole_bytes:
        size = words.percent(min(facts.bytes, whole_bytes), whole_bytes)
    is_broken = facts.problem is not None and not facts.is_partial
    said = facts.problem or "" if is_broken else ""
    if found is not None and found.state == "damaged":
        said = found.problem
    age = "" if facts.saved_at is None else words.brief(max(now - facts.saved_at, 0))
    return CheckpointRow(
        "checkpoint",
        facts.path,
        f"checkpoint-{facts.step}",
        state=state,
        mark=mark,
        colour=colour,
        eval_loss=facts.eval_loss,
        loss=facts.loss,
        size=size,
        holds=holds(facts),
        age=age,
        tags=" ".join(facts.marks),
        said=said,
    )


def state_of(facts: CheckpointFacts, found: Verification | None) -> tuple[str, str, str]:
    """Give (word, mark, colour) of a checkpoint's state."""
    if facts.is_partial:
        if facts.problem == "is being written":
            return "being written", "◐", "$busy"
        return "never completed", "✗", "$bad"
    if facts.problem is not None:
        return "not usable", "✗", "$bad"
    return _verified(found) or ("complete", "✓", "$quiet")


def _verified(found: Verification | None) -> tuple[str, str, str] | None:
    if found is None:
        return None
    match found.state:
        case "waiting":
            return "waits for hashes", "◌", "$busy"
        case "reading":
            return f"hashes {int(100 * found.share)} %", "◌", "$busy"
        case "whole":
            return "verified", "✓", "$good"
        case "damaged":
            return "damaged", "✗", "$bad"


def holds(facts: CheckpointFacts) -> str:
    """Say what a checkpoint can be used for."""
    if facts.is_partial or facts.problem is not None:
        return "–"
    if facts.other_hosts:
        return "part, rest elsewhere"
    return "weights + resume" if facts.has_resume else "weights"


def model_row(facts: ModelFacts, found: Verification | None, *, is_made: bool) -> CheckpointRow:
    """Give a model as a line."""
    state, mark, colour = _verified(found) or ("readable", "✓", "$quiet")
    said = ""
    if facts.problem is not None:
        state, mark, colour = "no weights", " ", "$quiet"
    elif found is not None and found.state == "damaged":
        said = found.problem
    tags = f"base of {words.some(facts.used_by)}" if facts.used_by else ""
    if is_made:
        tags = " · ".join(filter(None, ("made here", tags)))
    return CheckpointRow(
        "model",
        facts.path,
        words.last_parts(str(facts.path)),
        state=state,
        mark=mark,
        colour=colour,
        size=words.size(facts.bytes) if facts.bytes else "",
        holds="weights" if facts.problem is None else "config",
        tags=tags,
        said=said,
    )


def filterable(
    row: CheckpointRow, run: str, facts: CheckpointFacts | None, model: str, now: float
) -> Filterable:
    """Give what a filter sees of a row."""
    if facts is None:
        return Filterable(
            f"{run} {row.name} {row.state}", {}, {"state": (row.state,), "model": (row.name,)}
        )
    saved = facts.saved_at
    return Filterable(
        f"{run}/{row.name} {row.state}",
        {
            "eval": facts.eval_loss,
            "loss": facts.loss,
            "size": facts.bytes,
            "step": facts.step,
            "age": None if saved is None else now - saved,
        },
        {
            "run": (run,),
            "tag": facts.marks,
            "has": ("weights", *(("resume",) if facts.has_resume else ())),
            "state": (row.state,),
            "model": (model,),
        },
    )


# ---- details -------------------------------------------------------------------------------------


def checkpoint_details(
    facts: CheckpointFacts,
    held: RunCheckpoints,
    found: Verification | None,
    path: str,
    now: float,
) -> list[Line]:
    """Tell of a checkpoint: the name of each fact, and the fact."""
    if facts.problem is not None:
        first = ("state", Content.assemble((_unusable(facts), "$note")))
    else:
        first = ("hashes", _hashes(found, facts.num_files))
    count = words.number_of(facts.num_weight_files, "weight file")
    parts = [count, f"{words.number_of(facts.num_files, 'file')} in all", words.size(facts.bytes)]
    if facts.other_hosts:
        parts.append(f"the rest on {', '.join(facts.other_hosts)}")
    lines = [("path", Content(path)), first]
    if facts.problem is None:
        lines.append(("files", Content(" · ".join(parts))))
    lines.append(("step", Content(_step(facts, held.facts, now))))
    if facts.problem is None:
        lines.append(("again", Content(_again(facts, held))))
    if (pruning := _next_save(facts, held)) is not None:
        lines.append(("next save", pruning))
    return lines


def _unusable(facts: CheckpointFacts) -> str:
    if facts.problem == "is being written":
        return "is being written; it can be used when it is complete"
    if facts.is_partial:
        return "was never completed; the next save of its run removes it"
    return f"not usable: {facts.problem}"


def _hashes(found: Verification | None, num_files: int) -> Content:
    if found is None:
        how = f"not compared yet · {keys.hint('verify_hashes')} reads every byte"
        return Content.assemble((how, "$quiet"))
    match found.state:
        case "waiting":
            return Content.assemble(("waits for its turn", "$busy"))
        case "reading":
            return Content.assemble((f"reading, {int(100 * found.share)} %", "$busy"))
        case "damaged":
            return Content.assemble((f"✗ {found.problem}", "$bad"))
        case "whole":
            return Content.assemble(
                ("✓ ", "$good"),
                f"{found.num_files or num_files} of {num_files or found.num_files} files as they "
                f"were saved · compared {words.clock(found.at)}",
            )


def _step(facts: CheckpointFacts, run: RunFacts, now: float) -> str:
    total = f" of {run.max_steps:,}" if run.max_steps else ""
    parts = [f"{facts.step:,}{total}"]
    if facts.eval_loss is not None:
        parts.append(f"eval {words.loss(facts.eval_loss)}")
    if facts.loss is not None:
        parts.append(f"loss {words.loss(facts.loss)}")
    if facts.saved_at is not None:
        age = words.duration(max(now - facts.saved_at, 0))
        parts.append(f"saved {words.clock(facts.saved_at)}, {age} ago")
    return " · ".join(parts)


def _again(facts: CheckpointFacts, held: RunCheckpoints) -> str:
    """Say what a start from a checkpoint would do."""
    if not facts.has_resume:
        return "cannot go on: it holds weights alone"
    name = held.known.name
    if not facts.is_newest:
        newest = held.facts.newest
        beyond = f"; {name} itself from step {newest.step:,}" if newest else ""
        return f"a new run goes on at step {facts.step + 1:,}{beyond}"
    if held.known.is_running:
        return f"{name} is at work; after its end a start goes on from its newest"
    more = "; more steps have to be asked for" if held.known.state == "finished" else ""
    return f"goes on at step {facts.step + 1:,}, attempt {held.known.attempt + 1}{more}"


def _next_save(facts: CheckpointFacts, held: RunCheckpoints) -> Content | None:
    """Say what the next save of the run removes, by the rule that saving goes by."""
    pruned, run = held.facts.pruned_next, held.facts
    if pruned is None or run.keep is None or facts.is_partial:
        return None
    rule = f"keeps the newest {run.keep}, best, keep"
    if facts.step in pruned:
        others = len(pruned) - 1
        also = f" and {words.number_of(others, 'other')}" if others else ""
        return Content.assemble((f"removes this one{also}", "$note"), (f" · {rule}", "$quiet"))
    if not pruned:
        return Content.assemble("removes none", (f" · {rule}", "$quiet"))
    names = words.some([f"checkpoint-{step}" for step in pruned])
    return Content.assemble(f"removes {names}", (f" · {rule}", "$quiet"))


def run_details(held: RunCheckpoints, path: str, now: float) -> list[Line]:
    """Tell of a run."""
    known, run = held.known, held.facts
    whole = [each for each in run.checkpoints if each.problem is None]
    size = words.size(sum(each.bytes for each in run.checkpoints))
    lines = [
        ("path", Content(path)),
        ("state", Content(_state(known, now))),
        ("holds", Content(f"{words.number_of(len(whole), 'complete checkpoint')} · {size}")),
    ]
    if run.model is not None:
        lines.append(("began with", Content(words.last_parts(str(run.model)))))
    if run.keep is not None and run.pruned_next is not None:
        names = words.some([f"checkpoint-{step}" for step in run.pruned_next]) or "none"
        lines.append(
            ("next save", Content(f"removes {names} · keeps the newest {run.keep}, best, keep"))
        )
    return lines


def _state(known: KnownRun, now: float) -> str:
    if known.state is None or known.summary is None:
        return "never started"
    text = f"{known.state} at step {known.summary.step:,}"
    if known.state in END_STATES:
        text += f" · {words.duration(max(now - known.summary.since, 0))} ago"
    return text


def model_details(facts: ModelFacts, found: Verification | None, path: str) -> list[Line]:
    """Tell of a model."""
    lines = [("path", Content(path))]
    if facts.problem is not None:
        lines.append(("weights", Content.assemble((facts.problem, "$note"))))
    else:
        count = words.number_of(facts.num_weight_files, "weight file")
        lines.append(("files", Content(f"{count} · {words.size(facts.bytes)}")))
        hashes = (
            _hashes(found, 0)
            if facts.has_manifest
            else Content.assemble(("it has no list of hashes", "$quiet"))
        )
        lines.append(("hashes", hashes))
    if facts.used_by:
        lines.append(("used by", Content(words.some(facts.used_by))))
    lines.append(("", Content.assemble(("only read: nothing here deletes a model", "$quiet"))))
    return lines
