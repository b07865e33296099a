"""How long a whole run takes, with what happens between its steps."""

import dataclasses

import pytest

from workbench.config.known_models import KNOWN_MODELS
from workbench.config.load import parse_overrides, resolve
from workbench.config.memory_fit import Counts, Machine
from workbench.config.memory_plan import Estimate, estimate
from workbench.config.run_time import Occasion, RunTime, last_step, run_words, seconds_words
from workbench.config.schema.config import Config
from workbench.training.state import total_steps

MISTRAL = KNOWN_MODELS["mistral-7b"]
CARD = Machine(meant_gpu="RTX 4090", host_gib=96)
COUNTS = Counts(
    longest_row=4096, steps_per_epoch=70, seen_tokens=900.0, most_documents=9, validation_rows=50
)
PROMPTS = ['samples.prompts=["Who are you?", "How do I boil an egg?"]', "samples.every_steps=20"]


def config_of(*texts: str, name: str = "1gpu_llama_7b/packed") -> Config:
    return resolve(name, overrides=parse_overrides(texts)).config


def estimated(
    *texts: str, counts: Counts | None = COUNTS, first_step: int = 0, machine: Machine = CARD
) -> Estimate:
    return estimate(
        config_of(*texts), MISTRAL, machine=machine, counts=counts, first_step=first_step
    )


def occasion(found: Estimate, kind: str) -> Occasion:
    (each,) = [each for each in found.run_time.occasions if each.kind == kind]
    return each


