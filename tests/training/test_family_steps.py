"""Steps of what families differ in: biases, norms of heads, windows by block, positions."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.model.kernel_cases import relative_error
from tests.training.late_lanes import LateLanes
from tests.training.test_step import assert_same, train_by_autograd
from tests.training.test_streaming import PLACES, RECOMPUTE, state
from tests.training.tiny import CPU, LENGTH, TinyEngine, dimensions, step_rows, tiny_engine
from workbench.config.memory_parts import Recompute
from workbench.config.rotary_scaling import RotaryScaling
from workbench.model.decoder import block_forward, block_parameters, row_context
from workbench.model.families import Dimensions
from workbench.model.kernels import EagerKernels
from workbench.training.engine.block import BlockPass, Sums
from workbench.training.engine.block_layout import bias_columns, weight_layout
from workbench.training.engine.gradient_sums import GradientSums
from workbench.training.engine.records import record_layout

LEARNING_RATE = 3e-3
K_BIAS = "self_attn.k_proj.bias"
WINDOW = 3  # documents are of 4 to 6 tokens
ALL = ("q", "k", "v", "o", "gate", "up", "down")

SWITCHES: dict[str, dict[str, Any]] = {
    "llama with all biases": {"biased": ALL},
    "qwen2": {"biased": ("q", "k", "v")},
    "qwen3": {"query_key_norm": True},
    "biases before norms": {"biased": ("q", "k", "v", "o"), "query_key_norm": True},
    "parts of stacks": {"biased": ("q", "v", "up", "down")},
    "a window in some blocks": {
        "sliding_window": WINDOW,
        "sliding_blocks": (True, False, True, True, False),
    },
    "no positions in some blocks": {"turned_blocks": (True, False, False, True, True)},
    "dynamic positions": {
        "rotary": RotaryScaling("dynamic", (("factor", 2.0), ("max_position_embeddings", 4.0)))
    },
    "yarn positions": {
        "rotary": RotaryScaling(
            "yarn",
            (
                ("attention_factor", 1.2),
                ("beta_fast", 32.0),
                ("beta_slow", 1.0),
                ("factor", 4.0),
                ("original_max_position_embeddings", 4.0),
                ("truncate", 1.0),
            ),
        )
    },
    "everything": {
        "biased": ALL,
        "query_key_norm": True,
        "sliding_window": WINDOW,
        "sliding_blocks": (False, True, False, True, True),
        "turned_blocks": (False, True, True, False, True),
    },
}


def family(switches: str, *, layers: int = 5, tied: bool = False) -> Dimensions:
    changes = dict(SWITCHES[switches])
    for name in ("sliding_blocks", "turned_blocks"):
        if name in changes:
            changes[name] = changes[name][:layers]
    return replace(dimensions(layers=layers, tied=tied), **changes)


def engine_of(dims: Dimensions, **changes: Any) -> TinyEngine:  # noqa: ANN401
    """An engine whose vectors are no ones and zeros: then a part left out shows."""
    tiny = tiny_engine(dims, **changes)
    generator = torch.Generator().manual_seed(11)
    weights = tiny.weights()
    for name, weight in weights.items():
        if weight.dim() == 1:
            drawn = torch.rand(weight.shape, generator=generator)
            weight.copy_(drawn - 0.5 if name.endswith(".bias") else drawn + 0.5)
    tiny.store.load(weights)
    return tiny


def train(tiny: TinyEngine, *, num_steps: int = 4, num_microbatches: int = 2) -> list[float]:
    losses = []
    for number in range(1, num_steps + 1):
        rows = step_rows(number, num_microbatches=num_microbatches)
        result = tiny.engine.step(rows, number, LEARNING_RATE)
        losses.append(float(result.loss_sum) / rows.num_targets)
    return losses


@pytest.mark.parametrize("recompute", ["full", "selective", "none"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_block_and_its_gradients_equal_those_of_autograd(
    switches: str, recompute: Recompute
) -> None:
    torch.manual_seed(23)
    dims = family(switches)
    starts = torch.tensor([[0, 5, 11, 24], [0, 23, 24, 24], [0, 1, 2, 14]], dtype=torch.int32)
    context = row_context(starts, LENGTH, dims, torch.float32, "sdpa")
    tokens = starts.shape[0] * LENGTH
    x, of_output = (torch.randn(tokens, dims.hidden_size) for _ in range(2))
    passing = BlockPass(
        dims, max_tokens=tokens, tile_rows=17, dtype=torch.float32, device=CPU,
        kernels=EagerKernels(),
    )  # fmt: skip
    layout = weight_layout(dims, torch.float32)
    weights = layout.views(torch.zeros(layout.num_bytes, dtype=torch.uint8))
    for name, shape in block_parameters(dims).items():
        weights[name].normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
        assert weights[name].shape == shape
    for block in range(2):
        leaves = {name: weights[name].clone().requires_grad_() for name in block_parameters(dims)}
        leaf = x.clone().requires_grad_()
        expected = block_forward(leaves, leaf.view(3, LENGTH, -1), context, dims, block)
        expected.backward(of_output.view(expected.shape))
        kept = record_layout(dims, tokens, recompute, torch.float32)
        record = kept.views(torch.zeros(kept.num_bytes, dtype=torch.uint8))
        hidden, gradient = x.clone(), of_output.clone()
        passing.forward(weights, hidden, context, record, block=block)
        sums = GradientSums(dims, torch.float32, CPU)
        into = Sums(sums.matrices, sums.vectors, are_empty=True)
        passing.backward(weights, gradient, context, record, into, block=block)
        assert relative_error(hidden, expected.flatten(0, 1)) < 1e-6
        assert leaf.grad is not None
        assert relative_error(gradient, leaf.grad) < 1e-6
        for name, each in leaves.items():
            found = sums.matrices[name] if name in sums.matrices else sums.vectors[name]
            assert each.grad is not None
            # Without rotation a bias of keys would have no gradient: what is left of it is small.
            scale = leaves["self_attn.q_proj.bias"].grad if name == K_BIAS else each.grad
            error = (found - each.grad).norm() / scale.norm()
            assert error < 1e-6, name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("switches", SWITCHES)
def test_layer_major_steps_of_every_family_equal_autograd(
    switches: str, num_microbatches: int, tied: bool
) -> None:
    dims = family(switches, tied=tied)
    tiny = engine_of(dims, rounding="nearest", tile_rows=17)
    reference = tiny.weights()
    before = {name: weight.clone() for name, weight in reference.items()}
    steps = [step_rows(seed, num_microbatches=num_microbatches) for seed in range(1, 5)]
    expected = train_by_autograd(dims, reference, steps)
    assert train(tiny, num_microbatches=num_microbatches) == pytest.approx(expected, rel=1e-6)
    moved = tiny.weights()
    for name, tensor in reference.items():
        # What a key's bias adds to all scores of a query is taken out by softmax. Only rotation
        # leaves some of it: 0.001 per token at the lowest frequency, so rounding is 1e-3
        # of that gradient, and Adafactor steps by a gradient's sign rather than by its size.
        bound = 3e-5 if name.endswith(K_BIAS) else 2e-6
        torch.testing.assert_close(moved[name], tensor, rtol=1e-5, atol=bound, msg=name)
        assert not torch.equal(moved[name], before[name]), name


@pytest.mark.parametrize("place", ["two of five resident", "vocabulary streamed", "all elsewhere"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_where_weights_live_changes_no_bit_of_any_family(switches: str, place: str) -> None:
    dims, lanes = family(switches), LateLanes()
    at_home, elsewhere = engine_of(dims), engine_of(dims, lanes=lanes, **PLACES[place])
    assert train(at_home) == train(elsewhere)
    assert_same(state(at_home), state(elsewhere))
    assert lanes.num_late > 0


@pytest.mark.parametrize("levels", RECOMPUTE)
@pytest.mark.parametrize("switches", SWITCHES)
def test_how_much_is_recomputed_changes_no_bit_of_any_family(switches: str, levels: str) -> None:
    dims, pinned = family(switches), levels == "of every kind"
    full = engine_of(dims)
    kept = engine_of(dims, recompute=RECOMPUTE[levels], pinned_records=pinned, lanes=LateLanes())
    assert train(full) == train(kept)
    assert_same(state(full), state(kept))


@pytest.mark.parametrize("switches", SWITCHES)
def test_low_halves_and_moments_of_any_family_travel_with_their_block(switches: str) -> None:
    dims = family(switches)
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "rounding": "exact", "optimizer": "adamw"}
    at_home = engine_of(dims, companions_resident=True, **settings)
    elsewhere = engine_of(dims, lanes=LateLanes(), **settings, **PLACES["all elsewhere"])
    assert train(at_home) == train(elsewhere)
    assert_same(state(at_home), state(elsewhere))
    kept = {name.partition(":")[0] for name, _ in elsewhere.store.named_companions()}
    assert kept == at_home.weights().keys()


def test_bf16_losses_of_every_family_are_near_those_of_fp32() -> None:
    for switches in SWITCHES:
        dims = family(switches)
        narrow, wide = engine_of(dims, dtype=torch.bfloat16), engine_of(dims)
        wide.store.load({name: weight.float() for name, weight in narrow.weights().items()})
        assert train(narrow) == pytest.approx(train(wide), rel=0.02), switches


@pytest.mark.parametrize("switches", SWITCHES)
def test_evaluation_sees_the_loss_of_the_step(switches: str) -> None:
    tiny, rows = engine_of(family(switches)), step_rows(3)
    evaluated = tiny.engine.evaluate(*rows.microbatches)
    assert float(evaluated.loss_sum) == float(tiny.engine.step(rows, 1, 0.0).loss_sum)


@pytest.mark.parametrize("switches", [*SWITCHES][5:])
def test_windows_by_block_and_other_positions_show_in_the_loss(switches: str) -> None:
    """Else equality with autograd would say nothing of them."""
    dims = family(switches)
    all_alike = replace(dims, sliding_blocks=None, turned_blocks=None, rotary=RotaryScaling())
    plain = replace(all_alike, sliding_window=None)
    losses = [train(engine_of(each), num_steps=1)[0] for each in (dims, plain, all_alike)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


def test_biases_are_added_by_stacks_where_all_of_a_stack_has_them() -> None:
    def named(switches: str) -> dict[str, list[str]]:
        columns = bias_columns(family(switches))
        return {product: [name for name, _ in columns[product]] for product in columns}

    assert named("qwen2")["self_attn.qkv"] == ["self_attn.qkv.bias"]
    assert named("qwen3")["self_attn.qkv"] == []
    parts = bias_columns(family("parts of stacks"))
    assert parts["self_attn.qkv"] == [
        ("self_attn.q_proj.bias", slice(0, 32)),
        ("self_attn.v_proj.bias", slice(48, 64)),
    ]
    assert parts["mlp.gate_up"] == [("mlp.up_proj.bias", slice(48, 96))]
    assert parts["mlp.down_proj.weight"] == [("mlp.down_proj.bias", slice(0, 32))]
    layout = weight_layout(family("llama with all biases"), torch.float32)
    qkv, q = layout.places["self_attn.qkv.bias"], layout.places["self_attn.q_proj.bias"]
    assert (qkv.begin, qkv.shape) == (q.begin, (64,))
