"""completion: what fits a word, and that real shells type it."""

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import workbench
from tests.config.configs_on_disk import write_configs
from workbench.cli.completion import SCRIPTS, complete
from workbench.cli.main import VERBS, main
from workbench.cli.verb_table import TABLE, make_table, read_table, table_text
from workbench.runs.job_file import JobFile, this_boot, this_host
from workbench.runs.layout import RunFolder
from workbench.runs.registry import entry_of, write_entry

PROJECT = {
    "configs/base/bottom.yaml": """
        args:
          --lr: {path: optimizer.learning_rate, help: How fast}
          --rounding: {path: optimizer.rounding, short: -R}
          --compile: model.compile
          --model: {path: model.path, short: -M}
    """,
    "configs/poems/top.yaml": """
        extends: ../base/bottom.yaml
        data: {sources: {odes: {path: ../../odes.json}}}
    """,
    "configs/poems/tiny.yaml": "extends: ../base/bottom.yaml",
    "configs/broken.yaml": "optimizer: [",
    "configs/spaced out.yaml": "extends: base/bottom.yaml",
    "chat_templates/rhyme.jinja": "{{ messages }}",
    "odes.json": "[]",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(write_configs(folder, PROJECT))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


def fitting(*words: str) -> list[str]:
    return [each.text for each in complete(words[:-1], words[-1]).candidates]


def test_the_table_is_what_the_parsers_of_the_verbs_say() -> None:
    made = make_table()
    assert set(made) == {"", "--batch", *VERBS}
    assert msgspec.to_builtins(read_table()) == msgspec.to_builtins(made), (
        "make it anew: python -m workbench.cli.verb_table"
    )
    assert TABLE.read_text("utf-8") == table_text(made)


def test_every_verb_is_offered_with_its_line() -> None:
    found = {each.text: each.help for each in complete([], "").candidates}
    assert found == {verb: line for verb, (_, line) in VERBS.items()}
    assert fitting("sho") == ["show"]
    assert "--batch" in fitting("--")


def test_verbs_below_a_verb_are_offered() -> None:
    assert fitting("control", "st") == ["status", "stop"]
    assert {"check", "prepare", "preview"} <= set(fitting("data", ""))
    assert fitting("completion", "") == ["bash", "zsh", "fish"]


def test_options_are_those_of_the_verb_and_the_flags_of_the_config() -> None:
    assert "--dry-run" in fitting("train", "--")
    assert "--lr" not in fitting("train", "--")
    offered = fitting("train", "-t", "poems/top", "--")
    assert {"--dry-run", "--lr", "--rounding", "--model"} <= set(offered)
    assert fitting("-t", "poems/top", "train", "--l") == ["--lr"]
    assert fitting("train", "-tpoems/top", "--l") == ["--lr"]
    assert fitting("train", "--config=poems/top", "--l") == ["--lr"]
    assert {"-R", "-M", "-d", "-t"} <= set(fitting("train", "-t", "poems/top", "-"))
    told = {
        each.text: each.help for each in complete(["train", "-t", "poems/top"], "--").candidates
    }
    assert told["--lr"] == "How fast"
    assert fitting("control", "stop", "--") == ["--help", "--json", "--no-save"]


def test_a_broken_config_leaves_the_options_of_the_verb() -> None:
    assert "--dry-run" in fitting("train", "-t", "broken", "--")
    assert fitting("train", "-t", "broken", "batch.tr") == ["batch.train="]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("po", ["poems/tiny", "poems/top"]),
        ("poems/to", ["poems/top"]),
        ("poems/top.", ["poems/top.yaml"]),
        ("configs/poems/ti", ["configs/poems/tiny"]),
        ("brok", ["broken"]),
        ("base/", []),
    ],
)
def test_configs_are_named_with_and_without_their_suffix(typed: str, names: list[str]) -> None:
    assert fitting("train", "-t", typed) == names
    assert complete(["train", "-t"], typed).by_shell == "files"
    assert fitting("-p", ".", "-t", typed) == names


