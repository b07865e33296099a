"""vLLM behind our server: the same replies as from our own engine, and nothing left behind.

Skipped where vLLM is not installed. It takes a minute to start, so all tests ask one server.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inference.conftest import Server
from tests.inference.tiny_model import CONTEXT, write_tiny_model
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import RunError
from workbench.inference.vllm_engine import is_installed
from workbench.jobs.inference_process import InferenceProcess, ServerOptions

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")

PROMPT = "Hello, my name is Samantha and"
LIMIT_SECONDS = 300


def start(model: Path, folder: Path, engine: str) -> tuple[Server, subprocess.Popen[str]]:
    """Start a server that all descendants can be told by."""
    command = [sys.executable, "-m", "workbench.inference", "--parent-pipe"]
    with (folder / f"{engine}.txt").open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--engine", engine, "--model", str(model), "--port", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "WORKBENCH_TEST_MARK": f"{folder}/{engine}"},
        )
    assert process.stdout is not None
    said: dict[str, Any] = {}
    for line in process.stdout:
        # Every line is ours: what vLLM prints goes elsewhere.
        said = json.loads(line)
        if said["type"] != "progress":
            break
    assert said.get("type") == "ready", f"{said} {(folder / f'{engine}.txt').read_text()[-3000:]}"
    server = Server(
        Path(said["socket"]), said["url"], said["model"], model, folder / f"{engine}.txt", process
    )
    return server, process


def close(process: "subprocess.Popen[str]") -> int:
    """Close the pipes, as when the parent ends; give the exit status."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    status = process.wait(timeout=30)
    process.stdout.close()
    return status


def marked(mark: str) -> set[int]:
    """Give the processes that inherited a mark."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = path.read_bytes()
        except OSError:
            continue
        if f"WORKBENCH_TEST_MARK={mark}\0".encode() in environ:
            found.add(int(path.parent.name))
    return found


def are_gone(mark: str, limit_seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + limit_seconds
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not marked(mark)


@pytest.fixture(scope="module")
def short_runtime_folder(runtime_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("wide") / "wide", hidden_size=128)


@pytest.fixture(scope="module")
def ours(
    model: Path, short_runtime_folder: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server, process = start(model, tmp_path_factory.mktemp("ours"), "transformers")
    yield server
    assert close(process) == 0


@pytest.fixture(scope="module")
def theirs(
    model: Path, short_runtime_folder: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("theirs")
    server, process = start(model, folder, "vllm")
    assert len(marked(f"{folder}/vllm")) > 1, "vLLM runs the model in processes of its own"
    yield server
    assert close(process) == 0
    assert are_gone(f"{folder}/vllm"), "vLLM's processes were left behind"
    assert not server.socket.exists()


def client_of(server: Server) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
    return httpx.AsyncClient(transport=transport, base_url="http://x", timeout=LIMIT_SECONDS)


@pytest.fixture
async def pair(ours: Server, theirs: Server) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of both engines: ours, vLLM's."""
    async with client_of(ours) as first, client_of(theirs) as second:
        yield [first, second]


