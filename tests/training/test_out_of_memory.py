"""What counts as a lack of memory, and that advice about it never fails."""

import pytest
import torch

from workbench.config.load import parse_overrides, resolve
from workbench.errors import RefusedError
from workbench.training.out_of_memory import PLAIN_ADVICE, advice, is_out_of_memory
from workbench.training.rank import _reason

CPU = torch.device("cpu")


def cpu_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_a_lack_of_memory(error: Exception, *, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    assert (_reason(error) == "out_of_memory") == expected


def test_the_cpus_allocator_and_a_refused_plan_are_reasons_of_memory() -> None:
    assert is_out_of_memory(cpu_error())
    assert _reason(cpu_error()) == "out_of_memory"
    refused = RefusedError("a step needs 9 GiB", where="memory.budget_gib", remedy="lower it")
    assert _reason(refused) == "out_of_memory"


def test_advice_on_the_cpu_names_keys_and_values() -> None:
    config = resolve("demo", overrides=parse_overrides(["training.device=cpu"])).config
    told = advice(cpu_error(), config, device=CPU, budget_bytes=None, counts=None).splitlines()
    assert told[0].startswith("1. ")
    assert any("host memory" in line for line in told)
    assert any("batch.microbatches: " in line for line in told)


def test_without_a_model_to_look_at_there_is_still_something_to_say() -> None:
    """What ran out of memory may have taken more with it."""
    config = resolve("demo", overrides=parse_overrides(["model.path=/nowhere/at/all"])).config
    told = advice(cpu_error(), config, device=CPU, budget_bytes=None, counts=None)
    assert told == PLAIN_ADVICE
