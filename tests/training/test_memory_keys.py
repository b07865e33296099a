"""Keys of memory and optimizer through a whole rank: they are heeded, and change no loss."""

import json
import logging
from pathlib import Path

import pytest

from tests.training.test_rank import run_folder
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.training.rank import run_rank

Memory = dict[str, object]

BFLOAT16 = {"dtype": "bfloat16"}
FLOAT32 = {"dtype": "float32"}

STATED: Memory = {"resident_fraction": 1.0, "block_inputs": "gpu", "recompute": "full"}
FORMS: dict[str, Memory] = {
    "streamed": {"resident_fraction": 0.0},
    "half of it streamed, inputs pinned": {"resident_fraction": 0.5, "block_inputs": "pinned"},
    "selective": {"recompute": "selective"},
    "nothing computed again, pinned": {"recompute": "none", "block_inputs": "pinned"},
    "streamed, selective, pinned": {
        "resident_fraction": 0.0,
        "recompute": "selective",
        "block_inputs": "pinned",
    },
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def trained(folder: Path, memory: Memory, **changes: dict[str, object]) -> RunFolder:
    run = run_folder(
        folder,
        memory=STATED | memory,
        batch={"microbatches": 2},
        evaluation={"every_steps": 3},
        checkpoints={"every_steps": 100},
        **changes,
    )
    assert run_rank(run) == 0
    return run


def losses_of(run: RunFolder) -> list[float]:
    lines, _ = read_lines(run.metrics)
    return [json.loads(line.content)["loss"] for line in lines]


def weights_of(run: RunFolder) -> bytes:
    return (run.latest / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """What each precision trains to with everything in its place."""
    return {
        model["dtype"]: trained(tmp_path_factory.mktemp("resident"), {}, model=dict(model))
        for model in (FLOAT32, BFLOAT16)
    }


@pytest.mark.parametrize("model", [FLOAT32, BFLOAT16], ids=lambda model: model["dtype"])
@pytest.mark.parametrize("form", FORMS)
def test_where_things_lie_changes_neither_losses_nor_weights(
    form: str, model: dict[str, str], tmp_path: Path, resident: dict[str, RunFolder]
) -> None:
    run = trained(tmp_path, FORMS[form], model=dict(model))
    golden = resident[model["dtype"]]
    assert len(losses_of(golden)) == 3
    assert losses_of(run) == losses_of(golden)
    assert weights_of(run) == weights_of(golden)


def test_the_plan_of_a_run_says_what_its_keys_say(tmp_path: Path) -> None:
    run = trained(tmp_path, FORMS["half of it streamed, inputs pinned"] | {"recompute": "none"})
    plan = json.loads(run.plan.read_bytes())
    assert (plan["resident_blocks"], plan["pinned_records"]) == (2, True)
    assert set(plan["recompute"]) == {"none"}
    assert plan["microbatches"] == 2


@pytest.mark.parametrize(
    "optimizer",
    [{"rounding": "exact"}, {"name": "adamw"}, {"name": "adamw", "rounding": "exact"}],
    ids=lambda keys: " ".join(keys.values()),
)
def test_what_travels_beside_weights_changes_nothing_and_survives_a_resume(
    optimizer: dict[str, str], tmp_path: Path
) -> None:
    keys = {"optimizer": dict(optimizer)}
    whole = trained(tmp_path / "whole", {}, **keys, training={"max_steps": 4})
    trained(tmp_path / "parts", {"resident_fraction": 0.0}, **keys, training={"max_steps": 2})
    parts = trained(
        tmp_path / "parts", {"resident_fraction": 0.5}, **keys, training={"max_steps": 4}
    )
    assert losses_of(parts) == losses_of(whole)
    assert weights_of(parts) == weights_of(whole)
    low_bits = parts.latest / "training_state" / "low_bits-00000.safetensors"
    assert low_bits.exists() == (optimizer.get("rounding") == "exact")
