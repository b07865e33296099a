import pytest
import torch

from tests.gpu.waiting import waiting_is_an_error
from workbench.model.attention import (
    attend,
    attention_structure,
    choose_method,
    varlen_support,
)
from workbench.model.decoder import row_context
from workbench.model.families import Dimensions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [[700, 4, 120, 200], [1000, 24, 0, 0], [1, 1, 510, 512]]


@pytest.mark.parametrize("window", [None, 65])
@pytest.mark.parametrize("method", ["varlen", "sdpa"])
def test_attention_equals_the_dense_twin_in_bf16(method: str, window: int | None) -> None:
    device, dtype, row_length = torch.device("cuda"), torch.bfloat16, 1024
    assert choose_method(method, device, dtype) == method
    starts = torch.tensor([[0, *torch.tensor(row).cumsum(0)[:-1].tolist()] for row in LENGTHS])
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(3, row_length, heads, 64, generator=generator).to(device, dtype)
        for heads in (8, 2, 2, 8)
    ]
    results = []
    for chosen in (method, "dense"):
        structure = attention_structure(
            starts.int(),
            row_length,
            window,
            chosen,
            device,
            dtype=dtype,  # type: ignore[arg-type]
        )
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs[:3])
        out = attend(q, k, v, structure)
        results.append((out, *torch.autograd.grad(out, (q, k, v), inputs[3])))
    for ours, twin in zip(*results, strict=True):
        difference = (ours.float() - twin.float()).norm() / twin.float().norm()
        assert difference < 1e-2


def test_preparing_and_attending_wait_for_nothing() -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    assert varlen_support(device, dtype, 64) is not None
    dims = Dimensions("mistral", 1, 128, 256, 2, 1, 64, 100, 1e-5, 10000.0, 4096, 100, False, 0.02)
    starts = torch.tensor([[0, 700, 704, 824], [0, 1000, 1024, 1024]], dtype=torch.int32)
    q = torch.randn(2, 1024, 2, 64, device=device, dtype=dtype)
    k = torch.randn(2, 1024, 1, 64, device=device, dtype=dtype)
    pinned = starts.pin_memory()
    row_context(starts, 1024, dims, dtype, device=device)  # keeps the frequencies on the device
    torch.cuda.synchronize()
    with waiting_is_an_error():
        for given in (pinned, starts):
            context = row_context(given, 1024, dims, dtype, device=device)
            attend(q, k, k, context.structure)
    assert context.structure.way == "varlen"
