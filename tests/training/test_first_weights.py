from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.test_checkpoint_parts import DIMS
from workbench.errors import RunError
from workbench.model.weights import random_weights, write_weights
from workbench.training.first_weights import draw_first_weights, load_first_weights
from workbench.training.optimizer.exact import join_exact


def places(low: torch.dtype | None = torch.int16) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {n: torch.full_like(w, 7) for n, w in random_weights(DIMS, 0, torch.bfloat16).items()}
    lows = {n: torch.full(w.shape, 9, dtype=low) for n, w in weights.items()} if low else {}
    return weights, lows


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_weights_begin_with_all_bits_of_a_folder(tmp_path: Path, stored: torch.dtype) -> None:
    source = random_weights(DIMS, 1, stored)
    write_weights(tmp_path, source, max_shard_bytes=4000)
    weights, low_bits = places()
    load_first_weights(tmp_path, DIMS, weights, low_bits)
    for name, tensor in source.items():
        assert torch.equal(join_exact(weights[name], low_bits[name]), tensor.float())
    assert any(low.any() for low in low_bits.values()) == (stored != torch.bfloat16)


def test_exact_weights_are_drawn_with_all_bits() -> None:
    weights, low_bits = places()
    draw_first_weights(DIMS, 5, weights, low_bits)
    for name, tensor in random_weights(DIMS, 5, torch.float32).items():
        assert torch.equal(join_exact(weights[name], low_bits[name]), tensor)


def test_rounded_weights_begin_at_the_nearest_number(tmp_path: Path) -> None:
    source = random_weights(DIMS, 1, torch.float32)
    write_weights(tmp_path, source)
    loaded, _ = places(low=None)
    load_first_weights(tmp_path, DIMS, loaded, {})
    drawn, _ = places(low=None)
    draw_first_weights(DIMS, 1, drawn, {})
    for name, tensor in source.items():
        assert torch.equal(loaded[name], tensor.bfloat16())
        assert torch.equal(drawn[name], tensor.bfloat16())


def test_another_model_is_refused_before_anything_changes(tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(replace(DIMS, vocabulary_size=32), 1, torch.float32))
    weights, low_bits = places()
    with pytest.raises(RunError, match="of another shape"):
        load_first_weights(tmp_path, DIMS, weights, low_bits)
    assert all(tensor.eq(7).all() for tensor in weights.values())
    assert all(tensor.eq(9).all() for tensor in low_bits.values())
