"""Our own client: pieces as they come, and failures that say which of the two sides failed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.inference.conftest import TOKEN, Server
from workbench.errors import ControlError
from workbench.jobs.chat_client import ChatClient, ChatError, ChatTurn, Piece
from workbench.jobs.chat_settings import ChatSettings

HELLO = [ChatTurn("system", "Be kind."), ChatTurn("user", "Hello")]
SHORT = ChatSettings(max_tokens=20, temperature=0.8, top_p=0.9, top_k=50, seed=3)


async def test_socket_and_url_give_the_same_reply(server: Server) -> None:
    local, remote = ChatClient(server.socket), ChatClient(server.url, token=TOKEN)
    pieces = [piece async for piece in local.stream(HELLO, SHORT)]
    reply = await remote.reply(HELLO, SHORT)
    assert "".join(piece.text for piece in pieces) == reply.text != ""
    assert len(pieces) > 5
    assert reply.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 20
    assert reply.model == server.model


async def test_closing_the_stream_stops_the_generation(server: Server) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(server.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as local:
        before = (await local.get("/health")).json()["tokens_made"]
        client = ChatClient(server.socket)
        async with aclosing(client.stream(HELLO, ChatSettings(temperature=0))) as pieces:
            async for piece in pieces:
                if piece.text:
                    break
        async with asyncio.timeout(20):
            while (state := (await local.get("/health")).json())["busy"]:
                pass
    assert 0 < state["tokens_made"] - before < 500


async def test_a_url_may_leave_out_the_version(server: Server) -> None:
    client = ChatClient(server.url.removesuffix("/v1"), token=TOKEN)
    assert await client.model() == server.model


async def test_a_refusal_is_given_with_the_servers_words(server: Server) -> None:
    with pytest.raises(ChatError, match=r"401.*wants its token.*WORKBENCH_TOKEN") as refused:
        await ChatClient(server.url, token="wrong").reply(HELLO)
    assert refused.value.exit_status == 1
    with pytest.raises(ChatError, match="temperature"):
        await ChatClient(server.socket).reply(HELLO, ChatSettings(temperature=9))


async def test_a_server_that_is_not_there_is_not_reachable(runtime_folder: Path) -> None:
    for address in ("http://127.0.0.1:9", runtime_folder / "workbench" / "serve-1.sock"):
        with pytest.raises(ControlError, match="no server can be reached") as missing:
            await ChatClient(address).reply(HELLO)
        assert missing.value.exit_status == 3


async def test_a_socket_in_a_folder_open_to_others_is_not_used(
    server: Server, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "serve-8000.sock").symlink_to(server.socket)
    with pytest.raises(ControlError, match="others may enter"):
        await ChatClient(tmp_path / "serve-8000.sock").reply(HELLO)


@asynccontextmanager
async def serving(content: str) -> AsyncIterator[str]:
    """Answer every request with these bytes, as another server might."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(content.encode())}\r\n\r\n"
        writer.write((head + content).encode())
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with stranger:
        yield f"http://127.0.0.1:{stranger.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n', "ended in the middle"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ("data: <html>\n\n", "not of OpenAI's form"),
        ("", "ended in the middle"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_failure(content: str, said: str) -> None:
    async with serving(content) as url:
        with pytest.raises(ChatError, match=said):
            await ChatClient(url, model="any").reply(HELLO)


async def test_what_other_servers_add_is_skipped() -> None:
    content = (
        ": comment\n\n"
        'event: chunk\ndata: {"id": "1", "x": 2, "choices": [{"delta": {"role": "assistant"}}]}\n\n'
        'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "logprobs": null}]}\n\n'
        'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}\n\n'
        "data: [DONE]\n\n"
    )
    async with serving(content) as url:
        pieces = [piece async for piece in ChatClient(url, model="any").stream(HELLO)]
    assert pieces == [Piece(), Piece("Hi"), Piece("", "stop")]


async def test_lines_of_a_stream_end_at_line_feeds_and_nowhere_else() -> None:
    said = "One\u2028two\u0085three\u2029\x0b"
    event = {"choices": [{"delta": {"content": said}}], "notice": "shortened"}
    content = f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\ndata: [DONE]\n\n"
    assert "\u2028" in content
    async with serving(content) as url:
        reply = await ChatClient(url, model="any").reply(HELLO)
    assert (reply.text, reply.notice) == (said, "shortened")


async def test_a_completion_is_what_follows_the_text(server: Server) -> None:
    client = ChatClient(server.socket)
    greedy = ChatSettings(max_tokens=600, temperature=0)
    whole = await client.whole(client.completion("Hello", greedy))
    pieces = [piece.text async for piece in client.completion("Hello", greedy) if piece.text]
    assert "".join(pieces) == whole.text != ""
    # What is made within a hundredth of a second comes together.
    assert len(pieces) > 5
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 600
    again = await client.whole(client.completion("Hello" + pieces[0], greedy))
    assert again.text.startswith(pieces[1])


async def test_the_models_of_a_server_are_listed(server: Server) -> None:
    assert await ChatClient(server.socket).models() == [server.model]
