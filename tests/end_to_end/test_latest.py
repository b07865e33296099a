"""Other tools are pointed at ``latest`` while a run saves and prunes."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.inference.tiny_model import write_tiny_model
from tests.training.killed_saves import state_of
from workbench.model.families import read_dimensions
from workbench.model.weights import read_weights
from workbench.runs import checkpoints as folders
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.beside_weights import files_beside_weights
from workbench.training.distributed import Ranks

pytestmark = pytest.mark.end_to_end
NUM_SAVES = 15
SOME = "model.layers.1.mlp.up_proj.weight"


def test_latest_loads_in_transformers_at_any_instant_and_the_model_stays(tmp_path: Path) -> None:
    """A save as often as one can, of which only the newest is kept."""
    source, run = write_tiny_model(tmp_path / "source"), RunFolder(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    weights = read_weights(source, read_dimensions(source), torch.float32)
    template = (source / "chat_template.jinja").read_text()
    content = checkpoint.Content(
        weights=weights,
        statistics={},
        common=files_beside_weights(
            source, template=template, dtype="float32", stop_ids=[3], pad_id=1
        ),
        device=torch.device("cpu"),
    )
    is_over = threading.Event()
    saved: list[int] = []

    def save() -> None:
        step = len(saved) + 1
        of_step = {**weights, SOME: torch.full_like(weights[SOME], float(step))}
        checkpoint.save(run, replace(content, weights=of_step), state_of(step), Ranks())
        folders.prune(run, keep=1)
        saved.append(step)

    def keep_saving() -> None:
        while not is_over.is_set():
            save()

    save()

    saving = threading.Thread(target=keep_saving)
    saving.start()
    seen: list[float] = []
    tokenizers: Any = AutoTokenizer
    try:
        while saved[-1] < NUM_SAVES:
            assert saving.is_alive()
            oldest = saved[-1]
            model = AutoModelForCausalLM.from_pretrained(run.latest, local_files_only=True)
            tokenizer = tokenizers.from_pretrained(run.latest, local_files_only=True)
            assert tokenizer.chat_template == template
            assert model.generation_config.eos_token_id == [0, 3]
            number = float(model.state_dict()[SOME].unique())
            assert number >= oldest
            seen.append(number)
    finally:
        is_over.set()
        saving.join()
    assert len(set(seen)) > 4, "steps went by between the loads"
    assert [each.step for each in folders.list_checkpoints(run)] == [saved[-1]]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
