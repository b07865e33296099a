"""Arguments of the verbs that take a config: the verb's options, the config's flags, key=value.

Shared by every verb that takes ``-t CONFIG``. Argparse knows only the verb's own options; which
flags there are is known once the config is. Invariant: nothing on the command line is ignored: it
is an option, a flag the config offers, a key=value, a name, an argument of torchrun, or a mistake.
"""

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from workbench.cli import output
from workbench.config import flags as flags_module
from workbench.config.flags import Flag, Override
from workbench.config.hub_id import downloaded_model, looks_like_hub_id
from workbench.config.inherit import expand
from workbench.config.load import ResolvedConfig, offered_flags, resolve
from workbench.config.yaml_reader import write_scalar
from workbench.errors import ConfigError

_HELP_WIDTH = 80

AddOptions = Callable[[argparse.ArgumentParser], None]


class ConfigArguments(NamedTuple):
    """What a command line that names a config says.

    Attributes:
        resolved: the config, flags and key=value applied.
        options: the verb's own options; ``config`` and ``project`` among them.
        torchrun_arguments: what stands behind ``--``.
        overrides: what flags and key=value say, in the order typed.
        names: the positional arguments, for a verb that takes some.
    """

    resolved: ResolvedConfig
    options: argparse.Namespace
    torchrun_arguments: list[str]
    overrides: tuple[Override, ...] = ()
    names: tuple[str, ...] = ()


class ConfigArgumentParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are ConfigErrors, so that they look like all others."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into an error with a remedy."""
        raise ConfigError(message, where=self.prog, remedy=f"see {self.prog} --help")


def read_config_arguments(
    arguments: Sequence[str],
    *,
    verb: str,
    summary: str,
    add_options: AddOptions | None = None,
    takes_torchrun: bool = False,
    names: Sequence[str] = (),
    examples: Sequence[tuple[str, str]] = (),
) -> ConfigArguments:
    """Read a command line that names a config.

    Args:
        arguments: behind the verb.
        verb: as shown in help and mistakes: ``train``, ``--batch``.
        summary: what the verb does, one line.
        add_options: adds the verb's own options to the parser (no positional ones).
        takes_torchrun: whether ``-- ARGS`` is allowed.
        names: what the positional arguments are called, all of them required.
        examples: command lines without ``workbench``, each with what it does, for the help.

    Raises:
        ConfigError: a mistake on the command line, or in the config.
        SystemExit: the help was asked for, and shown.
    """
    parser = _parser(verb, summary, takes_torchrun, names, examples)
    if add_options:
        add_options(parser)
    typed, torchrun_arguments = _split_at_dashes(arguments)
    own, others = _split_own(typed, parser)
    options = parser.parse_args(own)
    project = project_folder(options.project)
    if options.help:
        output.result(_help(parser, options.config, project))
        raise SystemExit(0)
    if torchrun_arguments and not takes_torchrun:
        raise ConfigError(
            "there is nothing behind -- for it", where=parser.prog, remedy="leave it out"
        )
    if options.config is None:
        raise ConfigError(
            "no config is named",
            where=parser.prog,
            remedy="add -t CONFIG; `workbench ls` lists them",
        )
    flags = offered_flags(options.config, project=project)
    overrides, rest = flags_module.parse(others, flags)
    taken = [each for each in rest if not each.startswith("-")][: len(names)]
    for each in rest:
        if each not in taken:
            raise _unknown(each, flags, parser)
    if len(taken) < len(names):
        missing = names[len(taken)]
        raise ConfigError(
            f"no {missing} is given", where=parser.prog, remedy=f"see {parser.prog} --help"
        )
    resolved = resolve(options.config, project=project, overrides=overrides)
    return ConfigArguments(resolved, options, torchrun_arguments, tuple(overrides), tuple(taken))


def examples_text(examples: Sequence[tuple[str, str]]) -> str | None:
    """Give the end of a verb's help: command lines, without ``workbench``, and what they do."""
    if not examples:
        return None
    lines = output.columns([[f"  workbench {command}", told] for command, told in examples])
    if max(len(line) for line in lines) > _HELP_WIDTH:
        lines = [
            line
            for command, told in examples
            for line in (f"  workbench {command}", f"      {told}")
        ]
    return "\n".join(["examples:", *lines])


def project_folder(text: str | None) -> Path | None:
    """Give the folder named by ``-p``, ``~`` and ``$VARS`` expanded; None where none is named.

    Raises:
        ConfigError: a variable or a user that is not known.
    """
    return typed_path(text, "project") if text is not None else None