@pytest.mark.parametrize("verb", ["show", "tree", "new", "edit"])
def test_what_is_only_extended_is_offered_where_that_makes_sense(verb: str) -> None:
    assert "base/bottom" in fitting(verb, "-t", "base/bot")


def test_names_of_the_other_verbs() -> None:
    assert fitting("diff", "poems/t") == ["poems/tiny", "poems/top"]
    assert fitting("edit", "rh") == ["rhyme"]
    assert fitting("serve", "-t", "rh") == ["rhyme"]
    assert fitting("edit", "poems/top", "base/bo") == ["base/bottom"]
    assert fitting("-p", "/nowhere/at/all", "show", "-t", "d") == []


def test_keys_come_by_section_then_by_name_then_their_words() -> None:
    train = ("train", "-t", "poems/top")
    assert fitting("train", "") == ["-t"]
    assert "optimizer." in fitting(*train, "")
    assert fitting(*train, "opt") == ["optimizer."]
    assert fitting(*train, "optimizer.warm") == ["optimizer.warmup_steps="]
    assert fitting(*train, "optimizer.rounding=st") == ["optimizer.rounding=stochastic"]
    assert fitting(*train, "model.compile=") == ["model.compile=true", "model.compile=false"]
    assert "data.chat_template=rhyme" in fitting(*train, "data.chat_template=")
    assert "data.sources.odes.path=" in fitting(*train, "data.sources.")
    assert complete(train, "model.path=").by_shell == "files"
    assert fitting(*train, "no.such.key=") == []
    assert fitting("new", "-t", "poems/top", "name", "batch.tr") == ["batch.train="]


def test_values_of_flags() -> None:
    train = ("train", "-t", "poems/top")
    assert "nearest" in fitting(*train, "--rounding", "")
    assert "--rounding=nearest" in fitting(*train, "--rounding=n")
    assert complete([*train, "-M"], "").by_shell == "files"
    # A flag that is alone takes nothing: what follows is a key again.
    assert fitting(*train, "--compile", "batch.tr") == ["batch.train="]
    assert fitting("tree", "--format", "") == ["text", "svg", "json"]
    assert complete(["train", "-p"], "").by_shell == "folders"
    assert complete([*train, "--"], "--max").candidates == ()


@pytest.mark.parametrize(
    "typed", [["finalize"], ["finalize", "run"], ["checkpoints", "verify"], ["convert"]]
)
def test_runs_and_models_are_folders_for_the_shell(typed: list[str]) -> None:
    assert complete(typed, "").by_shell == "folders"


def test_jobs_are_named_by_their_id(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "output" / "poem-1")
    run.path.mkdir(parents=True)
    job = JobFile(
        job="poem-1-abcdef",
        attempt=1,
        host=this_host(),
        pid=1,
        start_time=1,
        boot_id=this_boot(),
        socket="/nowhere",
    )
    write_entry(entry_of(job, run))
    assert fitting("control", "stop", "") == ["poem-1-abcdef"]
    assert complete(["control", "stop"], "").by_shell == "folders"
    assert fitting("diff", "poems/top", "poem-") == ["poem-1-abcdef"]
    assert fitting("control", "list", "") == []


