from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.gpu.waiting import waiting_is_an_error
from tests.model.kernel_cases import (
    EPSILON,
    Turned,
    bias_results,
    expected_losses,
    gated_results,
    head_norm_results,
    logits_case,
    losses_of,
    norm_results,
    packed_reference,
    packed_result,
    poisoned,
    random,
    relative_error,
    rotate_result,
    rows_case,
    rows_result,
    turned_case,
)
from workbench.model.kernel_choice import choose_kernels
from workbench.model.kernels import EagerKernels, Kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
TWINS = EagerKernels()
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
DTYPES = pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
# One row; odd; a program per row; more rows than programs; widths of 7B and 13B models.
SIZES = pytest.mark.parametrize(
    ("rows", "width"), [(1, 8), (3, 33), (37, 896), (2500, 1025), (1027, 4096), (300, 5120)]
)
HEADS = pytest.mark.parametrize(
    ("queries", "keys", "head_dim"), [(32, 8, 128), (14, 2, 64), (3, 1, 6), (9, 9, 80)]
)


@pytest.fixture
def fused() -> Kernels:
    torch.manual_seed(29)
    return choose_kernels(CUDA)


def differs_by_ulps(found: Tensor, expected: Tensor, ulps: int) -> bool:
    """Tell whether any element is further away than so many last bits; tiny ones may be."""
    relative = ulps * 2.0**-7 if found.dtype == torch.bfloat16 else 1e-5
    return not torch.allclose(found.float(), expected.float(), rtol=relative, atol=1e-5)


def test_a_cuda_device_gets_the_fused_kernels(fused: Kernels) -> None:
    assert type(fused).__name__ == "FusedKernels"


