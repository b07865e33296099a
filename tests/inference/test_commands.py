"""``workbench serve`` and ``workbench chat`` as a person runs them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.tiny_model import add_checkpoint
from workbench.cli import serve
from workbench.cli.main import main
from workbench.errors import RunError
from workbench.runs.layout import RunFolder

WORKBENCH = [sys.executable, "-m", "workbench"]
SHORT = ["--max-tokens", "12", "--temperature", "0"]


@pytest.fixture(scope="module")
def environment(runtime_folder: Path) -> dict[str, str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_folder)}
    environment.pop("WORKBENCH_TOKEN", None)
    return environment


@pytest.fixture(scope="module")
def serving(
    tiny_model: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """``workbench serve`` on a free port, with the socket name of its usual port as well."""
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*WORKBENCH, "serve", "-m", str(tiny_model), "-p", "0", "-s", "never", "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    ready = json.loads(line)
    usual = Path(ready["socket"]).with_name("serve-8000.sock")
    usual.symlink_to(ready["socket"])
    yield process, ready
    usual.unlink()
    process.kill()
    process.wait(timeout=10)
    process.stdout.close()


def restore_ctrl_c() -> None:
    """Let a child heed ctrl+c as one that a terminal starts; background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(
    arguments: list[str], environment: dict[str, str], said: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*WORKBENCH, *arguments],
        capture_output=True,
        text=True,
        input=said,
        env=environment,
        timeout=60,
        check=False,
    )


def test_serve_says_where_and_with_which_token(
    serving: tuple["subprocess.Popen[str]", dict[str, str]],
) -> None:
    ready = serving[1]
    assert ready["url"].startswith("http://127.0.0.1:")
    assert len(ready["token"]) >= 32
    assert ready["stop"] == ["<|endoftext|>", "<|im_end|>", "never"]


def test_chat_prints_the_reply_and_nothing_else(
    serving: tuple["subprocess.Popen[str]", dict[str, str]], environment: dict[str, str]
) -> None:
    plain = run(["chat", "--message", "Hello", *SHORT], environment)
    assert plain.returncode == 0, plain.stderr
    assert plain.stderr == ""
    from_stdin = run(["chat", "--message", "-", "--json", *SHORT], environment, said="Hello")
    shown = json.loads(from_stdin.stdout)
    assert plain.stdout == shown["reply"] + "\n"
    assert shown["usage"]["completion_tokens"] == 12
    assert shown["model"] == serving[1]["model"]


def test_chat_asks_any_server_by_url(
    serving: tuple["subprocess.Popen[str]", dict[str, str]], environment: dict[str, str]
) -> None:
    arguments = ["chat", "--url", serving[1]["url"], "--message", "Hello", *SHORT]
    refused = run(arguments, environment)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "WORKBENCH_TOKEN" in refused.stderr
    asked = run(arguments, {**environment, "WORKBENCH_TOKEN": serving[1]["token"]})
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()


