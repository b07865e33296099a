"""What is told of the checkpoints of a run, and of runs that cannot be read in part."""

import json
from pathlib import Path

import pytest

from tests.runs.test_checkpoints import save
from workbench.config.flags import parse_overrides
from workbench.config.load import dump_config, resolve
from workbench.runs.checkpoint_facts import models_in_use, run_facts
from workbench.runs.checkpoints import Best, write_best
from workbench.runs.layout import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of the demo's config with three checkpoints and one that is being written."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.config.write_text(dump_config(resolve("demo", project=tmp_path).config))
    for step in (10, 20, 30):
        save(made, step)
    write_best(made, Best(step=20, loss=1.0))
    made.partial_checkpoint(40).mkdir()
    (made.partial_checkpoint(40) / "half").write_text("half")
    return made


def _log(run: RunFolder, *records: tuple[int, float | None]) -> None:
    run.metrics.write_text(
        "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in records)
    )


def test_newest_first_and_what_is_being_written_above(run: RunFolder) -> None:
    facts = run_facts(run)
    assert [(each.step, each.is_partial) for each in facts.checkpoints] == [
        (40, True),
        (30, False),
        (20, False),
        (10, False),
    ]
    assert facts.checkpoints[0].problem == "was never completed"
    assert facts.checkpoints[0].bytes == 4
    assert [each.marks for each in facts.checkpoints] == [(), ("newest",), ("best",), ()]
    assert facts.newest is not None
    assert facts.newest.step == 30


def test_a_loss_is_that_of_the_last_record_not_after_the_step(run: RunFolder) -> None:
    # A second attempt logged step 20 anew; its word counts.
    _log(run, (9, 3.0), (19, 2.5), (20, 2.4), (29, None), (31, 1.0), (20, 2.2))
    losses = {each.step: each.loss for each in run_facts(run).checkpoints}
    assert losses == {40: None, 30: None, 20: 2.2, 10: 3.0}


def test_an_evaluation_counts_at_its_own_step_alone(run: RunFolder) -> None:
    event = {
        "event": "evaluation",
        "time": 1.0,
        "attempt": 1,
        "step": 20,
        "loss": 1.5,
        "perplexity": 4.5,
        "accuracy": None,
        "target_tokens": 9,
        "seconds": 1.0,
    }
    run.events.write_text(json.dumps(event) + "\nno event\n")
    found = {each.step: each.eval_loss for each in run_facts(run).checkpoints}
    assert found == {40: None, 30: None, 20: 1.5, 10: None}


def test_the_next_save_removes_what_pruning_would(run: RunFolder) -> None:
    # Three are kept, the coming one and the newest two; so 10 goes.
    assert run_facts(run).keep == 3
    assert run_facts(run).pruned_next == (10,)
    run.tags.write_text('{"checkpoint-10": ["keep"]}')
    facts = run_facts(run)
    assert facts.pruned_next == ()
    assert facts.checkpoints[-1].marks == ("keep",)


def test_a_file_that_is_gone_makes_a_checkpoint_unusable(run: RunFolder) -> None:
    next(run.checkpoint(30).glob("*.safetensors")).unlink()
    facts = run_facts(run)
    damaged = next(each for each in facts.checkpoints if each.step == 30)
    assert damaged.problem is not None
    assert damaged.problem.endswith("is missing")
    assert not damaged.is_newest
    assert facts.newest is not None
    assert facts.newest.step == 20


def test_a_run_whose_config_cannot_be_read_still_has_checkpoints(run: RunFolder) -> None:
    run.config.write_text("model: [\n")
    run.tags.write_text("no tags")
    facts = run_facts(run)
    assert len(facts.checkpoints) == 4
    assert facts.keep is None
    assert facts.model is None


def test_models_and_resume_points_of_runs_are_in_use(run: RunFolder, tmp_path: Path) -> None:
    first = run_facts(run)
    child = RunFolder(tmp_path / "child")
    child.path.mkdir()
    goes_on = parse_overrides([f"checkpoints.resume={run.checkpoint(10)}"])
    resolved = resolve("demo", project=tmp_path, overrides=goes_on)
    child.config.write_text(dump_config(resolved.config))
    uses = models_in_use([first, run_facts(child)], at_work=[])
    assert first.model is not None
    assert uses[first.model] == "child began with it"
    assert uses[run.checkpoint(10)] == "child goes on from it"
    # Once it has saved it goes on from its own; while it works nothing is taken from it.
    save(child, 5)
    own = [run_facts(child)]
    assert run.checkpoint(10) not in models_in_use(own, at_work=[])
    assert run.checkpoint(10) in models_in_use(own, at_work=[child.path])
