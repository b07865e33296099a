from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.model.kernel_cases import (
    EPSILON,
    SIZES,
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
from workbench.errors import ConfigError
from workbench.model.kernel_choice import choose_kernels
from workbench.model.kernels import EagerKernels, gated_product, rms_norm

CPU = torch.device("cpu")
TWINS = EagerKernels()
# fp32 and float64 to their last bits; bf16 as the equality table of the trainer asks.
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 5e-3}
DTYPES = pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
HEADS = ((4, 2, 16), (3, 1, 6), (9, 3, 80))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(17)


@DTYPES
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_norm_and_its_gradients_are_those_of_float64(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in norm_results(TWINS, rows, width, dtype, CPU):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
def test_norm_rounds_where_the_readable_norm_rounds(dtype: torch.dtype) -> None:
    x = random(7, 48, dtype=dtype, device=CPU)
    weight = random(48, dtype=dtype, device=CPU)
    found = poisoned(7, 48, dtype=dtype, device=CPU)
    TWINS.norm(x, weight, EPSILON, out_TD=found)
    if dtype == torch.float64:  # the readable one works in fp32
        assert relative_error(found, rms_norm(x, weight, EPSILON)) < 1e-6
    else:
        assert torch.equal(found, rms_norm(x, weight, EPSILON))


def test_the_gradient_added_to_a_large_one_is_rounded_once() -> None:
    rows, width = 4, 64
    x, gradient, onto = (random(rows, width, dtype=torch.bfloat16, device=CPU) for _ in range(3))
    onto *= 100
    exact = onto.float()
    weight = torch.ones(width, dtype=torch.bfloat16)
    wide_sum = torch.zeros(width)
    TWINS.norm_backward(
        gradient.float(), x.float(), weight.float(), EPSILON, onto_TD=exact, weight_sum_D=wide_sum
    )
    TWINS.norm_backward(gradient, x, weight, EPSILON, onto_TD=onto, weight_sum_D=torch.zeros(width))
    assert torch.equal(onto, exact.to(torch.bfloat16))


@DTYPES
@pytest.mark.parametrize(("rows", "heads", "head_dim"), [(1, 1, 8), (7, 3, 6), (33, 9, 80)])
def test_norms_of_heads_and_their_gradients_are_those_of_float64(
    rows: int, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    for name, found, expected in head_norm_results(TWINS, rows, heads, head_dim, dtype, CPU):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
def test_norms_of_heads_round_where_the_readable_norm_rounds(dtype: torch.dtype) -> None:
    x = random(7, 48, dtype=dtype, device=CPU)
    weight = random(12, dtype=dtype, device=CPU)
    found = poisoned(7, 48, dtype=dtype, device=CPU)
    TWINS.norm_heads(x, weight, EPSILON, out_TN=found)
    expected = rms_norm(x.unflatten(1, (4, 12)), weight, EPSILON).flatten(1)
    if dtype == torch.float64:  # the readable one works in fp32
        assert relative_error(found, expected) < 1e-6
    else:
        assert torch.equal(found, expected)


@DTYPES
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_biases_and_their_gradients_are_those_of_float64(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in bias_results(TWINS, rows, width, dtype, CPU):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
@pytest.mark.parametrize(("queries", "keys", "head_dim"), HEADS)
def test_rotation_in_place_is_the_readable_one_and_leaves_values_alone(
    queries: int, keys: int, head_dim: int, dtype: torch.dtype
) -> None:
    case = turned_case(5, (queries, keys), head_dim, dtype, CPU)
    assert torch.equal(rotate_result(TWINS, case), case.reference(case.qkv))


@DTYPES
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("queries", "keys", "head_dim"), HEADS)
def test_gradients_are_turned_back_and_put_side_by_side(
    queries: int, keys: int, head_dim: int, strided: bool, dtype: torch.dtype
) -> None:
    case = turned_case(5, (queries, keys), head_dim, dtype, CPU)
    gradient = random(*case.qkv.shape, dtype=dtype, device=CPU)
    found = packed_result(TWINS, case, gradient, strided=strided)
    assert relative_error(found, packed_reference(case, gradient)) < BOUNDS[dtype]


def test_turning_back_undoes_the_rotation() -> None:
    case = turned_case(11, (4, 2), 16, torch.float32, CPU)
    back = packed_result(TWINS, case, rotate_result(TWINS, case), strided=False)
    assert relative_error(back, case.qkv) < 1e-6


@DTYPES
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_gated_product_and_its_gradients_are_those_of_float64(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    for name, found, expected in gated_results(TWINS, rows, width, dtype, CPU):
        assert relative_error(found, expected) < BOUNDS[dtype], name


@DTYPES
def test_backward_leaves_the_very_product_that_forward_wrote(dtype: torch.dtype) -> None:
    gate_up = random(9, 70, dtype=dtype, device=CPU)
    expected = gated_product(*gate_up.chunk(2, dim=1))
    written = poisoned(9, 35, dtype=dtype, device=CPU)
    TWINS.gated_product(gate_up, out_TF=written)
    assert torch.equal(written, expected)
    product = random(9, 35, dtype=dtype, device=CPU)
    TWINS.gated_product_backward(gate_up, product)
    assert torch.equal(product, expected)


@DTYPES
@pytest.mark.parametrize("vocabulary", [2, 33, 1536])
def test_losses_and_gradients_are_those_of_cross_entropy(
    vocabulary: int, dtype: torch.dtype
) -> None:
    logits, labels = logits_case(13, vocabulary, dtype, CPU)
    found, expected = (
        losses_of(TWINS, logits, labels, 0.125),
        expected_losses(logits, labels, 0.125),
    )
    assert relative_error(found.losses, expected.losses) < 1e-6
    assert relative_error(found.logits, expected.logits) < BOUNDS[dtype]
    assert torch.equal(found.correct, expected.correct)


@DTYPES
def test_without_a_scale_logits_stay_as_they_are(dtype: torch.dtype) -> None:
    logits, labels = logits_case(6, 50, dtype, CPU)
    found = losses_of(TWINS, logits, labels, None)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.losses, losses_of(TWINS, logits, labels, 1.0).losses)


def test_large_logits_overflow_nothing_and_infinite_ones_are_seen() -> None:
    logits = torch.tensor([[3e38, 0.0, -3e38], [1e4, -1e4, 0.0], [torch.inf, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    losses = losses_of(TWINS, logits, labels, None).losses
    assert losses[:2].tolist() == [0.0, 2e4]
    assert not losses[2].isfinite()


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy"
)
def test_a_head_made_of_it_agrees_with_that_of_torch() -> None:
    hidden, head = torch.randn(24, 16).requires_grad_(), torch.randn(40, 16).requires_grad_()
    labels = torch.randint(40, (24,))
    loss = F.linear_cross_entropy(hidden, head, labels)
    loss.backward()
    found = losses_of(TWINS, (hidden @ head.t()).detach(), labels, 1 / 24)
    assert hidden.grad is not None
    assert head.grad is not None
    assert relative_error(found.losses.mean(), loss) < 1e-6
    assert relative_error(found.logits @ head, hidden.grad) < 1e-6
    assert relative_error(found.logits.t() @ hidden, head.grad) < 1e-6


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.bfloat16], ids=str)
@DTYPES
def test_rows_of_equal_id_are_added_up_before_they_are_rounded(
    dtype: torch.dtype, sum_dtype: torch.dtype
) -> None:
    ids = np.random.default_rng(3).zipf(1.3, 300) % 20
    rows = rows_case(ids, 24, dtype, CPU)
    found, expected = rows_result(TWINS, rows, random(20, 24, dtype=sum_dtype, device=CPU))
    assert relative_error(found, expected) < BOUNDS[sum_dtype]


def test_a_frequent_id_does_not_stop_growing_in_bf16() -> None:
    rows = rows_case(np.zeros(5000, np.int64), 4, torch.bfloat16, CPU)
    rows.gradient.fill_(0.001)
    found, _ = rows_result(TWINS, rows, torch.zeros(1, 4, dtype=torch.bfloat16))
    assert torch.allclose(found.float(), torch.tensor(5.0), rtol=5e-3)


def test_rows_without_a_token_change_nothing() -> None:
    rows = rows_case(np.zeros(0, np.int64), 4, torch.float32, CPU)
    onto = torch.randn(3, 4)
    assert torch.equal(rows_result(TWINS, rows, onto)[0], onto)


def test_a_cpu_gets_the_eager_kernels() -> None:
    assert isinstance(choose_kernels(CPU), EagerKernels)


def test_compiling_without_a_compiler_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="install g\\+\\+ or clang\\+\\+"):
        choose_kernels(CPU, compiled=True)