@DTYPES
@SIZES
def test_norm_and_its_gradients_are_those_of_float64(
    fused: Kernels, rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in norm_results(fused, rows, width, dtype, CUDA):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
@pytest.mark.parametrize("rows", [1, 37, 5003])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 8), (16, 128), (9, 80), (64, 64), (3, 256)])
def test_norms_of_heads_and_their_gradients_are_those_of_float64(
    fused: Kernels, rows: int, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    for name, found, expected in head_norm_results(fused, rows, heads, head_dim, dtype, CUDA):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
@SIZES
def test_biases_and_their_gradients_are_those_of_float64(
    fused: Kernels, rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in bias_results(fused, rows, width, dtype, CUDA):
        assert relative_error(found, expected) < BOUNDS[dtype], name


def test_sums_of_columns_repeat_bit_for_bit(fused: Kernels) -> None:
    gradient = random(8191, 6144, dtype=torch.bfloat16, device=CUDA)
    sums = []
    for _ in range(3):
        sums.append(torch.zeros(6144, device=CUDA))
        fused.add_columns(gradient, onto_N=sums[-1])
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@DTYPES
@HEADS
def test_rotation_is_the_twins_bit_for_bit(
    fused: Kernels, queries: int, keys: int, head_dim: int, dtype: torch.dtype
) -> None:
    case = turned_case(301, (queries, keys), head_dim, dtype, CUDA)
    assert torch.equal(rotate_result(fused, case), case.reference(case.qkv))


@DTYPES
@pytest.mark.parametrize("strided", [False, True])
@HEADS
def test_gradients_are_turned_back_and_put_side_by_side(
    fused: Kernels, queries: int, keys: int, head_dim: int, strided: bool, dtype: torch.dtype
) -> None:
    case = turned_case(301, (queries, keys), head_dim, dtype, CUDA)
    gradient = random(*case.qkv.shape, dtype=dtype, device=CUDA)
    found = packed_result(fused, case, gradient, strided=strided)
    assert relative_error(found, packed_reference(case, gradient)) < BOUNDS[dtype]


@DTYPES
@SIZES
def test_gated_product_and_its_gradients_are_those_of_float64(
    fused: Kernels, rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in gated_results(fused, rows, width, dtype, CUDA):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
def test_backward_leaves_the_very_product_that_forward_wrote(
    fused: Kernels, dtype: torch.dtype
) -> None:
    gate_up = random(513, 2 * 3001, dtype=dtype, device=CUDA) * 3
    written = poisoned(513, 3001, dtype=dtype, device=CUDA)
    fused.gated_product(gate_up, out_TF=written)
    product = random(513, 3001, dtype=dtype, device=CUDA)
    fused.gated_product_backward(gate_up, product)
    assert torch.equal(product, written)


@DTYPES
@pytest.mark.parametrize("vocabulary", [2, 1536, 32000, 50257, 151936, 262144])
def test_losses_and_gradients_are_those_of_cross_entropy(
    fused: Kernels, vocabulary: int, dtype: torch.dtype
) -> None:
    logits, labels = logits_case(37, vocabulary, dtype, CUDA)
    found, expected = (
        losses_of(fused, logits, labels, 0.125),
        expected_losses(logits, labels, 0.125),
    )
    assert relative_error(found.losses, expected.losses) < 1e-6
    assert relative_error(found.logits, expected.logits) < BOUNDS[dtype]
    assert torch.equal(found.correct, losses_of(TWINS, logits, labels, None).correct)
    alone = losses_of(fused, logits, labels, None)
    assert torch.equal(alone.losses, found.losses)
    assert torch.equal(alone.logits, logits)


@DTYPES
def test_infinite_logits_are_seen(fused: Kernels, dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 300, dtype=dtype, device=CUDA)
    logits[0, 7], logits[1, 299], logits[2, 0] = torch.inf, torch.nan, -torch.inf
    labels = torch.full((4,), 5, device=CUDA)
    losses = losses_of(fused, logits, labels, 1.0).losses
    assert losses.isfinite().tolist() == [False, False, True, True]


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.bfloat16], ids=str)
@DTYPES
@pytest.mark.parametrize("width", [24, 1025, 4096])
def test_rows_of_equal_id_are_added_up_as_the_twin_does(
    fused: Kernels, width: int, dtype: torch.dtype, sum_dtype: torch.dtype
) -> None:
    ids = np.random.default_rng(3).zipf(1.3, 3001) % 500
    rows = rows_case(ids, width, dtype, CUDA)
    onto = random(500, width, dtype=sum_dtype, device=CUDA)
    found, expected = rows_result(fused, rows, onto)
    assert relative_error(found, expected) < BOUNDS[sum_dtype]
    assert torch.equal(found[13], onto[13]) or 13 in ids
    by_twin, _ = rows_result(TWINS, rows, onto)
    # Long sums in another order differ by more than their last bit in fp32.
    assert relative_error(found, by_twin) < 1e-6 or not differs_by_ulps(found, by_twin, 1)


def everything(kernels: Kernels) -> Iterator[tuple[str, Tensor]]:
    """Run each kernel on inputs of a fixed seed; give what it wrote."""
    torch.manual_seed(5)
    dtype = torch.bfloat16
    for name, found, _ in norm_results(kernels, 999, 2048, dtype, CUDA):
        yield name, found
    for name, found, _ in head_norm_results(kernels, 999, 12, 128, dtype, CUDA):
        yield name, found
    for name, found, _ in bias_results(kernels, 999, 2050, dtype, CUDA):
        yield name, found
    case = turned_case(301, (32, 8), 128, dtype, CUDA)
    yield "turned", rotate_result(kernels, case)
    gradient = random(*case.qkv.shape, dtype=dtype, device=CUDA)
    yield "turned back", packed_result(kernels, case, gradient, strided=True)
    for name, found, _ in gated_results(kernels, 300, 3001, dtype, CUDA):
        yield name, found
    losses = losses_of(kernels, *logits_case(65, 32001, dtype, CUDA), 0.5)
    yield from vars(losses).items()
    ids = np.random.default_rng(3).zipf(1.3, 3001) % 500
    onto = random(500, 1030, dtype=torch.float32, device=CUDA)
    yield "rows", rows_result(kernels, rows_case(ids, 1030, dtype, CUDA), onto)[0]


def test_each_element_is_within_the_last_bit_of_the_twins(fused: Kernels) -> None:
    # Norm and product are rounded twice: before and after the second factor.
    twice = ("norm", "normed heads", "product", "product after backward")
    long_sums = (
        "gradient of the weight", "gradient of the heads' weight", "gradient of the bias", "rows",
    )  # fmt: skip
    by_twin = dict(everything(TWINS))
    for name, found in everything(fused):
        if name in long_sums:  # of any sign
            assert relative_error(found, by_twin[name]) < 1e-6
            continue
        assert not differs_by_ulps(found, by_twin[name], 2 if name in twice else 1), name


def test_results_repeat_bit_for_bit(fused: Kernels) -> None:
    first = dict(everything(fused))
    for name, again in everything(fused):
        assert torch.equal(again, first[name]), name


def test_no_kernel_waits_for_the_device(fused: Kernels) -> None:
    rows, width, dtype = 513, 768, torch.bfloat16
    x, gradient, onto, weight = (
        random(*shape, dtype=dtype, device=CUDA)
        for shape in ((rows, width), (rows, width), (rows, width), (width,))
    )
    weight_sum = torch.zeros(width, device=CUDA)
    case: Turned = turned_case(rows, (8, 2), 64, dtype, CUDA)
    parts = case.qkv.unflatten(1, (-1, 64)).split([8, 2, 2], dim=1)
    packed = torch.empty_like(case.qkv)
    head_weight = torch.ones(64, dtype=dtype, device=CUDA)
    head_sum = torch.zeros(64, device=CUDA)
    product = torch.empty(rows, width // 2, dtype=dtype, device=CUDA)
    logits, labels = logits_case(rows, 3000, dtype, CUDA)
    losses, correct = torch.empty(rows, device=CUDA), torch.empty_like(labels, dtype=torch.bool)
    sums = rows_case(np.arange(rows) % 50, width, dtype, CUDA)
    for kernels in (fused, TWINS):

        def run(kernels: Kernels = kernels) -> None:
            kernels.norm(x, weight, EPSILON, out_TD=onto)
            kernels.norm_backward(
                gradient, x, weight, EPSILON, onto_TD=onto, weight_sum_D=weight_sum
            )
            kernels.rotate(case.qkv, case.cosine, case.sine, num_heads=10, head_dim=64)
            kernels.pack_rotated_back(*parts, case.cosine, case.sine, out_TE=packed)
            kernels.norm_heads(case.qkv[:, :640], head_weight, EPSILON, out_TN=packed[:, :640])
            kernels.norm_heads_backward(
                packed[:, :640], case.qkv[:, :640], head_weight, EPSILON, weight_sum_R=head_sum
            )
            kernels.add_bias(x, weight)
            kernels.add_columns(x, onto_N=weight_sum)
            kernels.gated_product(x, out_TF=product)
            kernels.gated_product_backward(x, product)
            kernels.cross_entropy(logits, labels, 0.5, losses_C=losses, correct_C=correct)
            kernels.add_rows(sums.gradient, sums.order, sums.begins, sums.distinct, onto_VD=onto)

        run()
        torch.cuda.synchronize()
        with waiting_is_an_error():
            run()


def test_tensors_of_more_than_two_to_the_31_elements_are_reached(fused: Kernels) -> None:
    rows, width = 76000, 14336
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free device memory")
    assert rows * 2 * width > 1 << 31
    gate_up = torch.empty(rows, 2 * width, dtype=torch.bfloat16, device=CUDA).normal_()
    product = torch.empty(rows, width, dtype=torch.bfloat16, device=CUDA)
    expected, last = gate_up[-5:].clone(), poisoned(5, width, dtype=torch.bfloat16, device=CUDA)
    fused.gated_product(gate_up, out_TF=product)
    fused.gated_product(expected, out_TF=last)
    assert torch.equal(product[-5:], last)
    fused.gated_product_backward(gate_up, product)
    fused.gated_product_backward(expected, last)
    assert torch.equal(gate_up[-5:], expected)
    # The same memory as logits of a large vocabulary.
    logits = gate_up.view(-1)[: 16384 * 131072 + 2 * 131072].view(-1, 131072)
    labels = torch.full((logits.shape[0],), 131071, device=CUDA)
    begin = logits[-3:].clone()
    losses = poisoned(logits.shape[0], dtype=torch.float32, device=CUDA)
    fused.cross_entropy(logits, labels, 1.0, losses_C=losses)
    by_few = losses_of(fused, begin, labels[-3:], 1.0)
    assert torch.equal(losses[-3:], by_few.losses)
    assert torch.equal(logits[-3:], by_few.logits)


def test_no_rows_are_no_work(fused: Kernels) -> None:
    none = torch.empty(0, 16, device=CUDA)
    weight, weight_sum = torch.ones(16, device=CUDA), torch.zeros(16, device=CUDA)
    labels = torch.empty(0, dtype=torch.int64, device=CUDA)
    fused.norm(none, weight, EPSILON, out_TD=none)
    fused.norm_backward(none, none, weight, EPSILON, onto_TD=none, weight_sum_D=weight_sum)
    fused.norm_heads(none, weight[:8], EPSILON, out_TN=none)
    fused.norm_heads_backward(none, none, weight[:8], EPSILON, weight_sum_R=weight_sum[:8])
    fused.add_bias(none, weight)
    fused.add_columns(none, onto_N=weight_sum)
    fused.gated_product(none, out_TF=none[:, :8])
    fused.gated_product_backward(none, none[:, :8])
    fused.cross_entropy(none, labels, 1.0, losses_C=torch.empty(0, device=CUDA))
    assert not weight_sum.any()
