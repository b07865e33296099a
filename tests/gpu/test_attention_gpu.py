import pytest
import torch
from torch import Tensor

from tests.gpu.waiting import waiting_is_an_error
from tests.model.attention_rows import (
    relative_difference,
    starts_of,
    twin_results,
    views_of_one_buffer,
)
from workbench.model.attention import (
    Attended,
    AttentionStructure,
    attend,
    attend_backward,
    attend_forward,
    attention_structure,
    choose_method,
    keeps_log_sum,
)
from workbench.model.attention_kernels import kernel_works
from workbench.model.decoder import row_context
from workbench.model.families import Dimensions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
SHARED = [[700, 4, 120, 200], [1000, 24, 0, 0], [1, 1, 510, 512]]
ALONE = [[1024], [1024], [1024]]


def structure_of(
    lengths: list[list[int]], window: int | None = None, method: str = "varlen", head_dim: int = 64
) -> AttentionStructure:
    return attention_structure(
        starts_of(lengths),
        sum(lengths[0]),
        window,
        method,  # type: ignore[arg-type]
        CUDA,
        dtype=BF16,
        head_dim=head_dim,
    )


def explicit(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, structure: AttentionStructure
) -> tuple[Tensor, ...]:
    attended = attend_forward(q, k, v, structure)
    return (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))


@pytest.mark.parametrize(("heads", "head_dim"), [((8, 2), 64), ((4, 4), 128), ((6, 1), 80)])
@pytest.mark.parametrize(
    ("lengths", "window", "method"),
    [
        (SHARED, None, "varlen"),
        (SHARED, 65, "varlen"),
        (ALONE, None, "varlen"),
        (ALONE, 65, "varlen"),
        (SHARED, None, "sdpa"),
        (SHARED, 65, "sdpa"),
        (ALONE, None, "sdpa"),
    ],
)
def test_forward_and_backward_equal_the_twin(
    lengths: list[list[int]], window: int | None, method: str, heads: tuple[int, int], head_dim: int
) -> None:
    assert choose_method(method, CUDA, BF16, head_dim) == method
    structure = structure_of(lengths, window, method, head_dim)
    q, k, v, gradient = views_of_one_buffer(3, 1024, heads, head_dim, BF16, CUDA)
    expected = twin_results(q, k, v, gradient, starts_of(lengths), window)
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = attend(*leaves, structure)  # type: ignore[call-arg]
    with_graph = (out.detach(), *torch.autograd.grad(out, leaves, gradient))
    for results in (explicit(q, k, v, gradient, structure), with_graph):
        for found, reference in zip(results, expected, strict=True):
            assert found.dtype == BF16
            assert relative_difference(found, reference) < 5e-3


def test_shared_rows_have_an_explicit_kernel() -> None:
    assert structure_of(SHARED).kernel == "flash"
    assert keeps_log_sum(structure_of(SHARED, window=65))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="cuDNN is chosen from Hopper on",
)
def test_rows_of_one_document_use_cudnn_unless_bits_must_repeat() -> None:
    assert structure_of(ALONE).kernel == "cudnn"
    torch.use_deterministic_algorithms(True)
    try:
        assert structure_of(ALONE).kernel == "flash"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("lengths", [SHARED, ALONE, [[8192]]])
def test_deterministic_gradients_repeat_bit_by_bit(lengths: list[list[int]]) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        structure = structure_of(lengths)
        rows, length = len(lengths), sum(lengths[0])
        q, k, v, gradient = views_of_one_buffer(rows, length, (8, 2), 64, BF16, CUDA)
        runs = [explicit(q, k, v, gradient, structure) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("lengths", [SHARED, ALONE])
def test_a_record_may_lie_in_pinned_memory_until_the_backward(lengths: list[list[int]]) -> None:
    structure = structure_of(lengths)
    q, k, v, gradient = views_of_one_buffer(3, 1024, (8, 2), 64, BF16, CUDA)
    torch.use_deterministic_algorithms(structure.kernel == "flash")
    try:
        attended = attend_forward(q, k, v, structure)
        expected = attend_backward(gradient, q, k, v, attended, structure)
        assert attended.log_sum is not None
        kept = [
            tensor.contiguous().cpu().pin_memory()
            for tensor in (attended.out_BTHD, attended.log_sum)
        ]
        attended.out_BTHD.fill_(torch.nan)
        attended.log_sum.fill_(torch.nan)
        copies = Attended(kept[0].cuda(), kept[1].cuda())
        found = attend_backward(gradient, q, k, v, copies, structure)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, reference in zip(found, expected, strict=True):
        assert relative_difference(ours, reference.double()) < 3e-3


def test_an_altered_document_changes_no_bit_of_its_neighbours() -> None:
    structure = structure_of(SHARED)
    q, k, v, gradient = views_of_one_buffer(3, 1024, (8, 2), 64, BF16, CUDA)
    altered = torch.zeros(3, 1024, dtype=torch.bool, device=CUDA)
    altered[0, 704:824] = True
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for factor in (1.0, -3.0):
            for tensor in (q, k, v, gradient):
                tensor[altered] = tensor[altered] * factor
            results.append(explicit(q, k, v, gradient, structure))
    finally:
        torch.use_deterministic_algorithms(False)
    for before, after in zip(*results, strict=True):
        assert torch.equal(before[~altered], after[~altered])
        assert not torch.equal(before[altered], after[altered])


def test_documents_that_share_a_row_attend_as_they_do_alone() -> None:
    q, k, v, gradient = views_of_one_buffer(3, 1024, (8, 2), 64, BF16, CUDA)
    together = explicit(q, k, v, gradient, structure_of(SHARED))
    num_documents = 0
    for row, lengths in enumerate(SHARED):
        for begin, length in zip(starts_of(SHARED)[row].tolist(), lengths, strict=True):
            if length == 0:
                continue
            here = (slice(row, row + 1), slice(begin, begin + length))
            leaves = [tensor[here].detach().requires_grad_() for tensor in (q, k, v)]
            by_head = [leaf.transpose(1, 2) for leaf in leaves]
            out = torch.nn.functional.scaled_dot_product_attention(
                *by_head, is_causal=True, enable_gqa=True
            ).transpose(1, 2)
            alone = (out.detach(), *torch.autograd.grad(out, leaves, gradient[here]))
            num_documents += 1
            for ours, reference in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[here], reference, rtol=2e-2, atol=2e-2)
    assert num_documents == 10


