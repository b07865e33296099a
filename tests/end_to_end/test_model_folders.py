"""Model folders of every form train; whatever form the weights have, the losses are the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.conftest import SMALL, Workplace, losses_of, outcome_of
from workbench.config.find import shipped_configs
from workbench.config.weight_files import BIN_INDEX_FILE, INDEX_FILE
from workbench.model.families import read_dimensions
from workbench.model.weights import random_weights

pytestmark = pytest.mark.end_to_end

SOME = "model.layers.1.mlp.up_proj.weight"


def train(workplace: Workplace, model: Path, name: str) -> dict[int, float]:
    ended = workplace.workbench(
        "--batch", "-t", "demo.yaml", "-M", str(model), "--max-steps", "4", "model.weights=load",
        "--output-dir", f"output/{name}", *SMALL, "checkpoints.every_steps=4",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    return losses_of(workplace.run_folder(name))


def test_a_bin_folder_trains_as_its_safetensors_do(workplace: Workplace, tmp_path: Path) -> None:
    model = tmp_path / "safetensors"
    shutil.copytree(shipped_configs() / "demo" / "model", model)
    weights = random_weights(read_dimensions(model), 5, torch.float32)
    save_file(weights, model / "model.safetensors")

    sharded = tmp_path / "bin"
    shutil.copytree(shipped_configs() / "demo" / "model", sharded)
    names = list(weights)
    holders = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        torch.save({name: weights[name] for name in names[number::3]}, sharded / file)
        holders |= dict.fromkeys(names[number::3], file)
    (sharded / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": holders}))
    # Left by a download that took the .bin files alone.
    absent = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (sharded / INDEX_FILE).write_text(json.dumps(absent))

    expected = train(workplace, model, "from_safetensors")
    losses = train(workplace, sharded, "from_bin")
    assert len(losses) == 4
    assert losses == expected
    log = (workplace.run_folder("from_bin").path / "log.txt").read_text()
    assert f"{INDEX_FILE} is stale" in log
    ends = [workplace.run_folder(name).checkpoint(4) for name in ("from_safetensors", "from_bin")]
    first, second = (load_file(end / "model.safetensors") for end in ends)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _spoil(weights: dict[str, torch.Tensor]) -> None:
    weights[SOME][0, 0] = float("nan")


def _turn(weights: dict[str, torch.Tensor]) -> None:
    weights[SOME] = weights[SOME].T.contiguous()


def _lose(weights: dict[str, torch.Tensor]) -> None:
    del weights[SOME]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_spoil, f"{SOME} holds a NaN or an infinity"),
        (_turn, f"of another shape: {SOME}"),
        (_lose, f"missing: {SOME}"),
    ],
)
def test_weights_that_cannot_be_trained_end_a_run_with_their_name(
    workplace: Workplace,
    tmp_path: Path,
    damage: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(shipped_configs() / "demo" / "model", model)
    weights = random_weights(read_dimensions(model), 5, torch.float32)
    damage(weights)
    save_file(weights, model / "model.safetensors")
    ended = workplace.workbench(
        "--batch", "-t", "demo.yaml", "-M", str(model), "--max-steps", "4", "model.weights=load",
        "--output-dir", f"output/{damage.__name__}", *SMALL,
    )  # fmt: skip
    assert ended.status != 0
    outcome = outcome_of(workplace.run_folder(damage.__name__))
    assert (outcome.state, outcome.step) == ("failed", 0)
    assert message in ended.stderr + ended.stdout, ended.stderr
    assert "Traceback" not in ended.stderr
