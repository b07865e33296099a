import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.model.tiny import dimensions_of, our_logits, reference_model, relative_difference
from workbench.errors import RunError
from workbench.model.decoder import HEAD, parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.verify import verify_logits
from workbench.model.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    iterate_weights,
    load_into,
    random_into,
    random_weights,
    read_weights,
    write_weights,
)

SMALL_SHARD_BYTES = 20_000


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, SMALL_SHARD_BYTES])
@pytest.mark.parametrize("kind", ["llama", "llama, tied", "mistral, window"])
def test_written_weights_load_with_transformers_and_give_our_logits(
    tmp_path: Path, kind: str, max_shard_bytes: int
) -> None:
    model = reference_model(kind)
    dims = dimensions_of(model)
    weights = random_weights(dims, seed=3, dtype=torch.float32)
    model.config.save_pretrained(tmp_path)
    write_weights(tmp_path, weights, max_shard_bytes)
    assert (tmp_path / INDEX_FILE).exists() == (max_shard_bytes == SMALL_SHARD_BYTES)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(dims.vocabulary_size, (2, 30))
    with torch.inference_mode():
        expected = loaded(ids).logits
    ours = our_logits(read_weights(tmp_path, dims, torch.float32), dims, ids, [[0], [0]])
    assert relative_difference(ours, expected) < 1e-5
    assert verify_logits(tmp_path) < 1e-5


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, SMALL_SHARD_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, seed=1, dtype=dtype)
    written = write_weights(tmp_path, weights.items(), max_shard_bytes)
    back = read_weights(tmp_path, dims, dtype)
    assert list(back) == list(weights) == list(parameter_shapes(dims))
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    for name, stated in written.items():
        content = (tmp_path / name).read_bytes()
        assert (stated.bytes, stated.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {file.name for file in tmp_path.iterdir()} == set(written)


def test_shards_keep_their_limit_and_the_index_tells_all(tmp_path: Path) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, seed=1, dtype=torch.float32)
    write_weights(tmp_path, weights, SMALL_SHARD_BYTES)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    total = sum(tensor.numel() * 4 for tensor in weights.values())
    assert index["metadata"]["total_size"] == total
    assert list(index["weight_map"]) == list(weights)
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for shard in shards:
        assert sum(t.numel() * 4 for t in load_file(tmp_path / shard).values()) <= SMALL_SHARD_BYTES


def test_weights_written_by_transformers_are_read(tmp_path: Path) -> None:
    model = reference_model("llama, tied")
    dims = dimensions_of(model)
    model.save_pretrained(tmp_path, max_shard_size=SMALL_SHARD_BYTES)
    assert (tmp_path / INDEX_FILE).exists()
    back = read_weights(tmp_path, dims, torch.float32)
    assert HEAD not in back
    assert all(torch.equal(back[name], model.state_dict()[name]) for name in back)


def test_reading_converts_to_the_dtype_of_the_run(tmp_path: Path) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, seed=1, dtype=torch.float32)
    write_weights(tmp_path, weights)
    back = read_weights(tmp_path, dims, torch.bfloat16)
    assert all(torch.equal(back[name], weights[name].bfloat16()) for name in weights)