@pytest.mark.parametrize("shared", [False, True])
def test_a_row_of_131072_tokens_needs_no_more_than_its_tokens(shared: bool) -> None:
    length, heads, head_dim = 131072, (16, 4), 64
    lengths = [[length - 3000, 3000]] if shared else [[length]]
    structure = structure_of(lengths)
    assert keeps_log_sum(structure)
    q, k, v, gradient = views_of_one_buffer(1, length, heads, head_dim, BF16, CUDA)
    structure_of(ALONE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, dq, dk, dv = explicit(q, k, v, gradient, structure)
    peak = torch.cuda.max_memory_allocated() - before
    # Result, log-sum-exp and gradients; what a call takes for itself has a bound of its own.
    results = length * (2 * head_dim * (2 * heads[0] + 2 * heads[1]) + 4 * heads[0])
    assert peak < results + (20 * head_dim << 19)
    # The last queries see everything before them: their rows alone, in fp32.
    last = slice(length - 64, length)
    first_seen = length - 3000 if shared else 0
    keys, values = (
        tensor[0, first_seen:].float().repeat_interleave(4, 1).transpose(0, 1) for tensor in (k, v)
    )
    queries = q[0, last].float().transpose(0, 1).requires_grad_()
    scores = queries @ keys.transpose(1, 2) / head_dim**0.5
    ahead = torch.ones(64, 64, dtype=torch.bool, device=CUDA).triu(1)
    scores[:, :, -64:].masked_fill_(ahead, -torch.inf)
    expected = torch.softmax(scores, -1) @ values
    (expected_dq,) = torch.autograd.grad(
        expected, queries, gradient[0, last].float().transpose(0, 1)
    )
    assert relative_difference(out[0, last].transpose(0, 1), expected.detach().double()) < 1e-2
    assert relative_difference(dq[0, last].transpose(0, 1), expected_dq.double()) < 1e-2
    # Shares add up to one, and scaling queries up is scaling keys up.
    of_heads = gradient.double().sum(1).unflatten(1, (heads[1], 4)).sum(2)
    assert relative_difference(dv.double().sum(1), of_heads) < 1e-2
    turned = (dq.double() * q.double()).sum(), (dk.double() * k.double()).sum()
    scale = (dq.double() * q.double()).norm()
    assert abs(float(turned[0] - turned[1])) < 1e-1 * float(scale)


@pytest.mark.parametrize("deterministic", [False, True])
def test_preparing_and_attending_wait_for_nothing(deterministic: bool) -> None:
    assert kernel_works("flash", CUDA, BF16, 64)
    dims = Dimensions("mistral", 1, 128, 256, 2, 1, 64, 100, 1e-5, 10000.0, 4096, 100, False, 0.02)
    shared = torch.tensor([[0, 700, 704, 824], [0, 1000, 1024, 1024]], dtype=torch.int32)
    alone = torch.tensor([[0, 1024], [0, 1024]], dtype=torch.int32)
    q, k, v, gradient = views_of_one_buffer(2, 1024, (2, 1), 64, BF16, CUDA)
    torch.use_deterministic_algorithms(deterministic)
    try:
        for starts in (shared, alone):  # tests the kernels, keeps the frequencies on the device
            context = row_context(starts, 1024, dims, BF16, device=CUDA)
            explicit(q, k, v, gradient, context.structure)
        torch.cuda.synchronize()
        with waiting_is_an_error():
            for starts in (shared.pin_memory(), shared, alone.pin_memory(), alone):
                context = row_context(starts, 1024, dims, BF16, device=CUDA)
                explicit(q, k, v, gradient, context.structure)
                attend(q, k, v, context.structure)
                assert keeps_log_sum(context.structure)
    finally:
        torch.use_deterministic_algorithms(False)


def test_starts_on_the_device_attend_as_those_on_the_host() -> None:
    starts = starts_of(SHARED)
    q, k, v, gradient = views_of_one_buffer(3, 1024, (8, 2), 64, BF16, CUDA)
    torch.cuda.synchronize()
    on_device = starts.cuda()
    with waiting_is_an_error():
        structure = attention_structure(on_device, 1024, None, "varlen", CUDA, dtype=BF16)
    expected = explicit(q, k, v, gradient, structure_of(SHARED))
    found = explicit(q, k, v, gradient, structure)
    assert all(
        relative_difference(ours, reference.double()) < 3e-3
        for ours, reference in zip(found, expected, strict=True)
    )


def test_documents_of_one_token_pass_their_values_on() -> None:
    structure = structure_of([[1] * 16])
    q, k, v, gradient = views_of_one_buffer(1, 16, (8, 2), 64, BF16, CUDA)
    out, dq, dk, dv = explicit(q, k, v, gradient, structure)
    torch.testing.assert_close(out, v.repeat_interleave(4, 2))
    assert dq.abs().max() < 1e-2
    assert dk.abs().max() < 1e-2
    summed = gradient.unflatten(2, (2, 4)).double().sum(3)
    assert relative_difference(dv, summed) < 5e-3
