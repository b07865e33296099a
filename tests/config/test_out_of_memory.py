"""What is advised when memory ran out: ranked, with keys and values, each of which helps."""

import re

import pytest

from workbench.config.known_models import KNOWN_MODELS
from workbench.config.load import parse_overrides, resolve
from workbench.config.memory_fit import Machine, fit
from workbench.config.memory_parts import CONTEXT_BYTES, GIB, MIB
from workbench.config.out_of_memory import (
    GpuShortage,
    gpu_remedies,
    host_remedies,
    numbered,
    requested_bytes,
)
from workbench.config.schema.config import Config

MISTRAL = KNOWN_MODELS["mistral-7b"]
CARD = 24 * GIB
KEYS = re.compile(r"([a-z_]+\.[a-z_]+): ([\w.]+)")


def config_of(*texts: str) -> Config:
    return resolve("1gpu_llama_7b/packed", overrides=parse_overrides(texts)).config


def machine_of(gib: float) -> Machine:
    return Machine(
        gpu_name="NVIDIA GeForce RTX 4090", gpu_free_bytes=int(gib * GIB), host_bytes=128 * GIB
    )


def keys_in(line: str) -> list[str]:
    """The keys of a remedy, as they can be typed."""
    return [f"{key}={value}" for key, value in KEYS.findall(line.split(" (")[0])]


def shortage(
    *,
    requested: float = 1.0,
    allocated: float = 19.0,
    reserved: float = 19.5,
    allowed: float | None = 20.0,
    free: float = 3.0,
    is_expandable: bool = True,
) -> GpuShortage:
    return GpuShortage(
        requested=int(requested * GIB),
        allocated=int(allocated * GIB),
        reserved=int(reserved * GIB),
        allowed=None if allowed is None else int(allowed * GIB),
        free=int(free * GIB),
        total=CARD,
        is_expandable=is_expandable,
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total", 2 * GIB),
        ("CUDA out of memory. Tried to allocate 512.00 MiB. 1.40 GiB allowed", 512 * MIB),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", 4096),
        ("CUDA error: out of memory", 0),
        ("", 0),
    ],
)
def test_what_was_asked_for_is_read_from_the_error(message: str, expected: int) -> None:
    assert requested_bytes(message) == expected


def test_a_card_that_others_have_filled_is_told_first_and_what_they_leave_becomes_the_budget() -> (
    None
):
    config = config_of("memory.budget_gib=22.8", "memory.resident_fraction=auto")
    lacking = shortage(allocated=9.0, reserved=9.1, allowed=21.0, free=0.4)
    assert lacking.is_crowded
    first, second, *_ = gpu_remedies(config, MISTRAL, lacking, machine=machine_of(22.8))
    assert "end what else runs on this GPU" in first
    assert f"hold {lacking.others / GIB:,.1f} GiB of its 24.0 GiB" in first
    (setting,) = keys_in(second)
    gib = float(setting.removeprefix("memory.budget_gib="))
    assert gib * GIB <= lacking.attainable + CONTEXT_BYTES
    assert "what others leave" in second
    found = fit(config_of(setting, "memory.resident_fraction=auto"), MISTRAL, machine_of(22.8))
    assert found.verdict in ("fits", "tight")


def test_a_plan_that_was_short_is_made_anew_with_as_much_room_as_it_lacked() -> None:
    texts = ("memory.resident_fraction=auto", "memory.budget_gib=22.8")
    planned = fit(config_of(*texts), MISTRAL, machine_of(22.8)).worst.total / GIB
    # The process may have 2 GiB more than was planned with its context, and wanted 3.
    context = CONTEXT_BYTES / GIB
    lacking = shortage(
        allocated=planned + 1.8 - context,
        reserved=planned + 2 - context,
        requested=1.0,
        allowed=planned + 2 - context,
        free=5.0,
    )
    assert not lacking.is_crowded
    first, *_ = gpu_remedies(config_of(*texts), MISTRAL, lacking, machine=machine_of(22.8))
    (setting,) = keys_in(first)
    gib = float(setting.removeprefix("memory.budget_gib="))
    assert planned - 1 - 0.6 < gib < planned - 1
    assert fit(config_of(texts[0], setting), MISTRAL, machine_of(22.8)).worst.total <= gib * GIB


