"""The server as its clients see it: the real openai client, curl's way, and strangers."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.conftest import TOKEN, Server
from tests.inference.tiny_model import CONTEXT
from workbench.data.tokenizer import load_tokenizer
from workbench.inference import http_server
from workbench.inference.openai_types import ChatRequest, CompletionRequest
from workbench.inference.server import create_app

SAY_HELLO: Any = [{"role": "user", "content": "Hello, what is your name?"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture
async def local(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the Unix socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as local:
        yield local


async def health(local: httpx.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await local.get("/health")).json()
    return answer


async def test_the_openai_client_completes_a_chat(client: openai.OpenAI, server: Server) -> None:
    completion = client.chat.completions.create(
        model=server.model, messages=SAY_HELLO, max_tokens=12, temperature=0
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 12
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 12
    assert completion.model == server.model


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, server: Server) -> None:
    settings: Any = {"model": server.model, "messages": SAY_HELLO, "max_tokens": 600, "seed": 3}
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    # What is made within a hundredth of a second comes together.
    assert len([text for text in texts if text]) > 5
    assert any(ord(character) > 127 for character in "".join(texts))
    finish_reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finish_reasons[-1] == whole.choices[0].finish_reason
    assert set(finish_reasons[:-1]) == {None}
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_two_requests_at_once_are_both_answered(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as client:

        async def ask(text: str) -> str:
            stream = await client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": text}],
                max_tokens=20,
                temperature=0,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(ask("one"), ask("another"))
        assert together == [await ask("one"), await ask("another")]
        assert together[0] != together[1]


@pytest.mark.parametrize("streams", [True, False])
async def test_closing_the_connection_stops_the_generation(
    local: httpx.AsyncClient, streams: bool
) -> None:
    before = (await health(local))["tokens_made"]
    body = {"messages": SAY_HELLO, "temperature": 0, "stream": streams, "stop_token_ids": []}
    if streams:
        async with local.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if '"content"' in line and '"content": ""' not in line:
                    break
    else:
        request = asyncio.create_task(local.post("/v1/chat/completions", json=body))
        await until(local, lambda state: state["tokens_made"] > before)
        request.cancel()
    state = await until(local, lambda state: not state["busy"])
    assert 0 < state["tokens_made"] - before < CONTEXT // 2


async def test_hanging_up_frees_the_device_within_half_a_second(
    local: httpx.AsyncClient,
) -> None:
    body = {"messages": SAY_HELLO, "n": 4, "stream": True}
    seconds = []
    # Other programs may hold the machine up, so the best of three counts.
    for _ in range(3):
        async with local.stream("POST", "/v1/chat/completions", json=body):
            state = await until(local, lambda state: state["running"] > 0)
            assert state["running"] <= 4
        began = time.monotonic()
        await until(local, lambda state: not state["busy"])
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5


async def until(
    local: httpx.AsyncClient, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not is_so(state := await health(local)):
            pass
    return state


def test_a_stop_string_across_tokens_ends_the_reply(client: openai.OpenAI, server: Server) -> None:
    settings: Any = {"model": server.model, "messages": SAY_HELLO, "max_tokens": 60, "seed": 3}
    reply = client.chat.completions.create(**settings, logprobs=True).choices[0]
    whole = reply.message.content or ""
    assert reply.logprobs is not None
    texts = [entry.token for entry in reply.logprobs.content or ()]
    # The end of one token and the beginning of the next.
    at = next(at for at in range(8, len(texts)) if texts[at - 1].isascii() and texts[at].isascii())
    stop = texts[at - 1][-1] + texts[at][0]
    for streams in (True, False):
        answer = client.chat.completions.create(**settings, stop=[stop, "never"], stream=streams)
        if streams:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish_reason = chunks[-1].choices[0].finish_reason
        else:
            text, finish_reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert text == whole[: whole.index(stop)]
        assert finish_reason == "stop"


def test_a_stop_token_ends_the_reply_and_is_not_shown(
    client: openai.OpenAI, server: Server
) -> None:
    settings: Any = {
        "model": server.model,
        "messages": SAY_HELLO,
        "max_tokens": 60,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**settings).choices[0].message.content
    assert whole
    completion = client.chat.completions.create(
        **settings, extra_body={"stop_token_ids": list(range(300))}
    )
    assert completion.choices[0].message.content == ""
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 1


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_the_token_every_answer_is_401(server: Server, key: str) -> None:
    with (
        openai.OpenAI(base_url=server.url, api_key=key or "-", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="wants its token"),
    ):
        client.chat.completions.create(model=server.model, messages=SAY_HELLO)
    for path in ("/v1/models", "/v1/nothing", "/docs", "/openapi.json"):
        assert httpx.get(server.url.removesuffix("/v1") + path).status_code == 401


def test_health_answers_strangers_without_saying_what_is_served(server: Server) -> None:
    answer = httpx.get(server.url.removesuffix("/v1") + "/health")
    assert answer.json() == {"status": "ok"}


async def test_health_answers_while_a_reply_is_made(local: httpx.AsyncClient) -> None:
    async with local.stream(
        "POST", "/v1/chat/completions", json={"messages": SAY_HELLO, "stream": True}
    ):
        state = await until(local, lambda state: state["busy"])
        assert state["context"] == CONTEXT


def test_models_are_listed_and_looked_up(client: openai.OpenAI, server: Server) -> None:
    assert [entry.id for entry in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model
    with pytest.raises(openai.NotFoundError, match=server.model):
        client.chat.completions.create(model="gpt-9", messages=SAY_HELLO)


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias", "not honoured here: logit_bias"),
        ({"tools": [], "best_of": 2}, "tools", "not honoured here: tools, best_of"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name", "name"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "messages[0].role", "'user'"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "parts of text"),
        ({"stop": 5}, "stop", "stop: "),
        ({"n": 99}, "n", "n: "),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"truncation": "sometimes"}, "truncation", "'auto'"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty: "),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "temperature: "),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "not both"),
        ({"stop": [""]}, "stop[0]", "stop[0]: "),
        ({"seed": 1 << 70}, "seed", "seed: "),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    local: httpx.AsyncClient, change: dict[str, Any], param: str, said: str
) -> None:
    body = {"messages": SAY_HELLO, "max_tokens": 4, **change}
    answer = await local.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"suffix": "b"}, "suffix", "not honoured here: suffix"),
        ({"best_of": 3}, "best_of", "best_of: "),
        ({"prompt": ""}, "prompt", "no token to continue"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": 5}, "prompt", "a list of texts, or token ids"),
        ({"prompt": [99_999]}, "prompt", "99999 is no token"),
        ({"prompt": [-1]}, "prompt[0].ids[0]", "greater than or equal to 0"),
        ({"prompt": [1] * (CONTEXT + 1)}, "prompt", "shorten it"),
        ({"logprobs": 50}, "logprobs", "less than or equal to 20"),
        ({"messages": SAY_HELLO}, "messages", "not honoured here: messages"),
    ],
)
async def test_a_completion_that_cannot_be_honoured_is_refused_by_name(
    local: httpx.AsyncClient, change: dict[str, Any], param: str, said: str
) -> None:
    answer = await local.post("/v1/completions", json={"prompt": "a", "max_tokens": 4, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert said in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"text"',
        b"\xff\xfe",
        r'{"messages": [{"role": "user", "content": "half a pair: \ud800"}], "max_tokens": 2}',
    ],
)
async def test_a_body_that_is_no_request_is_refused(local: httpx.AsyncClient, content: str) -> None:
    answer = await local.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_a_body_too_large_for_anything_is_refused_as_soon_as_it_is(
    local: httpx.AsyncClient,
) -> None:
    answer = await local.post("/v1/completions", content=b" " * (33 << 20))
    assert answer.status_code == 413
    assert "32 MiB" in answer.json()["error"]["message"]
    for path, body in (
        ("/v1/completions", {"prompt": "a" * (2 << 20), "truncation": "auto"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * (2 << 20)}]}),
    ):
        began = time.monotonic()
        answer = await local.post(path, json=body)
        assert time.monotonic() - began < 5
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert (await health(local))["status"] == "ok"


async def test_work_on_a_long_conversation_holds_nobody_up(local: httpx.AsyncClient) -> None:
    turns = [{"role": ("user", "assistant")[at % 2], "content": "hello"} for at in range(10_001)]
    body = {"messages": turns, "max_tokens": 2, "truncation": "auto"}
    asking = asyncio.create_task(local.post("/v1/chat/completions", json=body))
    taken, began = [], time.monotonic()
    while not asking.done():
        at = time.monotonic()
        await health(local)
        taken.append(time.monotonic() - at)
    assert (await asking).json()["notice"].startswith("the oldest")
    assert max(taken) < max(2.0, (time.monotonic() - began) / 2)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "auto", 1, 2, 0.5, [5, 6], {"role": "user", "content": "a"}]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


async def test_null_is_as_if_a_parameter_were_not_there(local: httpx.AsyncClient) -> None:
    names = sorted({*CompletionRequest.model_fields} - {"prompt", "max_tokens", "echo", "stream"})
    body = {"prompt": "a", "max_tokens": 3, "temperature": 0}
    plain = await local.post("/v1/completions", json=body)
    nulls = await local.post("/v1/completions", json={**dict.fromkeys(names), **body})
    assert nulls.status_code == 200, nulls.text
    assert nulls.json()["choices"] == plain.json()["choices"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    begin=st.sampled_from(
        [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}, {"prompt": [5]}, {}]
    ),
    more=st.dictionaries(
        st.sampled_from(sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})),
        json_values,
        max_size=4,
    ),
)
def test_any_body_is_answered_or_refused(
    server: Server, path: str, begin: dict[str, Any], more: dict[str, Any]
) -> None:
    transport = httpx.HTTPTransport(uds=str(server.socket))
    with httpx.Client(transport=transport, base_url="http://x", timeout=60) as local:
        answer = local.post(path, content=json.dumps({**begin, "max_tokens": 2, **more}))
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


async def test_who_connects_and_asks_nothing_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_ASKING_SECONDS", 0.3)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    serving = http_server.HttpServer(create_app([], None))
    task = asyncio.create_task(serving.serve(sockets=[listener]))
    await serving.is_listening.wait()
    reader, silent = await asyncio.open_unix_connection(tmp_path / "s")
    silent.write(b"GET /hea")
    other, asking = await asyncio.open_unix_connection(tmp_path / "s")
    asking.write(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await other.readline()).startswith(b"HTTP/1.1 404")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    # Whoever has asked may ask again.
    asking.write(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"HTTP/1.1 404" in await other.readuntil(b"HTTP/1.1 404")
    silent.close()
    asking.close()
    serving.should_exit = True
    await task
    listener.close()


def test_a_prompt_longer_than_the_context_is_refused(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="shorten the conversation") as refused:
        client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": "ж" * CONTEXT}]
        )
    assert refused.value.code == "context_length_exceeded"


def long_talk(num_turns: int) -> list[Any]:
    roles = ("user", "assistant")
    turns = [
        {"role": roles[at % 2], "content": f"{at} " + "z" * (CONTEXT // 8)}
        for at in range(num_turns)
    ]
    return [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "So?"}]


def test_the_oldest_turns_are_left_out_where_that_is_asked_for(
    client: openai.OpenAI, server: Server
) -> None:
    settings: Any = {"model": server.model, "max_tokens": 40, "temperature": 0}
    cut: Any = {"extra_body": {"truncation": "auto"}}
    raw = client.chat.completions.with_raw_response.create(
        messages=long_talk(12), **settings, **cut
    )
    completion = raw.parse()
    notice = raw.headers["x-workbench-notice"]
    assert completion.model_extra is not None
    assert completion.model_extra["notice"] == notice
    assert notice.startswith("the oldest 6 turns (")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens <= CONTEXT - 40
    assert completion.usage.completion_tokens == 40
    # What is left is read as if it had been all: the system's words and the newest turns.
    system, *turns = long_talk(12)
    kept = client.chat.completions.create(messages=[system, *turns[6:]], **settings)
    assert kept.choices[0].message.content == completion.choices[0].message.content
    stream = client.chat.completions.create(messages=long_talk(12), **settings, **cut, stream=True)
    chunks = list(stream)
    assert [chunk.model_extra for chunk in chunks if chunk.model_extra] == [{"notice": notice}]
    # One turn that is too long by itself cannot be saved.
    with pytest.raises(openai.BadRequestError, match="shorten the conversation"):
        client.chat.completions.create(
            messages=[{"role": "user", "content": "ж" * CONTEXT}], **settings, **cut
        )


def test_a_text_is_continued(client: openai.OpenAI, server: Server) -> None:
    settings: Any = {"model": server.model, "prompt": "Hello, my", "temperature": 0}
    plain = client.completions.create(**settings, max_tokens=20)
    echoed = client.completions.create(**settings, max_tokens=20, echo=True)
    assert plain.choices[0].text
    assert echoed.choices[0].text == "Hello, my" + plain.choices[0].text
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 20
    assert plain.choices[0].finish_reason == "length"
    assert client.completions.create(**settings).usage.completion_tokens == 16  # type: ignore[union-attr]
    chunks = list(client.completions.create(**settings, max_tokens=20, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    # No template stands around it: the prompt has the tokens of its text and no more.
    ids = load_tokenizer(server.folder).encode(["Hello, my"])[0].ids.tolist()
    assert plain.usage.prompt_tokens == len(ids)
    by_ids = client.completions.create(**{**settings, "prompt": ids}, max_tokens=20)
    assert by_ids.choices[0].text == plain.choices[0].text


def test_several_texts_are_continued_several_times(client: openai.OpenAI, server: Server) -> None:
    prompts = ["Hello", "my name is"]
    completion = client.completions.create(
        model=server.model, prompt=prompts, n=2, seed=5, max_tokens=12, echo=True
    )
    texts = [choice.text for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert [text.startswith(prompts[at // 2]) for at, text in enumerate(texts)] == [True] * 4
    assert len(set(texts)) == 4
    assert completion.usage is not None
    assert 4 < completion.usage.completion_tokens <= 48
    for at in (0, 1):
        alone = client.completions.create(
            model=server.model, prompt=prompts[0], seed=5 + at, max_tokens=12, echo=True
        )
        assert alone.choices[0].text == texts[at]


def test_a_prompt_is_weighed_without_a_token_being_made(
    client: openai.OpenAI, server: Server
) -> None:
    completion = client.completions.create(
        model=server.model, prompt="Hello, my name", echo=True, logprobs=2, max_tokens=0
    )
    choice = completion.choices[0]
    assert choice.text == "Hello, my name"
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert "".join(found.tokens) == "Hello, my name"
    assert found.text_offset == [len("".join(found.tokens[:at])) for at in range(len(found.tokens))]
    assert found.token_logprobs is not None
    assert found.token_logprobs[0] is None
    assert all(log < 0 for log in found.token_logprobs[1:])
    assert found.top_logprobs is not None
    assert [len(top) for top in found.top_logprobs[1:]] == [2] * (len(found.tokens) - 1)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 0


def test_several_replies_to_one_conversation(client: openai.OpenAI, server: Server) -> None:
    settings: Any = {"model": server.model, "messages": SAY_HELLO, "max_tokens": 20}
    whole = client.chat.completions.create(**settings, n=3, seed=8)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    again = client.chat.completions.create(**settings, seed=9)
    assert again.choices[0].message.content == texts[1]
    streamed = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(**settings, n=3, seed=8, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert streamed == texts
    assert sorted(ends) == [0, 1, 2]


def test_log_probabilities_come_with_their_text(client: openai.OpenAI, server: Server) -> None:
    settings: Any = {"model": server.model, "messages": SAY_HELLO, "seed": 3}
    asked: Any = {"logprobs": True, "top_logprobs": 4}
    whole = client.chat.completions.create(**settings, **asked, max_tokens=40)
    found = whole.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert len(found.content) == 40
    for entry in found.content:
        logs = [top.logprob for top in entry.top_logprobs]
        assert logs == sorted(logs, reverse=True)
        assert len(logs) == 4
        assert entry.logprob <= logs[0] + 1e-6
    chunks = list(client.chat.completions.create(**settings, **asked, max_tokens=40, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if (some := chunk.choices[0].logprobs) is not None
        for entry in some.content or ()
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in found.content]
    # Tokens of a stop that is not shown are not shown either.
    text = whole.choices[0].message.content or ""
    at = next(at for at in range(12, len(text)) if text[at - 1 : at + 1].isascii())
    stop = text[at - 1 : at + 1]
    stopped = client.chat.completions.create(**settings, **asked, max_tokens=40, stop=stop)
    few = stopped.choices[0].logprobs
    assert few is not None
    assert few.content is not None
    assert 0 < len(few.content) < 40
    shown = "".join(entry.token for entry in few.content if entry.bytes)
    assert stop not in (stopped.choices[0].message.content or "")
    assert len(shown) <= len(stopped.choices[0].message.content or "") + 1


async def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as client:

        async def ask(number: int) -> tuple[str, str | None]:
            stream = await client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": f"{number} " + "a" * (number % 7 * 5)}],
                max_tokens=16,
                temperature=0.5 if number % 2 else 0,
                seed=number,
                stream=True,
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return text, chunks[-1].choices[0].finish_reason

        answers = await asyncio.gather(*map(ask, range(48)))
    assert {finish_reason for _, finish_reason in answers} <= {"length", "stop"}
    assert len({text for text, _ in answers}) > 24


def test_a_reply_ends_where_the_context_does(client: openai.OpenAI, server: Server) -> None:
    completion = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "z" * (CONTEXT - 40)}],
        max_tokens=5000,
        temperature=0,
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.total_tokens == CONTEXT
    assert completion.usage.completion_tokens < 40


async def test_the_text_of_a_message_may_come_in_parts(local: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "what is your name?"}]
    answers = [
        (
            await local.post(
                "/v1/chat/completions",
                json={
                    "messages": [{"role": "user", "content": content}],
                    "max_tokens": 8,
                    "temperature": 0,
                },
            )
        ).json()
        for content in (parts, SAY_HELLO[0]["content"])
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_prompts_are_not_logged_but_their_length_is(
    server: Server, local: httpx.AsyncClient
) -> None:
    content = "a secret that must not leave the room"
    answer = await local.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": content}], "max_tokens": 3},
    )
    num_prompt_tokens = answer.json()["usage"]["prompt_tokens"]
    async with asyncio.timeout(10):
        while f"{num_prompt_tokens} prompt tokens, 3 tokens made" not in server.log.read_text():
            await health(local)
    assert "secret" not in server.log.read_text()


def test_the_socket_answers_curl(server: Server) -> None:
    shown = subprocess.run(
        ["curl", "-sS", "--unix-socket", str(server.socket), "http://x/v1/models"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert json.loads(shown.stdout)["data"][0]["id"] == server.model


def test_another_user_is_hung_up_on(server: Server) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can connect as somebody else")
    # Even where somebody has opened the folder and the socket to all.
    opened = [server.socket.parent.parent, server.socket.parent, server.socket]
    modes = [path.stat().st_mode for path in opened]
    script = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /health HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); print(s.recv(100))"
    )
    command = [sys.executable, "-I", "-c", script, str(server.socket)]
    try:
        for path in opened:
            path.chmod(0o777)
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode)
    assert "HTTP" not in shown.stdout
    assert shown.stdout == "b''\n" or "BrokenPipe" in shown.stderr or "Reset" in shown.stderr
    assert "refused a connection of user 65534" in server.log.read_text()