async def asked(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:  # noqa: ANN401
    answer = await client.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def both(pair: list[httpx.AsyncClient], **body: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [await asked(client, **body) for client in pair]


async def health(client: httpx.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get("/health")).json()
    return answer


async def test_the_likeliest_tokens_and_their_logarithms_are_those_of_our_engine(
    pair: list[httpx.AsyncClient],
) -> None:
    mine, theirs = await both(pair, max_tokens=60, temperature=0, logprobs=4, echo=True)
    assert theirs["usage"] == mine["usage"]
    assert theirs["usage"]["completion_tokens"] == 60
    mine, theirs = mine["choices"][0], theirs["choices"][0]
    assert theirs["text"] == mine["text"]
    assert theirs["finish_reason"] == mine["finish_reason"]
    mine, theirs = mine["logprobs"], theirs["logprobs"]
    assert theirs["tokens"] == mine["tokens"]
    assert len(mine["tokens"]) > 65, "the prompt's are among them"
    assert theirs["token_logprobs"][0] is mine["token_logprobs"][0] is None
    assert theirs["token_logprobs"][1:] == pytest.approx(mine["token_logprobs"][1:], abs=1e-3)
    for likely, others in zip(theirs["top_logprobs"][1:], mine["top_logprobs"][1:], strict=True):
        assert likely == pytest.approx(others, abs=1e-3)


async def test_a_repetition_penalty_has_the_same_effect(pair: list[httpx.AsyncClient]) -> None:
    plain = await asked(pair[1], max_tokens=60, temperature=0)
    mine, theirs = await both(pair, max_tokens=60, temperature=0, repetition_penalty=1.4)
    assert theirs["choices"][0]["text"] == mine["choices"][0]["text"]
    assert theirs["choices"][0]["text"] != plain["choices"][0]["text"]


async def test_a_min_p_that_leaves_one_token_is_greedy(pair: list[httpx.AsyncClient]) -> None:
    greedy = await asked(pair[1], max_tokens=40, temperature=0)
    narrow = await asked(pair[1], max_tokens=40, min_p=1.0, seed=1)
    wide = await asked(pair[1], max_tokens=40, seed=1)
    assert narrow["choices"][0]["text"] == greedy["choices"][0]["text"]
    assert wide["choices"][0]["text"] != greedy["choices"][0]["text"]


async def test_a_seed_repeats_replies_and_n_makes_different_ones(
    pair: list[httpx.AsyncClient],
) -> None:
    client = pair[1]
    first = await asked(client, max_tokens=30, seed=(1 << 63) - 1, n=3)
    again = await asked(client, max_tokens=30, seed=(1 << 63) - 1, n=3)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    other = await asked(client, max_tokens=30, seed=5)
    assert other["choices"][0]["text"] not in texts


async def test_a_stop_string_and_a_stop_id_end_as_in_our_engine(
    pair: list[httpx.AsyncClient], model: Path
) -> None:
    whole = (await asked(pair[0], max_tokens=60, temperature=0))["choices"][0]["text"]
    stop = whole[20:24]
    for answer in await both(pair, max_tokens=60, temperature=0, stop=[stop]):
        assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
        assert answer["choices"][0]["finish_reason"] == "stop"
    tokenizer = load_tokenizer(model)
    ids = [int(number) for number in tokenizer.encode([whole])[0].ids]
    mine, theirs = await both(pair, max_tokens=60, temperature=0, stop_token_ids=ids[10:12])
    assert mine["choices"] == theirs["choices"]
    assert mine["choices"][0]["finish_reason"] == "stop"
    assert mine["usage"] == theirs["usage"]


async def test_a_chat_ends_at_its_template_s_token(pair: list[httpx.AsyncClient]) -> None:
    ends = []
    for client in pair:
        for seed in range(6):
            body = {
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 400,
                "temperature": 2,
                "seed": seed,
            }
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            ends.append(answer["choices"][0]["finish_reason"])
            assert "<|im_end|>" not in answer["choices"][0]["message"]["content"]
    assert "stop" in ends[:6]
    assert "stop" in ends[6:]


async def test_a_stream_says_what_the_whole_answer_says(pair: list[httpx.AsyncClient]) -> None:
    whole = await asked(pair[1], max_tokens=80, temperature=0)
    body = {
        "prompt": PROMPT,
        "max_tokens": 80,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    texts, events = [], []
    async with pair[1].stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line.removeprefix("data: ")))
                texts += [choice["text"] for choice in events[-1]["choices"]]
    assert "".join(texts) == whole["choices"][0]["text"]
    assert len([text for text in texts if text]) > 3
    assert events[-1]["usage"] == whole["usage"]


async def test_whoever_hangs_up_frees_the_model_while_reading_and_while_waiting(
    pair: list[httpx.AsyncClient],
) -> None:
    client = pair[1]
    body = {"prompt": PROMPT, "max_tokens": 900, "temperature": 0, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                break
    began = time.monotonic()
    while (await health(client))["busy"]:
        assert time.monotonic() - began < 0.5
    before = (await health(client))["tokens_made"]
    # These hang up before anything has come.
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                "/v1/completions", json={**body, "n": 16, "stream": False}, timeout=0.2
            )
    began = time.monotonic()
    while (await health(client))["busy"]:
        assert time.monotonic() - began < 0.5
    assert (await health(client))["tokens_made"] - before < 3 * 16 * 200
    # vLLM itself has forgotten them: a reply is as quick as ever.
    assert (await asked(client, max_tokens=5))["usage"]["completion_tokens"] == 5


async def test_the_context_ends_where_it_ends_in_our_engine(
    pair: list[httpx.AsyncClient],
) -> None:
    for client in pair:
        last = await asked(client, prompt=[7] * (CONTEXT - 1), max_tokens=5, temperature=0)
        assert last["usage"]["completion_tokens"] == 1
        assert last["choices"][0]["finish_reason"] == "length"
        body = {"prompt": [7] * CONTEXT, "max_tokens": 5}
        assert (await client.post("/v1/completions", json=body)).status_code == 400
    mine, theirs = await both(
        pair, prompt=[7, 9] * (CONTEXT // 2), max_tokens=0, echo=True, logprobs=0
    )
    assert mine["usage"] == theirs["usage"]
    mine, theirs = (found["choices"][0]["logprobs"]["token_logprobs"] for found in (mine, theirs))
    assert theirs[1:] == pytest.approx(mine[1:], abs=1e-3)


async def test_no_prompt_is_in_the_log(theirs: Server, pair: list[httpx.AsyncClient]) -> None:
    await asked(pair[1], prompt="Hello zxqj", max_tokens=3)
    assert "zxqj" not in theirs.log.read_text()


async def test_a_model_that_vllm_refuses_ends_in_our_error(
    tiny_model: Path, tmp_path: Path, short_runtime_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "odd", hidden_size=128)
    config = json.loads((folder / "config.json").read_bytes())
    config["num_key_value_heads"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    mark = f"{tmp_path}/refused"
    monkeypatch.setenv("WORKBENCH_TEST_MARK", mark)
    server = await InferenceProcess.spawn(ServerOptions(folder, engine="vllm"))
    with pytest.raises(RunError, match="vLLM cannot load it"):
        _ = [progress async for progress in server.updates()]
    assert await server.wait() == 2
    # We bear the mark ourselves.
    monkeypatch.delenv("WORKBENCH_TEST_MARK")
    assert are_gone(mark)


def test_a_server_that_is_killed_takes_vllm_with_it(
    model: Path, short_runtime_folder: None, tmp_path: Path
) -> None:
    server, process = start(model, tmp_path, "vllm")
    assert marked(f"{tmp_path}/vllm")
    process.kill()
    close(process)
    assert are_gone(f"{tmp_path}/vllm")
    server.socket.unlink()
