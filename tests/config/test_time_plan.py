"""FLOP per token against a table, seconds against steps that were measured."""

import pytest

from tests.config.test_memory_parts import MEASURED, shape
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import OptimizerName, StepForm
from workbench.config.time_plan import (
    CARDS,
    Recompute,
    forward_flop_per_token,
    rates_of,
    step_seconds,
    training_flop_per_token,
)


@pytest.mark.parametrize(
    ("model", "tokens", "forward", "nothing", "everything", "all_but_down"),
    [
        ("mistral-7b", 1024, 14.5, 43.5, 57.7, 53.9),
        ("mistral-7b", 4096, 15.3, 45.9, 60.9, 57.2),
        ("llama-2-7b", 4096, 14.3, 42.9, 56.9, 54.0),
        ("llama-3.1-8b", 4096, 16.1, 48.2, 63.3, 59.5),
        ("llama-30b", 4096, 67.9, 203.7, 271.2, 256.9),
    ],
)
def test_gflop_per_token_are_those_of_the_closed_formula(
    model: str,
    tokens: int,
    forward: float,
    nothing: float,
    everything: float,
    all_but_down: float,
) -> None:
    facts = KNOWN_MODELS[model]

    def training(recompute: Recompute) -> float:
        return training_flop_per_token(facts, tokens, recompute) / 1e9

    assert forward_flop_per_token(facts, tokens) / 1e9 == pytest.approx(forward, abs=0.06)
    assert training("none") == pytest.approx(nothing, abs=0.06)
    assert training("all") == pytest.approx(everything, abs=0.06)
    assert training("full") == pytest.approx(all_but_down, abs=0.06)
    assert training("none") < training("selective") < training("full")


def test_steps_of_7b_shapes_take_what_was_measured() -> None:
    rates = rates_of(gpu_name="NVIDIA H200")
    num_compared = 0
    for peak in MEASURED["peaks"]:
        facts = shape(peak["shape"])
        if facts.hidden_size < 4096:
            continue
        form = StepForm(
            rows=peak["rows"], row_length=peak["row"], microbatches=peak["microbatches"]
        )
        # Documents of 100 to 1,300 tokens.
        seconds = step_seconds(facts, form, rates, min(700, peak["row"]))
        measured = form.step_tokens / peak["tokens_per_second"]
        assert seconds == pytest.approx(measured, rel=0.10)
        num_compared += 1
    assert num_compared > 10


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090"),
        ("NVIDIA GeForce RTX 5060 Ti", "RTX 5060 Ti"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_card_is_known_by_the_name_its_driver_gives(name: str, card: str) -> None:
    assert rates_of(gpu_name=name).link == CARDS[card].link_gbps * 1e9
    assert rates_of(gpu_name=name).basis.startswith(f"{card}: ")


def test_the_basis_of_a_rate_is_always_said() -> None:
    assert "as stated" in rates_of(gpu_name="NVIDIA H200", tflops=400).basis
    assert "assumed" in rates_of(gpu_name=None).basis
    assert "not in the table" in rates_of(gpu_name="Voodoo 2").basis
    assert "link 12 GB/s as stated" in rates_of(gpu_name="NVIDIA H200", link_gbps=12).basis
    assert rates_of(gpu_name=None, is_gpu=False).basis.startswith("CPU")


def test_streaming_costs_nothing_until_the_link_is_slower_than_the_products() -> None:
    facts = KNOWN_MODELS["mistral-7b"]
    here = StepForm(rows=4, row_length=4096, microbatches=4)
    streamed = StepForm(rows=4, row_length=4096, microbatches=4, resident_fraction=0.0)
    fast, slow = rates_of(gpu_name="NVIDIA H200"), rates_of(gpu_name="NVIDIA H200", link_gbps=2)
    assert step_seconds(facts, here, fast, 700) == step_seconds(facts, streamed, fast, 700)
    # 29 GB go up in a step of a 7B, whatever its tokens are.
    blocks = 2 * 2 * 32 * facts.block_parameters
    assert step_seconds(facts, streamed, slow, 700) == pytest.approx(blocks / 2e9)


@pytest.mark.parametrize(
    ("optimizer", "exact", "recompute", "gigabytes"),
    [
        # 6.98 B streamed parameters twice up; low bits of all 7.24 B; 8 bytes of moments each.
        ("adafactor", False, "full", 27.92),
        ("adafactor", True, "full", 27.92 + 14.48),
        ("adamw", True, "full", 27.92 + 14.48 + 55.84),
        # What is kept of 4,096 tokens goes up beside the weights: 262,144 bytes of each in all
        # blocks, or 1,183,744.
        ("adafactor", False, "pinned full", 27.92 + 1.07),
        ("adafactor", False, "pinned selective", 27.92 + 4.85),
    ],
)
def test_everything_that_is_not_on_the_gpu_passes_the_link(
    optimizer: OptimizerName, exact: bool, recompute: str, gigabytes: float
) -> None:
    form = StepForm(
        rows=1,
        row_length=4096,
        microbatches=1,
        resident_fraction=0.0,
        optimizer=optimizer,
        exact=exact,
        pinned_inputs=recompute.startswith("pinned"),
        recompute="selective" if recompute.endswith("selective") else "full",
    )
    # A link so slow that the way up decides.
    rates = rates_of(gpu_name="NVIDIA H200", link_gbps=0.1)
    seconds = step_seconds(KNOWN_MODELS["mistral-7b"], form, rates, 4096)
    assert seconds * 0.1 == pytest.approx(gigabytes, rel=0.002)
