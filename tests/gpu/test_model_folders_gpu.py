"""Weights of every form, straight into GPU memory; what is not finite is found there."""

from pathlib import Path

import pytest
import torch

from tests.model.model_folders import write_bin_files
from tests.model.tiny import dimensions_of, reference_model
from workbench.errors import RunError
from workbench.model.weights import load_into, random_weights, write_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SOME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("num_bin_shards", [0, 1, 3])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_go_to_the_gpu_and_a_spoilt_one_is_named(
    tmp_path: Path, stored: torch.dtype, num_bin_shards: int
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, 2, stored)

    def write() -> None:
        if num_bin_shards:
            write_bin_files(tmp_path, weights, num_bin_shards)
        else:
            write_weights(tmp_path, weights)

    write()
    into = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16, device="cuda")
        for name, tensor in weights.items()
    }
    load_into(tmp_path, dims, into)
    for name, tensor in weights.items():
        assert torch.equal(into[name].cpu(), tensor.bfloat16()), name
    for value in (float("nan"), float("inf"), float("-inf")):
        weights[SOME][-1, -1] = value
        write()
        with pytest.raises(RunError, match=f"{SOME} holds a NaN or an infinity"):
            load_into(tmp_path, dims, into)