def test_completing_imports_no_verb_and_no_library_of_the_screens_or_models() -> None:
    words = "'zsh', '4', 'workbench', 'train', '-t', 'poems/top', '--l'"
    code = (
        "import sys; from workbench.cli.main import main\n"
        f"status = main(['__complete', {words}])\n"
        "print(status, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    shown, modules = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1].split()
    assert shown == "none\n--lr\tHow fast"
    assert modules[0] == "0"
    heavy = {"torch", "textual", "rich", "httpx", "numpy", "asyncio", "transformers"}
    assert not heavy.intersection(modules)
    verbs = {f"workbench.cli.{target.partition(':')[0]}" for target, _ in VERBS.values()}
    assert verbs.intersection(modules) == {"workbench.cli.completion"}


@pytest.mark.parametrize(
    "arguments", [[], ["bash"], ["bash", "x", "y"], ["bash", "9", "workbench"]]
)
def test_nonsense_from_a_script_is_no_crash(arguments: list[str]) -> None:
    assert main(["__complete", *arguments]) in (0, 2)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_printed_and_the_help_says_how_to_switch_it_on(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]
    assert main(["completion", "--help"]) == 0
    assert f"workbench completion {shell}" in capsys.readouterr().out


# ---- real shells --------------------------------------------------------------------------------

# What is typed is shown word by word once the line is entered; completion asks the real program.
SET_UP = {
    "bash": (
        ["bash", "--norc", "-i"],
        """
        workbench() { if [[ $1 == __complete ]]; then command workbench "$@"; else
            printf 'TYPED'; printf '<%s>' "$@"; echo; fi; }
        eval "$(command workbench completion bash)"
        bind 'set enable-bracketed-paste off'; echo READY
        """,
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        """
        unsetopt beep; autoload -Uz compinit; compinit -u -D
        workbench() { if [[ $1 == __complete ]]; then command workbench "$@"; else
            printf 'TYPED'; printf '<%s>' "$@"; echo; fi; }
        eval "$(command workbench completion zsh)"; echo READY
        """,
    ),
    "fish": (
        ["fish", "--no-config", "-i"],
        """
        function workbench; if test "$argv[1]" = __complete; command workbench $argv; else;
            printf 'TYPED'; printf '<%s>' $argv; echo; end; end
        command workbench completion fish | source; echo READY
        """,
    ),
}

LINES = [
    ("workbench contr\tsto\t", ["control", "stop"]),
    ("workbench train -t poems/to\t", ["train", "-t", "poems/top"]),
    ("workbench train -t poems/top --roun\tnea\t", ["train", "-t", "poems/top", "--rounding",
                                                    "nearest"]),
    ("workbench show -t poems/top opti\trounding=sto\t",
     ["show", "-t", "poems/top", "optimizer.rounding=stochastic"]),
    ("workbench show -t poems/top model.path=od\t",
     ["show", "-t", "poems/top", "model.path=odes.json"]),
    ("workbench show -t spa\t", ["show", "-t", "spaced out"]),
    ("workbench show -t chat_\trhy\t", ["show", "-t", "chat_templates/rhyme.jinja"]),
]  # fmt: skip


class Terminal:
    """An interactive shell at a terminal of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.screen, other = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            # A shell with jobs wants the terminal to be its own.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what the shell shows until the pattern comes; what came before is forgotten."""
        ends = time.monotonic() + 20
        while (found := re.search(pattern, self.seen)) is None:
            left = ends - time.monotonic()
            assert left > 0, f"{pattern} did not come: {self.seen!r}"
            if select.select([self.screen], [], [], left)[0]:
                self.seen += os.read(self.screen, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    argv, set_up = SET_UP[request.param]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    program = tmp_path / "bin" / "workbench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m workbench "$@"\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(workbench.__file__).parents[1]),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "TERM": "xterm",
        "PS1": "> ",
    }
    terminal = Terminal(argv, environment)
    try:
        script = tmp_path / "set_up"
        script.write_text(textwrap.dedent(set_up))
        terminal.type(f". {script}\n")
        terminal.read_until("READY")
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", SET_UP, indirect=True)
def test_a_real_shell_completes_what_is_typed(shell: Terminal) -> None:
    for line, expected in LINES:
        shell.type(line + "\n")
        typed = shell.read_until(r"TYPED((?:<[^<>\r\n]*>)+)\r?\n")[1]
        assert re.findall("<(.*?)>", typed) == expected, line