@pytest.mark.parametrize("epochs", [0.07, 0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("most", [None, 12, 1000])
def test_the_last_step_is_the_one_that_the_worker_counts(epochs: float, most: int | None) -> None:
    config = config_of(f"training.epochs={epochs}", f"training.max_steps={most or 'null'}")
    assert last_step(config, COUNTS) == total_steps(epochs, 70, most)
    assert last_step(config, None) == most


@pytest.mark.parametrize("first_step", [0, 30, 50])
def test_what_falls_due_is_counted_as_the_loop_does(first_step: int) -> None:
    found = estimated(
        "evaluation.every_steps=25", "checkpoints.every_steps=30", *PROMPTS, first_step=first_step
    )
    steps = range(first_step + 1, 71)
    assert found.run_time.steps == len(steps)
    assert occasion(found, "evaluation").times == sum(step % 25 == 0 for step in steps)
    # Both come after the last step, too.
    assert occasion(found, "samples").times == sum(step % 20 == 0 or step == 70 for step in steps)
    assert occasion(found, "saving").times == sum(step % 30 == 0 or step == 70 for step in steps)
    total = found.run_time.training
    assert total is not None
    total += sum(each.total or 0 for each in found.run_time.occasions)
    assert found.run_time.total == pytest.approx(total)


def test_what_never_happens_takes_no_time_and_no_line() -> None:
    found = estimated("evaluation.every_steps=0", "checkpoints.save_strategy=no")
    assert found.run_time.occasions == ()
    assert found.run_time.total == found.run_time.training
    without = dataclasses.replace(COUNTS, validation_rows=0)
    assert "evaluation" not in {each.kind for each in estimated(counts=without).run_time.occasions}


def test_an_evaluation_is_a_forward_of_its_rows() -> None:
    found = estimated("evaluation.max_batches=null", "batch.evaluation=4")
    assert found.fit.step_parts is not None
    forward = found.fit.step_parts.forward / found.fit.step_tokens
    seconds = occasion(found, "evaluation").seconds
    assert seconds is not None
    # 50 rows are 13 batches of 4; the head is on top.
    assert seconds / (13 * 4 * 4096 * forward) == pytest.approx(1.03, abs=0.03)
    assert occasion(found, "evaluation").words == "52 validation rows"
    few = occasion(estimated("evaluation.max_batches=1", "batch.evaluation=4"), "evaluation")
    assert few.seconds == pytest.approx(seconds / 13)


def test_streamed_weights_move_once_for_each_token_of_all_prompts() -> None:
    streamed = ["memory.resident_fraction=0.0", "samples.max_tokens=100"]
    two = occasion(estimated(*streamed, *PROMPTS), "samples")
    one = occasion(estimated(*streamed, "samples.prompts=[Who]"), "samples")
    moving = 100 * 32 * 2 * MISTRAL.block_parameters / 24e9
    for each in (one, two):
        assert each.seconds is not None
        assert moving < each.seconds < 1.1 * moving
    assert one.seconds == pytest.approx(two.seconds, rel=0.02), "prompts pass together"
    resident = occasion(estimated("samples.max_tokens=100", *PROMPTS), "samples")
    assert resident.seconds is not None
    assert two.seconds is not None
    assert resident.seconds < two.seconds / 5
    assert resident.is_most, "a reply may end sooner"
    many = ["samples.prompts=[a, b, c, d, e, f, g, h, i]"]
    groups = occasion(estimated(*streamed, *many), "samples")
    assert groups.seconds == pytest.approx(3 * two.seconds, rel=0.1), "four rows pass together"


def test_speed_is_that_of_training_alone() -> None:
    plain, busy = estimated(), estimated(*PROMPTS, "evaluation.every_steps=1")
    assert busy.seconds_per_step == plain.seconds_per_step
    assert busy.run_time.training == plain.run_time.training
    assert busy.run_time.total is not None
    assert plain.run_time.total is not None
    assert busy.run_time.total > plain.run_time.total


def test_what_only_prepared_data_says_is_not_made_up() -> None:
    found = estimated("evaluation.max_batches=null", counts=None).run_time
    assert (found.last_step, found.total) == (None, None)
    assert run_words(found) is None
    stated = estimated(
        "training.max_steps=100", "evaluation.max_batches=null", counts=None
    ).run_time
    assert stated.unknown == ("evaluation",)
    words = run_words(stated)
    assert words is not None
    assert words.startswith("at most 100 steps, ")
    assert words.endswith("; without evaluation, not known yet")


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_saves_are_priced_by_their_bytes(strategy: str) -> None:
    found = estimated(f"checkpoints.save_strategy={strategy}", "training.epochs=3")
    saving = occasion(found, "saving")
    assert saving.times == (3 if strategy == "epoch" else 210 // 130 + 1)
    assert saving.seconds == pytest.approx(found.checkpoint_bytes / 1.5e9, rel=0.02)


def test_a_whole_run_is_said_with_its_parts() -> None:
    each = Occasion(
        kind="saving", every_steps=5, times=2, seconds=3.0, is_most=False, words="at 1.5 GB/s"
    )
    found = RunTime(first_step=0, last_step=10, is_most=False, step_seconds=60.0, occasions=(each,))
    assert run_words(found) == "10 steps, 10 min (training 10 min, saving 6.0 s)"
    rest = dataclasses.replace(found, first_step=9)
    assert run_words(rest) == "1 more step, 66.0 s (training 60.0 s, saving 6.0 s)"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "250 ms"), (3.94, "3.9 s"), (119.9, "119.9 s"), (840, "14 min"), (15120, "4.2 h"),
     (300_000, "3.5 days")],
)  # fmt: skip
def test_seconds_are_said_in_one_unit(seconds: float, words: str) -> None:
    assert seconds_words(seconds) == words


def test_documents_of_prepared_data_make_a_step_shorter_than_one_document_per_row() -> None:
    unknown, known = estimated(counts=None), estimated()
    (note,) = [note for note in unknown.fit.notes if "one document" in note]
    assert note.startswith("no prepared data: each packed row is taken to hold one document")
    assert not any("one document" in note for note in known.fit.notes)
    assert 0.85 < known.seconds_per_step / unknown.seconds_per_step < 0.98
    alone = estimated("data.packing=none", "data.pad_to=context", counts=None)
    assert not any("one document" in note for note in alone.fit.notes)
