"""Which keys do nothing on a row of the checkpoints, and why; pure.

Invariant: what is not complete is not used, and what somebody needs is not deleted.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from workbench.runs.checkpoint_facts import CheckpointFacts
from workbench.runs.checkpoints import KEEP_TAG
from workbench.tui import keys
from workbench.tui.checkpoint_index import ModelFacts, RunCheckpoints

Refusal = tuple[str, str]
"""The id of a key's row, and the reason."""

_FOLDS = ("fold", "unfold")
_USES_WEIGHTS = ("talk_to", "finalize", "convert")


def of_nothing() -> Iterator[Refusal]:
    """Refuse everything: the list is empty."""
    yield from ((each, "there is no checkpoint") for each in _every())


def of_models() -> Iterator[Refusal]:
    """Refuse all but folding: the cursor is on the heading of the models."""
    yield from ((each, "select a model below") for each in _every() if each != "talk_to")


def of_run(held: RunCheckpoints) -> Iterator[Refusal]:
    """Say what cannot be done with a run as a whole."""
    for each in ("convert", "delete_checkpoint"):
        yield each, "select one of its checkpoints"
    if held.facts.newest is None:
        for each in ("verify_hashes", "finalize", "start_from"):
            yield each, "it has no complete checkpoint"
    elif held.known.is_running:
        yield "start_from", f"{held.known.name} still runs"


def of_checkpoint(
    facts: CheckpointFacts, held: RunCheckpoints, in_use: Mapping[Path, str]
) -> Iterator[Refusal]:
    """Say what cannot be done with a checkpoint.

    Args:
        facts: what is known of it.
        held: its run.
        in_use: what runs need as it is, and what for.
    """
    name, is_running = held.known.name, held.known.is_running
    if facts.problem is not None:
        why = facts.problem if facts.is_partial else f"not usable: {facts.problem}"
        yield from ((each, why) for each in (*_USES_WEIGHTS, "start_from"))
        if facts.is_partial:
            yield "verify_hashes", why
    elif facts.other_hosts:
        why = f"parts of it are on {', '.join(facts.other_hosts)}"
        yield from ((each, why) for each in _USES_WEIGHTS)
    if facts.problem is None and not facts.has_resume:
        yield "start_from", "it holds weights alone"
    elif facts.is_newest and is_running:
        yield "start_from", f"{name} still runs"
    if KEEP_TAG in facts.tags:
        yield "delete_checkpoint", f"it is tagged {KEEP_TAG}"
    elif is_running:
        yield "delete_checkpoint", f"{name} still runs and prunes its checkpoints itself"
    for path, use in in_use.items():
        if path == facts.path or path.is_relative_to(facts.path):
            yield "delete_checkpoint", f"it is in use: {use}"


def of_model(facts: ModelFacts) -> Iterator[Refusal]:
    """Say what cannot be done with a model."""
    yield "start_from", "a model has no training state; launch a config with it"
    yield "delete_checkpoint", "a model is never deleted here"
    if facts.problem is not None:
        yield from ((each, facts.problem) for each in _USES_WEIGHTS)
    if not facts.has_manifest:
        yield "verify_hashes", "it has no list of hashes: only what was saved or published has"


def _every() -> list[str]:
    return [row.id for row in keys.rows(("checkpoints",)) if row.id not in _FOLDS]
