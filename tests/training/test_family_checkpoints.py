"""Models that transformers makes, trained by the engine from host memory, go back to it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tests.model.tiny import KINDS, our_logits, reference_model, relative_difference
from tests.training.killed_saves import state_of
from tests.training.late_lanes import LateLanes
from tests.training.test_equalities import batch_of, row_of
from tests.training.test_streaming import PLACES
from tests.training.tiny import CPU, LENGTH, step_rows, tiny_engine
from workbench.model.families import read_dimensions
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.beside_weights import files_beside_weights
from workbench.training.distributed import Ranks
from workbench.training.first_weights import load_first_weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_family_is_trained_and_loads_in_transformers(
    kind: str, tmp_path: Path
) -> None:
    source, run = tmp_path / "source", RunFolder(tmp_path / "run")
    reference_model(kind).save_pretrained(source)
    dims = read_dimensions(source)
    tiny = tiny_engine(dims, lanes=LateLanes(), microbatches=2, **PLACES["all elsewhere"])
    load_first_weights(source, dims, dict(tiny.store.named_tensors()), {})
    before = tiny.weights()
    for number in range(1, 4):
        tiny.engine.step(step_rows(number, num_microbatches=2), number, 3e-3)
    weights = tiny.weights()  # settled
    assert all(not torch.equal(weights[name], before[name]) for name in before)
    content = checkpoint.Content(
        weights=dict(tiny.store.named_tensors()),
        statistics=tiny.optimizer.named_tensors(),
        common=files_beside_weights(source, template="", dtype="float32", stop_ids=[1], pad_id=0),
        device=CPU,
    )
    saved = checkpoint.save(run, content, state_of(3), Ranks()).path

    loaded, report = AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = batch_of([row_of(7, [LENGTH])])
    ids = torch.from_numpy(batch.ids).long()
    with torch.no_grad():
        expected = loaded.eval()(ids).logits
    assert relative_difference(our_logits(weights, dims, ids, [[0, LENGTH]]), expected) < 1e-5
    # And what the engine itself makes of the row, from slots.
    loss = F.cross_entropy(expected[0, :-1], ids[0, 1:], reduction="sum")
    assert float(tiny.engine.evaluate(batch).loss_sum) == pytest.approx(float(loss), rel=1e-5)