@pytest.mark.parametrize(
    ("is_expandable", "words"),
    [(False, "PYTORCH_ALLOC_CONF=expandable_segments:True"), (True, "start again")],
)
def test_memory_held_in_pieces_is_told_with_what_joins_them(
    is_expandable: bool, words: str
) -> None:
    lacking = shortage(allocated=14.0, reserved=19.5, is_expandable=is_expandable)
    lines = gpu_remedies(config_of(), MISTRAL, lacking, machine=machine_of(22.8))
    assert words in lines[0]
    assert "5.5 GiB in pieces" in lines[0]
    whole = shortage(allocated=19.4, reserved=19.5)
    assert not any("pieces" in line for line in gpu_remedies(
        config_of(), MISTRAL, whole, machine=machine_of(22.8)
    ))  # fmt: skip


@pytest.mark.parametrize(
    "texts",
    [
        (),
        ("batch.microbatches=1", "memory.budget_gib=30"),
        ("memory.recompute=none", "memory.budget_gib=40", "batch.microbatches=2"),
        ("optimizer.rounding=exact", "memory.budget_gib=40"),
        ("batch.train=1", "data.max_length=16384"),
    ],
)
def test_each_key_that_is_named_takes_what_it_says_and_those_that_change_losses_are_last(
    texts: tuple[str, ...],
) -> None:
    config, machine = config_of(*texts), machine_of(22.8)
    lines = gpu_remedies(config, MISTRAL, shortage(), machine=machine)
    levers = [line for line in lines if " off" in line]
    assert levers
    assert any("data.max_length: " in line for line in levers)
    changes = ["other losses" in line for line in levers]
    assert changes == sorted(changes)
    for line in lines:
        assert keys_in(line), line
        assert config_of(*texts, *keys_in(line))


def test_what_is_enough_by_itself_comes_before_what_is_not() -> None:
    config = config_of("memory.budget_gib=30", "batch.microbatches=1", "batch.train=8")
    lacking = shortage(requested=4.0, allowed=20.0)
    lines = gpu_remedies(config, MISTRAL, lacking, machine=machine_of(30))
    taken = [
        float(found[1].replace(",", ""))
        for line in lines
        if "other losses" not in line and (found := re.search(r"takes ([\d.,]+) GiB off", line))
    ]
    assert len(taken) > 1
    enough = [amount * GIB >= lacking.missing for amount in taken]
    assert enough == sorted(enough, reverse=True)


def test_on_the_cpu_the_host_decides() -> None:
    config = resolve("demo", overrides=parse_overrides(["training.device=cpu"])).config
    lines = host_remedies(
        config, MISTRAL, machine=Machine(host_bytes=8 * GIB), requested=GIB, limit=16 * GIB
    )
    assert "raise the limit of 16.0 GiB" in lines[0]
    assert "end what else takes host memory: the run needs about" in lines[1]
    assert any(line.startswith("model.dtype: bfloat16 (takes ") for line in lines)
    assert not any("budget_gib" in line for line in lines)


def test_host_memory_of_a_run_on_a_gpu_is_what_waits_there() -> None:
    config = config_of(
        "memory.resident_fraction=0", "memory.block_inputs=pinned", "optimizer.rounding=exact"
    )
    lines = host_remedies(config, MISTRAL, machine=machine_of(22.8))
    told = "\n".join(lines)
    assert "memory.resident_fraction: 0.5 (takes " in told
    assert "optimizer.rounding: stochastic (takes " in told
    assert told.index("memory.resident_fraction") < told.index("optimizer.rounding")


def test_several_remedies_are_numbered_and_one_alone_is_not() -> None:
    assert numbered(["free it", "lower it"]) == "1. free it\n2. lower it"
    assert numbered(["free it"]) == "free it"
    assert numbered([]) == ""
