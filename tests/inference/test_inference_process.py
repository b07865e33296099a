"""Servers as children: which model they take, how they fail, and that they never stay behind."""

import asyncio
import json
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from tests.inference.tiny_model import CONTEXT, add_checkpoint, write_tiny_model
from workbench.control.address import serve_address
from workbench.errors import ConfigError, ControlError, DataError, RefusedError, RunError
from workbench.inference.__main__ import bind, bind_unix, read_context, served_name, suits_vllm
from workbench.inference.vllm_engine import is_installed
from workbench.jobs.inference_process import (
    InferenceProcess,
    ServerOptions,
    start_server,
)
from workbench.runs.layout import RunFolder


@pytest.fixture(autouse=True)
def short_runtime_folder(runtime_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))


def sockets() -> set[Path]:
    return set(serve_address(1).parent.glob("*.sock"))


async def test_what_is_no_complete_model_is_refused_before_torch_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    damaged = add_checkpoint(run, tiny_model, 7)
    (damaged / "model.safetensors").write_bytes(b"")
    shutil.copytree(tiny_model, run.partial_checkpoint(9))
    without_weights = tmp_path / "without_weights"
    shutil.copytree(tiny_model, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    said = {
        damaged: "manifest says",
        run.partial_checkpoint(9): "never completed",
        run.path: "no complete checkpoint",
        without_weights: "has no weights",
        tmp_path / "nothing": "no such folder",
        tmp_path: "config.json",
    }
    for path, what in said.items():
        server = await InferenceProcess.spawn(ServerOptions(path))
        with pytest.raises(RunError, match=what):
            assert [progress.stage async for progress in server.updates()] == []
        assert await server.wait() == 2


async def test_a_model_without_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        await start_server(folder)


async def test_a_server_that_crashes_is_reported_with_its_last_words(tiny_model: Path) -> None:
    server = await InferenceProcess.spawn(ServerOptions(tiny_model, dtype="int3"))  # type: ignore[arg-type]
    with pytest.raises(ControlError, match=r"(?s)status 2 before it was ready.*invalid choice"):
        assert [progress async for progress in server.updates()] == []


async def test_giving_up_the_start_leaves_no_server_behind(tiny_model: Path) -> None:
    before = sockets()
    server = await InferenceProcess.spawn(ServerOptions(tiny_model, port=0))
    async for progress in server.updates():
        assert progress.stage == "loading libraries"
        break
    await server.stop()
    assert server.has_ended
    assert sockets() == before


def test_an_address_that_is_taken_is_refused() -> None:
    first = bind(None, "127.0.0.1", 0)
    try:
        assert first.url is not None
        port = int(first.url.rsplit(":", 1)[1].removesuffix("/v1"))
        assert first.path == serve_address(port)
        with pytest.raises(RefusedError, match="another port"):
            bind(None, "127.0.0.1", port)
        assert first.path is not None
        with pytest.raises(RefusedError, match="Address already in use"):
            bind_unix(first.path)
    finally:
        first.close()
    assert not first.path.exists()


def test_the_socket_of_a_dead_server_is_taken_over() -> None:
    path = serve_address(54321)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    taken = bind(path, "127.0.0.1", None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    taken.close()


def test_a_folder_that_others_can_enter_holds_no_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ControlError, match="others may enter"):
        bind_unix(tmp_path / "serve-1.sock")


def test_a_checkpoint_is_named_with_its_run() -> None:
    assert served_name(Path("/runs/demo-1/checkpoints/checkpoint-7")) == "demo-1/checkpoint-7"
    assert served_name(Path("/models/mistral_7b")) == "mistral_7b"


async def test_a_cancelled_start_leaves_no_server_behind(tiny_model: Path) -> None:
    before = sockets()
    starting = asyncio.create_task(start_server(tiny_model))
    async with asyncio.timeout(20):
        while sockets() == before:
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert sockets() == before


async def test_two_models_are_served_side_by_side(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "tiny", seed=1)
    server = await InferenceProcess.spawn(
        ServerOptions(tiny_model, others=(f"tuned={other}",), parallel=4)
    )
    stages = [progress.stage async for progress in server.updates()]
    assert stages.count("loading weights") == 2
    assert [entry.model for entry in server.ready.models] == ["tiny", "tuned"]
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as http:
            listed = (await http.get("/v1/models")).json()["data"]
            assert [entry["id"] for entry in listed] == ["tiny", "tuned"]

            async def ask(model: str | None, seed: int) -> str:
                named = {} if model is None else {"model": model}
                answer = await http.post(
                    "/v1/completions",
                    json={"prompt": "Hello", "max_tokens": 24, "seed": seed, **named},
                )
                return str(answer.json()["choices"][0]["text"])

            wanted = [("tiny", 1), ("tuned", 1), ("tiny", 2), ("tuned", 2), (None, 1)]
            together = await asyncio.gather(*(ask(*one) for one in wanted))
            assert len(set(together[:4])) == 4
            assert together[4] == together[0]
            assert [await ask(*one) for one in wanted] == together
            refused = await http.post("/v1/completions", json={"prompt": "a", "model": "third"})
            assert refused.status_code == 404
            assert "'tiny' or 'tuned'" in refused.json()["error"]["message"]
    finally:
        await server.stop()


async def test_two_models_of_one_name_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "tiny", seed=1)
    server = await InferenceProcess.spawn(ServerOptions(tiny_model, others=(str(other),)))
    with pytest.raises(ConfigError, match=r"both called 'tiny'; name one of them"):
        assert [progress.stage async for progress in server.updates()] == []