def typed_path(text: str | Path, name: str) -> Path:
    """Expand ``~`` and ``$VARS`` of a path on the command line; ``name`` says what it is of.

    Raises:
        ConfigError: a variable or a user that is not known.
    """
    expanded, trouble = expand(str(text))
    if trouble:
        raise ConfigError(trouble, where=f"{name} {text}", remedy="set it, or write the path out")
    return Path(expanded)


def typed_model(text: str | Path, name: str) -> Path:
    """Find a model that was typed: a path, or an id on the hub whose folder is in its cache.

    Args:
        text: as typed; ``~`` and ``$VARS`` are expanded.
        name: what it is of, for mistakes.

    Returns:
        A path; nothing need be there.

    Raises:
        ConfigError: a variable or a user that is not known.
    """
    path = typed_path(text, name)
    if not path.exists() and looks_like_hub_id(str(text)):
        return downloaded_model(str(text)) or path
    return path


def _parser(
    verb: str,
    summary: str,
    takes_torchrun: bool,
    names: Sequence[str],
    examples: Sequence[tuple[str, str]],
) -> ConfigArgumentParser:
    parser = ConfigArgumentParser(
        prog=f"workbench {verb}",
        description=summary,
        usage=" ".join(
            [f"workbench {verb} -t CONFIG", *names, "[OPTIONS] [FLAGS] [KEY=VALUE …]"]
            + (["[-- TORCHRUN_ARGS]"] if takes_torchrun else [])
        ),
        epilog=examples_text(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-t", "--config", metavar="CONFIG", help="a name of `ls`, or a path")
    parser.add_argument(
        "-p",
        "--project",
        metavar="PROJECT",
        help="the folder that holds configs/; default: this one",
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this and the config's flags"
    )
    return parser


def _split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    typed = list(arguments)
    if "--" not in typed:
        return typed, []
    at = typed.index("--")
    return typed[:at], typed[at + 1 :]


def _split_own(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Part what argparse understands from the flags and key=value, keeping the order of each."""
    takes_value = {
        spelling: action.nargs != 0
        for action in _actions(parser)
        for spelling in action.option_strings
    }
    own: list[str] = []
    others: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        if name not in takes_value or (argument[2:] and not takes_value[name] and name[1] != "-"):
            others.append(argument)
            continue
        own.append(argument)
        if argument == name and takes_value[name] and waiting:
            # Joined, so that argparse does not take a value that begins with a dash for an option.
            own[-1] = f"{name}={waiting.pop(0)}" if name.startswith("--") else name + waiting.pop(0)
    return own, others


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # argparse offers no public way to list its options


def _unknown(argument: str, flags: Sequence[Flag], parser: argparse.ArgumentParser) -> ConfigError:
    """Say what is wrong with an argument that is nothing we know."""
    where = parser.prog
    if not argument.startswith("-"):
        return ConfigError(
            f"unexpected argument {argument!r}",
            where=where,
            remedy="name a config by -t CONFIG, set a key by section.key=value",
        )
    name = argument.partition("=")[0]
    offered = [spelling for flag in flags for spelling in flag.spellings]
    own = [spelling for action in _actions(parser) for spelling in action.option_strings]
    near = difflib.get_close_matches(name, [*offered, *own], n=1)
    remedy = (
        f"did you mean {near[0]}?"
        if near
        else "it offers " + " ".join(flag.name for flag in flags)
        if flags
        else "it offers no flags; set a key by section.key=value"
    )
    return ConfigError(f"the config offers no flag {name}", where=where, remedy=remedy)


def _help(parser: argparse.ArgumentParser, config: str | None, project: Path | None) -> str:
    parts = [parser.format_help().rstrip()]
    if config is None:
        parts.append("Name a config to see its flags: add -t CONFIG.")
    else:
        flags = offered_flags(config, project=project)
        parts.append(f"flags of {config} (args:), name, type, key, default and who states it:")
        parts.extend(flag_help(flags))
    return "\n\n".join(parts[:2]) + "".join(f"\n{line}" for line in parts[2:])


def flag_help(flags: Sequence[Flag]) -> list[str]:
    """Give two lines for each flag: spellings, type, key, default and source; below it the help."""
    lines = []
    for row, flag in zip(
        output.columns(
            [
                [
                    "  " + ", ".join(flag.spellings),
                    "|".join(flag.choices) if flag.type == "choice" else flag.type,
                    flag.path,
                    f"{write_scalar(flag.default)} ({flag.default_source})",
                ]
                for flag in flags
            ]
        ),
        flags,
        strict=True,
    ):
        lines += [row, f"      {flag.help}"]
    return lines or ["  none"]