def test_the_example_of_another_client_works(
    serving: tuple["subprocess.Popen[str]", dict[str, str]], environment: dict[str, str]
) -> None:
    ready = serving[1]
    asked = subprocess.run(
        [sys.executable, "examples/openai_client/chat.py", "Hello"],
        cwd=Path(__file__).parents[2],
        env={**environment, "WORKBENCH_URL": ready["url"], "WORKBENCH_TOKEN": ready["token"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert "tokens" in asked.stderr


def test_talking_turn_by_turn(
    serving: tuple["subprocess.Popen[str]", dict[str, str]], environment: dict[str, str]
) -> None:
    said = "Hello\n/help\n\n/system Be kind.\n/clear\nHello\nq\nnot read\n"
    talk = run(["chat", "--interactive", *SHORT], environment, said=said)
    once = [
        run(["chat", "--message", "Hello", *system, *SHORT], environment).stdout
        for system in ([], ["--system", "Be kind."])
    ]
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout == "".join(once)
    assert once[0] != once[1]
    assert "/clear " in talk.stderr


def test_ctrl_c_stops_the_reply_and_not_the_program(
    serving: tuple["subprocess.Popen[str]", dict[str, str]], environment: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [*WORKBENCH, "chat", "--interactive", "--temperature", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=restore_ctrl_c,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(b"/help\nq\n", timeout=20)
    assert process.returncode == 0
    assert b"(stopped)" in told
    assert b"/clear " in told


def test_chat_serves_the_newest_complete_checkpoint_of_a_run_for_one_call(
    tiny_model: Path, tmp_path: Path, environment: dict[str, str], runtime_folder: Path
) -> None:
    run_folder = RunFolder(tmp_path / "demo-1")
    for step in (5, 40, 50):
        add_checkpoint(run_folder, tiny_model, step)
    (run_folder.checkpoint(50) / "model.safetensors").write_bytes(b"")
    shutil.copytree(tiny_model, run_folder.partial_checkpoint(60))
    sockets = set((runtime_folder / "workbench").iterdir())
    arguments = ["chat", "-m", str(run_folder.path), "--message", "Hello", "--json", *SHORT]
    asked = run(arguments, environment)
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr == ""
    assert json.loads(asked.stdout)["model"] == "demo-1/checkpoint-40"
    assert json.loads(asked.stdout)["reply"]
    assert set((runtime_folder / "workbench").iterdir()) == sockets


def test_a_killed_serve_takes_its_server_with_it(
    serving: tuple["subprocess.Popen[str]", dict[str, str]],
) -> None:
    process, ready = serving
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(15)
        connection.connect(ready["socket"])
        process.send_signal(signal.SIGKILL)
        assert connection.recv(1) == b""
    # The server removes its socket when it has closed all connections.
    assert process.wait(timeout=15) == -signal.SIGKILL


def test_ctrl_c_ends_serve_with_130(tiny_model: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*WORKBENCH, "serve", "-m", str(tiny_model), "-p", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=restore_ctrl_c,
    )
    assert process.stderr is not None
    assert "loading" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert shown == ""


def test_without_a_server_chat_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["chat", "--message", "Hello"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "start one: workbench serve" in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["chat", "--message", "a", "--interactive"],
        ["chat", "--message", " "],
        ["chat", "--interactive", "--json"],
        ["chat", "--message", "a", "-m", "x", "--url", "y"],
        ["chat", "--message", "a", "-m", "/no/such/model"],
        ["serve"],
        ["serve", "-c"],
        ["serve", "-m", "x", "-c", "y"],
        ["serve", "-m", "x", "-p", "70000"],
        ["serve", "-m", "x", "-T", "int3"],
        ["serve", "-m", "x", "--parallel", "0"],
        ["serve", "-m", "x", "--memory", "-1"],
        ["serve", "-m", "x", "--overflow", "wrap"],
        ["serve", "-m", "/no/such/model", "-p", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    runtime_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))
    assert main(arguments) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err


def test_a_checkpoint_is_found_or_refused(tiny_model: Path) -> None:
    with pytest.raises(RunError, match="without checkpoints"):
        serve.checkpoint_of(tiny_model)


def test_the_newest_complete_checkpoint_is_printed(
    tiny_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    run_folder = RunFolder(tmp_path / "demo-1")
    for step in (5, 40, 50):
        add_checkpoint(run_folder, tiny_model, step)
    (run_folder.checkpoint(50) / "model.safetensors").write_bytes(b"")
    command = [*WORKBENCH, "serve", "-c", str(run_folder.path), "-p", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    process.terminate()
    _, told = process.communicate(timeout=20)
    assert f"newest complete checkpoint: {run_folder.checkpoint(40)}" in told
    assert first.startswith("serving  demo-1/checkpoint-40, ")
    assert second == f"folder   {run_folder.checkpoint(40)}\n"


def test_dtype_device_template_and_stops_are_flags_of_serve() -> None:
    flags = "-m M -d cuda:0 -t chatml -T bfloat16 -s A B -s C -H 0.0.0.0 -p 9000 -c"
    options = serve.parse(flags.split(" "))
    assert (options.device, options.template, options.dtype) == ("cuda:0", "chatml", "bfloat16")
    assert (options.stop, options.host, options.port) == (["A", "B", "C"], "0.0.0.0", 9000)
    assert options.from_checkpoint == Path()
    flags = "-m a -m b=c --engine vllm --parallel 8 --memory 1.5 --overflow truncate"
    options = serve.parse(flags.split(" "))
    assert (options.model, options.engine) == (["a", "b=c"], "vllm")
    assert (options.parallel, options.memory, options.overflow) == (8, 1.5, "truncate")