def flat_destinations(
    dims: Dimensions, dtypes: list[torch.dtype]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One region of sevens, and views of it for all parameters, of the dtypes in turn."""
    shapes = parameter_shapes(dims)
    region = torch.full((sum(math.prod(shape) for shape in shapes.values()) * 8,), 7).byte()
    views, at = {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        dtype = dtypes[number % len(dtypes)]
        size = math.prod(shape) * dtype.itemsize
        views[name] = region[at : at + size].view(dtype).view(shape)
        at += size + 256 - size % 256
    return region, views


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, SMALL_SHARD_BYTES])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_loaded_into_views_of_a_region_whatever_their_dtypes(
    tmp_path: Path, stored: torch.dtype, max_shard_bytes: int
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, seed=1, dtype=stored)
    write_weights(tmp_path, weights, max_shard_bytes)
    _, views = flat_destinations(dims, [torch.float32, torch.bfloat16])
    load_into(tmp_path, dims, views)
    assert {view.dtype for view in views.values()} == {torch.float32, torch.bfloat16}
    assert all(torch.equal(views[name], weights[name].to(views[name].dtype)) for name in weights)


def _halve_the_last_shard(folder: Path) -> None:
    last = max(folder.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])


def _lose_the_last_shard(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def _reshape_the_last_tensor(folder: Path) -> None:
    last = max(folder.glob("*.safetensors"))
    save_file({HEAD: torch.zeros(3)}, last)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_halve_the_last_shard, "cut short"),
        (_lose_the_last_shard, "not in this folder"),
        (_reshape_the_last_tensor, rf"of another shape: {HEAD} is \[3\]"),
    ],
)
def test_no_weight_is_touched_when_the_last_shard_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    dims = dimensions_of(reference_model("llama"))
    write_weights(tmp_path, random_weights(dims, 1, torch.float32), SMALL_SHARD_BYTES)
    damage(tmp_path)
    region, views = flat_destinations(dims, [torch.float32])
    with pytest.raises(RunError, match=message):
        load_into(tmp_path, dims, views)
    assert region.eq(7).all()
    _, views = flat_destinations(dims, [torch.float32])
    with pytest.raises(RunError, match=message):
        list(iterate_weights(tmp_path, dims))


@pytest.mark.parametrize(("dtype", "rest"), [(torch.float32, 19), (torch.bfloat16, 5)])
def test_weights_drawn_in_place_are_those_drawn_at_once(dtype: torch.dtype, rest: int) -> None:
    # More numbers than are drawn at a time, and no multiple of sixteen: torch draws by sixteens.
    odd = vars(dimensions_of(reference_model("llama"))) | {"num_layers": 1}
    dims = Dimensions(**odd | {"hidden_size": 7, "vocabulary_size": ((4 << 20) + rest) // 7})
    weights = random_weights(dims, 3, dtype)
    assert weights[HEAD].numel() == (4 << 20) + rest
    for name, weight in weights.items():
        if weight.dim() > 1:
            seed = int.from_bytes(hashlib.sha256(f"3/{name}".encode()).digest()[:7], "big")
            at_once = torch.empty(weight.shape).normal_(
                0.0, dims.initializer_range, generator=torch.Generator().manual_seed(seed)
            )
            assert torch.equal(weight, at_once.to(dtype)), name
    _, views = flat_destinations(dims, [torch.float32])
    random_into(dims, 3, dtype, views)
    assert all(torch.equal(views[name], weights[name].float()) for name in weights)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    dims = dimensions_of(reference_model("llama"))
    deeper = type(dims)(**vars(dims) | {"num_layers": 5})
    first, same, other = (
        random_weights(dims, 1, torch.float32),
        random_weights(deeper, 1, torch.float32),
        random_weights(dims, 2, torch.float32),
    )
    matrices = [name for name, tensor in first.items() if tensor.dim() == 2]
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    assert len({first[name].flatten()[0].item() for name in matrices}) == len(matrices)
    drawn = torch.cat([first[name].flatten() for name in matrices])
    assert drawn.std().item() == pytest.approx(dims.initializer_range, rel=0.02)
    norms = [tensor for tensor in first.values() if tensor.dim() == 1]
    assert norms
    assert all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


NAME = "model.layers.1.mlp.up_proj.weight"


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights[NAME]


def _add(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME].T.contiguous()


def _quantise(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME].to(torch.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, rf"missing: {NAME}"),
        (_add, r"unexpected: model\.layers\.7\.mlp\.up_proj\.weight"),
        (_reshape, rf"of another shape: {NAME} is \[32, 48\], not \[48, 32\]"),
        (_quantise, rf"not of a floating type: {NAME} is I8"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, 0, torch.float32)
    damage(weights)
    save_file(weights, tmp_path / SINGLE_FILE)
    with pytest.raises(RunError, match=message) as caught:
        read_weights(tmp_path, dims, torch.float32)
    assert caught.value.where == str(tmp_path)


def test_constants_and_a_tied_head_that_older_writers_stored_are_ignored(tmp_path: Path) -> None:
    dims = dimensions_of(reference_model("llama, tied"))
    weights = random_weights(dims, 0, torch.float32)
    extra = {
        HEAD: weights["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(weights | extra, tmp_path / SINGLE_FILE)
    assert [name for name, _ in iterate_weights(tmp_path, dims)] == list(weights)


def test_folders_without_usable_weights_are_told_apart(tmp_path: Path) -> None:
    dims = dimensions_of(reference_model("llama"))

    def refusal() -> str:
        with pytest.raises(RunError) as caught:
            read_weights(tmp_path / "model", dims, torch.float32)
        return str(caught.value)

    assert "no such model folder" in refusal()
    (tmp_path / "model").mkdir()
    assert "has no weights" in refusal()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    assert "cannot be read as what torch.save writes" in refusal()
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    index = {"weight_map": {NAME: "model-00001-of-00002.safetensors"}}
    (tmp_path / "model" / INDEX_FILE).write_text(json.dumps(index))
    assert "index names model-00001-of-00002.safetensors, not in this folder" in refusal()
    for file in ("../model.safetensors", "x" * 300):
        (tmp_path / "model" / INDEX_FILE).write_text(json.dumps({"weight_map": {NAME: file}}))
        assert "not in this folder" in refusal()
    for content in (
        "[]",
        '{"weight_map": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"weight_map": 1}',
    ):
        (tmp_path / "model" / INDEX_FILE).write_text(content)
        assert "is not an index of weights" in refusal()
    (tmp_path / "model" / INDEX_FILE).unlink()
    write_weights(tmp_path / "model", random_weights(dims, 0, torch.float32))
    whole = (tmp_path / "model" / SINGLE_FILE).read_bytes()
    (tmp_path / "model" / SINGLE_FILE).write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal()