async def test_vllm_is_refused_where_it_is_not_installed(tiny_model: Path) -> None:
    if is_installed():
        pytest.skip("vLLM is installed here")
    server = await InferenceProcess.spawn(ServerOptions(tiny_model, engine="vllm"))
    with pytest.raises(RefusedError, match="vLLM is not installed here"):
        assert [progress async for progress in server.updates()]


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"num_models": 2}, False),
        ({"has_limit": True}, False),
        ({"weight_bytes": 60 * 10**9}, False),
    ],
)
def test_vllm_is_not_taken_for_what_it_cannot_hold(change: dict[str, Any], suits: bool) -> None:
    usual: dict[str, Any] = {
        "num_models": 1,
        "weight_bytes": 14 * 10**9,
        "free_bytes": 24 * 10**9,
        "has_limit": False,
    }
    assert suits_vllm(**{**usual, **change}) is suits


async def test_a_server_that_truncates_does_so_unless_the_request_forbids_it(
    tiny_model: Path,
) -> None:
    server = await InferenceProcess.spawn(ServerOptions(tiny_model, overflow="truncate"))
    async for _ in server.updates():
        pass
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as http:
            body = {"prompt": [7] * 3 + [9] * CONTEXT, "max_tokens": 8, "temperature": 0}
            cut = await http.post("/v1/completions", json=body)
            assert cut.headers["x-workbench-notice"].startswith("the first 11 tokens were left out")
            assert cut.json()["notice"] == cut.headers["x-workbench-notice"]
            assert cut.json()["usage"]["prompt_tokens"] == CONTEXT - 8
            same = await http.post("/v1/completions", json={**body, "prompt": [9] * (CONTEXT - 8)})
            assert "x-workbench-notice" not in same.headers
            assert "notice" not in same.json()
            assert same.json()["choices"] == cut.json()["choices"]
            whole = await http.post("/v1/completions", json={**body, "truncation": "disabled"})
            assert whole.status_code == 400
            assert whole.json()["error"]["code"] == "context_length_exceeded"
    finally:
        await server.stop()


async def test_bin_weights_are_served_and_a_pickle_that_runs_code_is_not(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_model / "model.safetensors"), folder / "pytorch_model.bin")
    texts = []
    for path in (tiny_model, folder):
        server = await start_server(path)
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
            async with httpx.AsyncClient(transport=transport, timeout=60) as http:
                body = {"prompt": "Hello", "temperature": 0}
                answer = await http.post("http://x/v1/completions", json=body)
            texts.append(answer.json()["choices"][0]["text"])
        finally:
            await server.stop()
    assert texts[0] == texts[1] != ""
    mark = tmp_path / "it ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Hostile(str(mark))))
    with pytest.raises(RunError, match="it would call"):
        await start_server(folder)
    assert not mark.exists()


class _Hostile:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path(self._path),)


@pytest.mark.parametrize(
    ("stated", "context"),
    [
        ({"model_type": "llama"}, 64),
        ({"model_type": "llama", "max_position_embeddings": None}, 2048),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        ({"model_type": "of another kind"}, 64),
        ({"model_type": "of another kind", "max_position_embeddings": None}, None),
    ],
)
def test_a_context_is_what_positions_reach_to(
    tmp_path: Path, tiny_model: Path, stated: dict[str, object], context: int | None
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"max_position_embeddings": 64} | stated
    kept = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    if context is None:
        with pytest.raises(RunError, match="says no max_position_embeddings"):
            read_context(tmp_path)
    else:
        assert read_context(tmp_path) == context
