"""The table of commands; only the module of the one that was asked for is imported.

Exit status: 0 done, 1 the job or request failed, 2 usage or config, 3 not reachable, 4 refused,
130 interrupted. Invariant: a mistake someone can mend is shown without a traceback.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from workbench import __version__
from workbench.cli import output
from workbench.errors import WorkbenchError

VERBS: dict[str, tuple[str, str]] = {
    "ls": ("configs:run_ls", "list the configs"),
    "show": ("configs:run_show", "show a config with every key, and where each value comes from"),
    "tree": ("tree", "show which file extends which, and what each overrides"),
    "code": ("code", "show a config as a Python program that trains to the same losses"),
    "diff": ("diff", "show in which keys two configs or runs differ"),
    "edit": ("edit", "open configs and chat templates in the editor, then check them"),
    "new": ("new", "make a config that extends another one"),
    "schema": ("schema", "show the JSON Schema by which an editor completes configs"),
    "data": ("data", "check, prepare and preview the data of a config"),
    "estimate": ("estimate", "say what a run takes of GPU, memory, disk and time, and what fits"),
    "train": ("train", "start a run and follow it"),
    "control": ("control", "see and steer jobs: list, status, watch, save, pause, stop, …"),
    "tb": ("tb", "start TensorBoard on a run, or on all runs of a folder"),
    "convert": ("convert", "prepare a model: dtype, length, chat template, added tokens"),
    "serve": ("serve", "serve a model with the OpenAI protocol"),
    "chat": ("chat", "ask a model one thing"),
    "checkpoints": ("checkpoints", "list the checkpoints of a run, prove that they are whole"),
    "finalize": ("finalize", "publish a checkpoint as a model that other tools accept"),
    "completion": ("completion", "print the script by which bash, zsh or fish completes commands"),
}
"""Verb → module below ``workbench.cli`` (and function, if not ``run``), and its line of help."""

WITHOUT_VERB = {
    "--batch": ("batch", "train without a screen: JSON lines on stdout"),
    "": ("tui", "the terminal workbench"),
}

COMPLETE = "__complete"
"""Asked by the shells' scripts at each tab; in no list."""

_MOVED = ("-t", "--config", "-p", "--project")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit status.
    """
    output.open_missing_streams()
    output.write_any_character()
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except WorkbenchError as error:
        output.report_error(error)
        return error.exit_status
    except SystemExit as leaving:
        # argparse ends so after its help (0) and after its complaints (2).
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except KeyboardInterrupt:
        output.narrate("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has what it wanted: `workbench ls | head -1` is no failure.
        output.stop_writing()
        return 0


def _dispatch(arguments: list[str]) -> int:
    before, verb, behind = split_at_verb(arguments)
    if verb is None:
        if "--version" in before:
            output.result(f"workbench {__version__}")
            return 0
        if "-h" in before or "--help" in before:
            output.result(help_text())
            return 0
        return _function(WITHOUT_VERB[""][0])(before)
    if verb == COMPLETE:
        return _function("completion:run_hidden")(behind)
    if verb == "--batch":
        return _function(WITHOUT_VERB[verb][0])(before + behind)
    if verb not in VERBS:
        output.usage_error(f"no such command: {verb}{_nearest(verb)}; see workbench --help")
        return 2
    if unknown := _first_unknown(before):
        output.usage_error(f"{unknown} goes behind the command: workbench {verb} {unknown} …")
        return 2
    return _function(VERBS[verb][0])(before + behind)


def split_at_verb(arguments: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Find the verb: the first argument that is no option and no value of ``-t`` or ``-p``.

    Returns:
        What stands before it, the verb (``--batch`` counts as one; None where there is none), and
        what stands behind it.
    """
    before: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--batch" or not argument.startswith("-"):
            return before, argument, waiting
        before.append(argument)
        if argument in _MOVED and waiting:
            before.append(waiting.pop(0))
    return before, None, []


def _first_unknown(before: Sequence[str]) -> str | None:
    """Give the first option before a verb that is neither ``-t`` nor ``-p``."""
    waiting = list(before)
    while waiting:
        argument = waiting.pop(0)
        if argument in _MOVED:
            waiting = waiting[1:]
        elif not argument.startswith(tuple(f"{option}=" for option in _MOVED)) and not (
            argument[:2] in _MOVED and not argument.startswith("--")
        ):
            return argument
    return None


def _nearest(verb: str) -> str:
    near = difflib.get_close_matches(verb, VERBS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _function(target: str) -> Callable[[list[str]], int]:
    """Import the module of a verb and give the function that runs it."""
    module_name, _, function_name = target.partition(":")
    module = importlib.import_module(f"workbench.cli.{module_name}")
    function: Callable[[list[str]], int] = getattr(module, function_name or "run")
    return function


def help_text() -> str:
    """Give the help: every verb with one line."""
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb.ljust(width)}  {line}" for verb, (_, line) in VERBS.items())
    return f"""\
workbench {__version__}: finetune every weight of a language model on small hardware

  workbench                     {WITHOUT_VERB[""][1]}
  workbench --batch -t CONFIG   {WITHOUT_VERB["--batch"][1]}
  workbench VERB …              one of the commands below

{verbs}

Commands that take a config accept, before or behind the verb:
  -t CONFIG     1gpu_llama_7b/default, with .yaml, or a path
  -p PROJECT    the folder that holds configs/; otherwise the current one
and behind it KEY=VALUE, such as optimizer.learning_rate=1e-5, and the flags the config offers:
  workbench train -t CONFIG --help
Every command has examples: workbench VERB --help

Exit status: 0 done · 1 the job or request failed · 2 usage or config · 3 not reachable ·
4 refused, would not fit · 130 interrupted"""
