"""Pinned memory, loading and saving on a CUDA device."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from tests.training.test_checkpoint_parts import DIMS, all_tensors, content_of, load, save
from workbench.errors import RefusedError
from workbench.model.safetensors_reader import CHUNK_BYTES, read_header, read_into
from workbench.model.safetensors_writer import plan_shards, write_files, write_safetensors
from workbench.model.weights import load_into, random_into, random_weights, write_weights
from workbench.training.engine.host_memory import (
    HostRegistration,
    _forget_failure,
    pinned_bytes,
    register,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def test_pinned_bytes_are_zero_pinned_and_registered_until_the_last_view_dies(
    device: torch.device,
) -> None:
    region = pinned_bytes((24 << 20) + 12, purpose="weights", device=device)
    assert region.is_pinned()
    assert not region.any()
    on_device = torch.arange(1 << 20, device=device, dtype=torch.int32)
    view = region[256 : 256 + (4 << 20)].view(torch.int32)
    view.copy_(on_device, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(view, on_device.cpu())
    del region
    assert view.is_pinned()
    del view
    again = pinned_bytes((24 << 20) + 12, purpose="weights", device=device)
    assert again.is_pinned(), "the same addresses were still registered"


def test_the_device_works_on_after_it_refused_to_register(device: torch.device) -> None:
    region = pinned_bytes(8 << 20, purpose="weights", device=device)
    cudart: HostRegistration = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with pytest.raises(RefusedError, match=r"pages need 0\.00391 GiB of pinned memory"):
        register(region.data_ptr(), 4 << 20, cudart, purpose="pages")
    _forget_failure(device)
    assert torch.ones(5, device=device).sum().item() == 5
    assert region.is_pinned()


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_are_loaded_and_drawn_into_views_on_the_device(
    tmp_path: Path, device: torch.device, stored: torch.dtype, into: torch.dtype
) -> None:
    dims = dataclasses.replace(DIMS, vocabulary_size=700_001)  # several pieces, none of them even
    weights = random_weights(dims, 1, stored)
    assert weights["lm_head.weight"].nbytes > 1.2 * CHUNK_BYTES
    write_weights(tmp_path, weights)
    region = torch.full((sum(w.numel() for w in weights.values()),), 7.0, dtype=into, device=device)
    views, at = {}, 0
    for name, weight in weights.items():
        views[name] = region[at : at + weight.numel()].view(weight.shape)
        at += weight.numel()
    load_into(tmp_path, dims, views)
    assert all(torch.equal(views[name].cpu(), weights[name].to(into)) for name in weights)
    region.zero_()
    random_into(dims, 1, stored, views)
    assert all(torch.equal(views[name].cpu(), weights[name].to(into)) for name in weights)


def test_what_a_stream_still_computes_is_not_overtaken_by_what_is_read(
    tmp_path: Path, device: torch.device
) -> None:
    write_safetensors(tmp_path / "file", {"x": torch.arange(1 << 20, dtype=torch.float32)})
    into = torch.empty(1 << 20, device=device)
    slow = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        slow = slow @ slow
    into.fill_(3.0)  # waits for the products
    read_into([(read_header(tmp_path / "file")["x"], into)])
    assert torch.equal(into.cpu(), torch.arange(1 << 20, dtype=torch.float32))


def test_tensors_of_both_places_are_written_in_order(tmp_path: Path, device: torch.device) -> None:
    size = 2 * CHUNK_BYTES // 4 + 33
    tensors = {
        name: torch.randn(size, device=where)
        for name, where in [("a", device), ("b", "cpu"), ("c", device), ("d", device), ("e", "cpu")]
    }
    written = write_safetensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    back = {name: torch.zeros(size) for name in tensors}
    read_into((stored, back[name]) for name, stored in read_header(tmp_path / "file").items())
    assert all(torch.equal(back[name], tensors[name].cpu()) for name in tensors)


def test_files_written_at_once_hold_what_is_on_the_device(
    tmp_path: Path, device: torch.device
) -> None:
    size = CHUNK_BYTES // 4 + 33
    tensors = {f"{number}": torch.randn(size, device=device) for number in range(12)}
    shards = plan_shards(tmp_path / "file.safetensors", tensors, max_shard_bytes=2 * 4 * size)
    assert len(shards) == 6
    for path, file in write_files(shards).items():
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    back = {name: torch.zeros(size) for name in tensors}
    read_into((stored, back[name]) for path in shards for name, stored in read_header(path).items())
    assert all(torch.equal(back[name], tensors[name].cpu()) for name in tensors)


def test_a_checkpoint_goes_from_the_device_to_pinned_memory_and_back(
    tmp_path: Path, device: torch.device
) -> None:
    def moved(content: object, where: str) -> object:
        def place(tensor: torch.Tensor) -> torch.Tensor:
            if where == "device":
                return tensor.to(device)
            region = pinned_bytes(tensor.nbytes, purpose="tensors", device=device)
            return region.view(tensor.dtype).view(tensor.shape).copy_(tensor)

        changes = {
            field: {name: place(t) for name, t in getattr(content, field).items()}
            for field in ("weights", "companions")
        }
        return dataclasses.replace(content, **changes)  # type: ignore[type-var]

    saved = content_of(1, "adafactor", "adamw", "exact")
    folder = save(tmp_path, moved(saved, "device"))  # type: ignore[arg-type]
    pinned = moved(content_of(2, "adafactor", "adamw", "exact"), "pinned")
    load(folder, pinned)  # type: ignore[arg-type]
    on_device = moved(content_of(3, "adafactor", "adamw", "exact"), "device")
    load(folder, on_device)  # type: ignore[arg-type]
    for name, tensor in all_tensors(saved).items():
        assert torch.equal(all_tensors(pinned)[name], tensor)  # type: ignore[arg-type]
        assert torch.equal(all_tensors(on_device)[name].cpu(), tensor)  # type: ignore[arg-type]
