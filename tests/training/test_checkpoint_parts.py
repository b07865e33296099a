"""What a checkpoint keeps beside weights and statistics: companions of every kind."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import RunError
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import read_manifest, verify
from workbench.training import checkpoint
from workbench.training.distributed import Ranks
from workbench.training.state import FORMAT_VERSION, SavedState

DIMS = Dimensions(
    family="llama", num_layers=2, hidden_size=16, intermediate_size=24, num_heads=2,
    num_key_value_heads=1, head_dim=8, vocabulary_size=31, norm_epsilon=1e-5, rope_theta=1e4,
    max_positions=32, sliding_window=None, tied=False, initializer_range=0.2,
)  # fmt: skip
STATE = SavedState(
    version=FORMAT_VERSION, step=4, tokens=1, target_tokens=1, epoch=0.5, data_position=4,
    rounding_counter=4, steps_per_epoch=8, previous_gradient_norm=None,
)  # fmt: skip


def on_one_region(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Views of one region, as a store that streams its blocks has them."""
    region = torch.zeros(sum(t.nbytes + 256 for t in tensors.values()), dtype=torch.uint8)
    views, at = {}, 0
    for name, tensor in tensors.items():
        views[name] = region[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        views[name].copy_(tensor)
        at += tensor.nbytes + 256 - tensor.nbytes % 256
    return views


def content_of(seed: int, *kinds: str) -> checkpoint.Content:
    """Random weights; per parameter the parts that some optimizer or exact weights keep."""
    weights = random_weights(DIMS, seed, torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)

    def numbers(shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.randint(-100, 100, shape, generator=generator).to(dtype)

    statistics, companions = {}, {}
    for name, weight in weights.items():
        if "adafactor" in kinds:
            statistics[f"{name}:row"] = numbers(weight.shape[:1], torch.float32)
        if "adamw" in kinds:
            companions[f"{name}:first"] = numbers(weight.shape, torch.float32)
            companions[f"{name}:codes"] = numbers(weight.shape, torch.uint8)
        if "exact" in kinds:
            companions[f"{name}:low"] = numbers(weight.shape, torch.int16)
    return checkpoint.Content(
        weights=on_one_region(weights),
        statistics=statistics,
        common={"config.json": b"{}"},
        device=torch.device("cpu"),
        companions=on_one_region(companions),
    )


def all_tensors(content: checkpoint.Content) -> dict[str, Tensor]:
    return {**content.weights, **content.statistics, **content.companions}


def save(folder: Path, content: checkpoint.Content) -> Path:
    run = RunFolder(folder)
    return checkpoint.save(run, content, STATE, Ranks()).path


def load(folder: Path, content: checkpoint.Content) -> SavedState:
    return checkpoint.load(folder, content, DIMS, STATE.steps_per_epoch, Ranks())


@pytest.mark.parametrize(
    "kinds", [("adafactor",), ("adafactor", "exact"), ("adamw",), ("adamw", "exact")]
)
def test_every_part_comes_back_where_it_lives(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    saved, loaded = content_of(1, *kinds), content_of(2, *kinds)
    places = {name: tensor.data_ptr() for name, tensor in all_tensors(loaded).items()}
    folder = save(tmp_path, saved)
    assert load(folder, loaded) == STATE
    for name, tensor in all_tensors(saved).items():
        assert torch.equal(all_tensors(loaded)[name], tensor), name
        assert all_tensors(loaded)[name].data_ptr() == places[name]
    listed = read_manifest(folder).files
    assert ("training_state/low_bits-00000.safetensors" in listed) == ("exact" in kinds)


def test_large_parts_are_divided_among_files_and_come_back(tmp_path: Path) -> None:
    saved, loaded = content_of(1, "adamw", "exact"), content_of(2, "adamw", "exact")
    folder = checkpoint.save(RunFolder(tmp_path), saved, STATE, Ranks(), max_shard_bytes=2048).path
    listed = verify(folder).files
    for stem in ("model", "training_state/optimizer-00000", "training_state/low_bits-00000"):
        shards = [name for name in listed if name.startswith(f"{stem}-")]
        assert len(shards) > 1, stem
        assert f"{stem}-00001-of-{len(shards):05d}.safetensors" in shards
        assert all((folder / name).stat().st_size < 4096 for name in shards)
    assert load(folder, loaded) == STATE
    for name, tensor in all_tensors(saved).items():
        assert torch.equal(all_tensors(loaded)[name], tensor), name


def test_low_bits_are_kept_by_parameter_and_moments_by_part(tmp_path: Path) -> None:
    content = content_of(1, "adamw", "exact")
    folder = save(tmp_path, content)
    low_bits = load_file(folder / "training_state/low_bits-00000.safetensors")
    assert low_bits.keys() == content.weights.keys()
    assert {tensor.dtype for tensor in low_bits.values()} == {torch.int16}
    optimizer = load_file(folder / "training_state/optimizer-00000.safetensors")
    parts = ("first", "codes")
    assert optimizer.keys() == {f"{name}:{part}" for name in content.weights for part in parts}


def test_low_bits_of_a_run_that_rounded_begin_at_zero_and_a_note_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path, content_of(1, "adafactor"))
    exact = content_of(2, "adafactor", "exact")
    assert any(low.any() for low in exact.low_bits().values())
    with caplog.at_level(logging.INFO):
        load(folder, exact)
    assert not any(low.any() for low in exact.low_bits().values())
    assert "low bits begin at zero" in caplog.text


def test_a_run_that_rounds_leaves_low_bits_out_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = content_of(1, "adafactor", "exact")
    folder = save(tmp_path, exact)
    rounded = content_of(2, "adafactor")
    load(folder, rounded)
    assert all(torch.equal(rounded.weights[name], exact.weights[name]) for name in exact.weights)
    assert "low bits are left out" in caplog.text


def test_another_optimizer_is_refused_by_what_it_keeps_before_anything_changes(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path, content_of(1, "adafactor"))
    other = content_of(2, "adamw")
    before = {name: tensor.clone() for name, tensor in all_tensors(other).items()}
    with pytest.raises(RunError, match="made by another optimizer: it keeps row per parameter"):
        load(folder, other)
    assert all(torch.equal(all_tensors(other)[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("first", torch.zeros(16), r"first is torch.float32 \(31, 16\), not .* \(16,\)"),
        ("codes", torch.zeros(31, 16), r"codes is torch.uint8 .*, not torch.float32"),
        ("low", torch.zeros(31, 16), r"embed_tokens.weight is torch.int16 .*, not torch.float32"),
        ("extra", torch.zeros(1), "optimizer statistics are missing"),
        ("first", None, "first is unknown to this run"),
        ("low", None, "embed_tokens.weight is unknown to this run"),
    ],
)
def test_companions_that_are_not_the_runs_are_refused_before_anything_changes(
    tmp_path: Path, part: str, tensor: Tensor | None, message: str
) -> None:
    folder = save(tmp_path, content_of(1, "adamw", "exact"))
    ours = content_of(2, "adamw", "exact")
    companions = dict(ours.companions)
    if tensor is None:
        del companions[f"model.embed_tokens.weight:{part}"]
    else:
        companions[f"model.embed_tokens.weight:{part}"] = tensor
    before = {name: each.clone() for name, each in ours.weights.items()}
    changed = checkpoint.Content(
        ours.weights, ours.statistics, ours.common, ours.device, companions
    )
    with pytest.raises(RunError, match=message):
        load(folder, changed)
    assert all(torch.equal(ours.weights[name], before[name]) for name in before)


def test_a_checkpoint_whose_state_is_cut_short_is_refused_before_anything_changes(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path, content_of(1, "adafactor", "exact"))
    path = folder / "training_state/low_bits-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    ours = content_of(2, "adafactor", "exact")
    before = {name: each.clone() for name, each in ours.weights.items()}
    with pytest.raises(RunError, match=r"cannot be read as safetensors.*resume another checkpoint"):
        load(folder, ours)
    assert all(torch.equal(ours.weights[name], before[name]) for name in before)


def test_room_for_companions_is_asked_for_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, exact = content_of(1), content_of(1, "exact")
    enough_for_plain = sum(t.nbytes for t in plain.weights.values()) + (4 << 20) + 100
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=enough_for_plain))
    save(tmp_path / "plain", plain)
    with pytest.raises(checkpoint.SaveError, match="GB free"):
        save(tmp_path / "exact", exact)
