"""``workbench chat`` against the real server: words of a talk, texts gone on with, refusals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.inference.conftest import TOKEN, Server
from workbench.cli.main import main
from workbench.data.formats import convert, recognise

WORKBENCH = [sys.executable, "-m", "workbench"]
SHORT = ["--max-tokens", "12", "--temperature", "0"]
PROMPT = "Hello, my name is"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, runtime_folder: Path, tmp_path: Path) -> None:
    """Where this user's servers are looked for, without a token, and a folder to save into."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))
    for name in ("WORKBENCH_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)


def chat(*arguments: str, said: str | bytes = "") -> "subprocess.CompletedProcess[str]":
    process = subprocess.run(
        [*WORKBENCH, "chat", *arguments],
        input=said.encode() if isinstance(said, str) else said,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(
        process.args, process.returncode, process.stdout.decode(), process.stderr.decode()
    )


def asked(server: Server, *arguments: str, said: str | bytes = "") -> str:
    """Give stdout of a call that must succeed, and say nothing on stderr."""
    process = chat("--url", str(server.socket), *arguments, said=said)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def talked(server: Server, *said: str, flags: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Give the replies of a talk, each on a line of its own, and what was told beside them."""
    talk = chat(
        "--url",
        str(server.socket),
        "--interactive",
        "--max-tokens",
        "6",
        *(flags or ("--temperature", "0")),
        said="".join(f"{line}\n" for line in said),
    )
    assert talk.returncode == 0, talk.stderr
    return talk.stdout.split("\n")[:-1], talk.stderr


def read_saved(path: Path) -> list[list[tuple[str, str]]]:
    found = []
    for line in path.read_bytes().splitlines():
        row = json.loads(line)
        assert recognise(row) == "messages"
        conversation, _ = convert(row, "messages", {}, "row")
        found.append([(str(turn.role), turn.content) for turn in conversation.messages])
    return found


# ---- a text gone on with ---------------------------------------------------------------------


def test_a_completion_shows_the_prompt_and_goes_on(server: Server) -> None:
    whole = asked(server, "--completion", PROMPT, *SHORT)
    bare = asked(server, "--completion", PROMPT, "--no-echo", *SHORT)
    assert whole == PROMPT + bare
    assert len(bare) > 2


def test_a_completion_is_what_the_model_says_to_the_text_without_a_template(
    server: Server,
) -> None:
    with httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}) as http:
        body = {"model": server.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        answer = http.post(f"{server.url}/completions", json=body, timeout=60).json()
    assert asked(server, "--completion", PROMPT, "--no-echo", *SHORT) == (
        answer["choices"][0]["text"] + "\n"
    )
    assert answer["usage"]["prompt_tokens"] < len(PROMPT)
    assert asked(server, "--message", PROMPT, *SHORT) != answer["choices"][0]["text"] + "\n"


@pytest.mark.parametrize("flags", [("--completion", "-"), ("--completion",)])
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_text_from_stdin_is_without_its_last_line_end(
    server: Server, flags: tuple[str, ...], ending: str
) -> None:
    said = f"One\n\n{PROMPT}{ending}"
    piped = asked(server, *flags, *SHORT, said=said)
    assert piped.startswith(f"One\n\n{PROMPT}")
    assert piped == asked(server, "--completion", f"One\n\n{PROMPT}", *SHORT)


def test_at_most_so_many_tokens_are_made_and_50_where_nothing_is_said(server: Server) -> None:
    for flags, most in ((("--max-tokens", "5"), 5), ((), 50)):
        shown = json.loads(
            asked(server, "--completion", PROMPT, "--temperature", "0", "--json", *flags)
        )
        assert shown["usage"]["completion_tokens"] == most
        assert shown["finish_reason"] == "length"
        assert (shown["prompt"], shown["model"]) == (PROMPT, server.model)


def test_json_without_echo_holds_no_prompt(server: Server) -> None:
    shown = json.loads(asked(server, "--completion", PROMPT, "--no-echo", "--json", *SHORT))
    assert set(shown) == {"model", "reply", "finish_reason", "usage"}
    assert shown["reply"] + "\n" == asked(server, "--completion", PROMPT, "--no-echo", *SHORT)


@pytest.mark.parametrize("what", [("--message", PROMPT), ("--completion", PROMPT)])
def test_a_stream_shows_the_same_as_a_whole_reply(server: Server, what: tuple[str, ...]) -> None:
    assert asked(server, *what, "--stream", *SHORT) == asked(server, *what, *SHORT)


# ---- which server, and as whom ---------------------------------------------------------------


@pytest.mark.parametrize("names", [("WORKBENCH_TOKEN",), ("OPENAI_API_KEY",)])
def test_a_url_is_asked_with_the_token_of_either_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    refused = chat("--url", server.url, "--message", "Hello", *SHORT)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "WORKBENCH_TOKEN, or OPENAI_API_KEY" in refused.stderr
    monkeypatch.setenv(names[0], TOKEN)
    process = chat("--url", server.url, "--message", "Hello", *SHORT)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == asked(server, "--message", "Hello", *SHORT)


def test_our_own_token_goes_before_the_other_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_TOKEN", TOKEN)
    monkeypatch.setenv("OPENAI_API_KEY", "of another server")
    assert chat("--url", server.url, "--message", "Hello", *SHORT).returncode == 0


def test_the_only_server_that_runs_is_found_on_any_port(server: Server) -> None:
    assert server.socket.name != "serve-8000.sock"
    left_behind = server.socket.with_name("serve-9.sock")
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
            str(left_behind),
        ],
        check=True,
    )
    try:
        found = chat("--message", "Hello", *SHORT)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout == asked(server, "--message", "Hello", *SHORT)
        left_behind.unlink()
        left_behind.symlink_to(server.socket)
        several = chat("--message", "Hello", *SHORT)
    finally:
        left_behind.unlink()
    assert (several.returncode, several.stdout) == (3, "")
    assert "2 servers run here" in several.stderr
    assert "name one: --url /" in several.stderr


def test_a_model_is_asked_for_by_name(server: Server) -> None:
    named = asked(server, "--name", server.model, "--message", "Hello", *SHORT)
    assert named == asked(server, "--message", "Hello", *SHORT)
    absent = chat("--url", str(server.socket), "--name", "nobody", "--message", "Hello")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "'nobody' is not served here" in absent.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--url", "http://127.0.0.1:9", "--message", "a"], 3),
        (["--url", "http://127.0.0.1:9", "--completion", "a"], 3),
        (["--url", "http://127.0.0.1:9", "--interactive"], 3),
        (["--url", "127.0.0.1:9", "--message", "a"], 2),
        (["--url", "http://", "--message", "a"], 2),
        (["--url", "ftp://x", "--message", "a"], 2),
        (["--completion", " "], 2),
        (["--completion", "a", "--message", "b"], 2),
        (["--completion", "a", "--system", "b"], 2),
        (["--completion", "a", "--max-tokens", "0"], 2),
        (["--completion", "a", "--max-tokens", "x"], 2),
        (["--completion", "a", "--stream", "--json"], 2),
        (["--message", "a", "--no-echo"], 2),
        (["--message", "a", "-m", "x", "--name", "y"], 2),
        (["--interactive", "--completion", "a"], 2),
        (["--url", "http://127.0.0.1:9", "--message", "a\udcff"], 2),
    ],
    ids=lambda value: " ".join(map(ascii, value)) if isinstance(value, list) else str(value),
)
def test_a_wrong_command_line_is_2_and_a_missing_server_3(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *arguments]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert "Traceback" not in shown.err


def test_a_request_that_is_refused_is_1(server: Server) -> None:
    for what in ("--message", "--completion"):
        refused = chat("--url", str(server.socket), what, "a", "--temperature", "9")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "temperature" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_bytes_that_are_no_utf_8_are_refused(server: Server) -> None:
    refused = chat("--url", str(server.socket), "--message", "-", said=b"caf\xe9")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "stdin: is no UTF-8" in refused.stderr
    assert "at byte 3" in refused.stderr


def test_a_line_separator_in_a_text_breaks_nothing(server: Server) -> None:
    text = "One\u2028two\u0085three"
    assert asked(server, "--completion", text, *SHORT).startswith(text)


# ---- a talk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["quit", "exit", "q", " q "])
def test_each_word_that_leaves_leaves(server: Server, word: str) -> None:
    replies, told = talked(server, "Hello", word, "not read")
    assert len(replies) == 1
    assert told == f"{server.model}; /help for commands\n"


def test_the_talk_is_what_the_model_is_told(server: Server) -> None:
    (first, second), _ = talked(server, "Hello", "And?")
    with httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}) as http:
        turns = [("user", "Hello"), ("assistant", first), ("user", "And?")]
        body = {
            "messages": [{"role": role, "content": content} for role, content in turns],
            "max_tokens": 6,
            "temperature": 0,
        }
        answer = http.post(f"{server.url}/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == second


def test_clear_and_system_begin_anew(server: Server) -> None:
    (plain, again, kind, plain_again), _ = talked(
        server,
        *("Hello", "/clear", "Hello", "/system Be kind.", "/clear", "Hello"),
        *("/system", "/clear", "Hello"),
    )
    assert plain == again == plain_again
    assert kind != plain
    assert asked(
        server, "--system", "Be kind.", "--message", "Hello", *SHORT[2:], "--max-tokens", "6"
    ) == (f"{kind}\n")


def test_help_tells_every_word_and_an_unknown_one_gets_it_too(server: Server) -> None:
    _, told = talked(server, "/help")
    for word in ("/clear", "/system", "/retry", "/temperature", "/save", "/help", "quit, exit, q"):
        assert word in told
    replies, unknown = talked(server, "/nonsense x")
    assert replies == []
    assert "no such command: /nonsense" in unknown
    assert "/retry" in unknown


def test_retry_answers_again_in_place_of_the_answer_before(server: Server) -> None:
    flags = ("--temperature", "1.5", "--seed", "3")
    (first, again, then), told = talked(server, "Hello", "/retry", "And?", "/save", flags=flags)
    assert first != again
    ((user, one, two, three),) = read_saved(Path("chat.jsonl"))
    assert [user, one, two] == [("user", "Hello"), ("assistant", again), ("user", "And?")]
    assert three == ("assistant", then)
    assert "2 answers in chat.jsonl" in told
    assert "nothing was asked yet" in talked(server, "/retry")[1]


def test_the_temperature_is_told_and_changed(server: Server) -> None:
    flags = ("--temperature", "1.5")
    replies, told = talked(
        server, "/temperature", "/temperature 0", "Hello", "/clear", "Hello", flags=flags
    )
    assert replies[0] == replies[1] == talked(server, "Hello")[0][0]
    assert "temperature: 1.5" in told
    assert "temperature: 0\n" in told
    for wrong in ("nan", "-1", "2.5", "hot"):
        assert f"'{wrong}' is no temperature" in talked(server, f"/temperature {wrong}")[1]


def test_a_talk_is_saved_once_however_often_and_beside_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", str(tmp_path / "kept.jsonl"))
    talked(
        server, "/system Be kind.", "Hello", "/save $KEPT", "And?", "/save", "/clear", "Hi", "/save"
    )
    first, second = read_saved(tmp_path / "kept.jsonl")
    assert [role for role, _ in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [content for role, content in second if role == "user"] == ["Hi"]
    _, told = talked(server, "/save", "/save chat.txt", "Hello", "/save chat.txt")
    assert told.count("no answer to save yet") == 2
    assert "name it chat.jsonl" in told


def test_a_refused_request_is_told_and_the_talk_goes_on(server: Server) -> None:
    replies, told = talked(
        server, *("Hello", "x" * 5000, "/retry", "/clear", "Hello"), flags=("--temperature", "0")
    )
    assert replies[0] == replies[1]
    assert told.count("context") >= 2


# ---- ctrl+c ------------------------------------------------------------------------------------


def restore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(server: Server, streams: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*WORKBENCH, "chat", "--url", str(server.socket), "--interactive", "--temperature", "0"],
        preexec_fn=restore_ctrl_c,
        stdin=streams,
        stdout=streams,
        stderr=streams,
    )


def test_ctrl_c_frees_the_model_within_half_a_second(server: Server) -> None:
    process = started(server, subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    health = f"{server.url}/health".replace("/v1", "")
    with httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}) as http:
        assert http.get(health).json()["busy"]
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        while http.get(health).json()["busy"]:
            assert time.monotonic() - began < 0.5
    _, told = process.communicate(b"/retry\n/save\nq\n", timeout=60)
    assert process.returncode == 0
    assert b"(stopped)" in told
    ((user, _),) = read_saved(Path("chat.jsonl"))
    assert user == ("user", "Hello")


class Terminal:
    """What a program shows on a terminal, and what is typed there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = b""

    def wait_for(self, text: bytes) -> None:
        """Read up to this text; what stands behind it is read later."""
        while text not in self._shown:
            self._shown += os.read(self._descriptor, 4096)
        self._shown = self._shown.split(text, 1)[1]

    def type(self, text: bytes) -> None:
        os.write(self._descriptor, text)


def interrupt_at_prompt(process: "subprocess.Popen[bytes]") -> None:
    """Press ctrl+c once the program waits for a key: before, Python would see it with the key."""
    state = Path(f"/proc/{process.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "S":
        pass
    process.send_signal(signal.SIGINT)


def test_ctrl_c_at_the_prompt_leaves_only_the_second_time(server: Server) -> None:
    """On a terminal: once after a reply is easily meant for the reply."""
    descriptor, end = pty.openpty()
    terminal = Terminal(descriptor)
    process = started(server, end)
    os.close(end)
    try:
        terminal.wait_for(b"> ")
        interrupt_at_prompt(process)
        terminal.wait_for(b"q leaves)")
        terminal.wait_for(b"> ")
        terminal.type(b"/temperature\n")
        terminal.wait_for(b"temperature: 0")
        terminal.wait_for(b"> ")
        interrupt_at_prompt(process)
        terminal.wait_for(b"q leaves)")
        terminal.wait_for(b"> ")
        interrupt_at_prompt(process)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(descriptor)
