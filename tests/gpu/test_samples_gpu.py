"""On a GPU too, what the model says is the same wherever its weights wait, and nothing learns."""

from typing import Any

import pytest
import torch

from tests.gpu.engines import middling, middling_engine, shared_and_lone_rows
from tests.training.test_step import assert_same
from tests.training.test_streaming import PLACES, state
from workbench.training.device import allow_deterministic_algorithms_only

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEARNING_RATE = 1e-3


@pytest.mark.parametrize("place", PLACES)
def test_what_is_asked_between_steps_changes_no_bit_of_them(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    allow_deterministic_algorithms_only()
    try:
        settings: dict[str, Any] = PLACES[place]
        silent, asked = middling_engine(middling()), middling_engine(middling(), **settings)
        question = shared_and_lone_rows(90).microbatches
        for number in range(1, 6):
            rows = shared_and_lone_rows(number)
            sums = [
                tiny.engine.step(rows, number, LEARNING_RATE).loss_sum for tiny in (silent, asked)
            ]
            said = [tiny.engine.logits(*question) for tiny in (silent, asked)]
            assert torch.equal(*said)
            assert said[0].dtype == torch.float32
            assert torch.equal(*sums)
        assert_same(state(silent), state(asked))
    finally:
        torch.use_deterministic_algorithms(False)


def test_logits_give_the_loss_that_an_evaluation_finds() -> None:
    tiny = middling_engine(middling(), **PLACES["all elsewhere"])
    batches = shared_and_lone_rows(3).microbatches
    logits = tiny.engine.logits(*batches)
    labels = torch.cat([torch.from_numpy(batch.ids[batch.targets]) for batch in batches]).long()
    assert len(labels) > 100
    loss = torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
    found = float(tiny.engine.evaluate(*batches).loss_sum)
    assert float(loss) == pytest.approx(found, rel=1e-3)
