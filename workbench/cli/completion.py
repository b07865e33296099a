"""``workbench completion SHELL``: scripts for bash, zsh and fish, and what they ask for at a tab.

A script is short: it hands the words of the command line to the hidden verb ``__complete`` and
shows what comes back. That verb imports no other verb and no torch; what a verb takes is read from
a table. Invariant: completing starts nothing, writes nothing, and complains about nothing.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli import output
from workbench.cli.verb_table import OptionWords, VerbWords, read_table
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.config.flags import Flag

BASH = """\
# Completion of workbench for bash, made by `workbench completion bash`.
_workbench() {
    local line text program=${1/#\\~/$HOME}
    local -a lines
    mapfile -t lines < <("$program" __complete bash "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null)
    COMPREPLY=()
    for line in "${lines[@]:1}"; do
        # A name may hold a space, which the shell would take for its end.
        printf -v text %q "${line%%$'\\t'*}"
        COMPREPLY+=("$text")
    done
    case ${lines[0]} in
        files) compopt -o default ;;
        folders) compopt -o dirnames ;;
    esac
    # More is to be typed behind a section, a key or a folder.
    if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace
    fi
}
complete -F _workbench workbench
"""

ZSH = """\
#compdef workbench
# Completion of workbench for zsh, made by `workbench completion zsh`.
_workbench() {
    local line kind
    local -a lines whole open whole_told open_told
    lines=("${(@f)$("${(Q)words[1]/#\\~/$HOME}" __complete zsh $((CURRENT - 1)) "${(@Q)words}" \\
        2>/dev/null)}")
    kind=$lines[1]
    for line in "${(@)lines[2,-1]}"; do
        local text=${line%%$'\\t'*} told=${line#*$'\\t'}
        [[ $told == $text ]] && told=
        if [[ $text == *[=./] ]]; then
            open+=("$text") open_told+=("$text${told:+  -- $told}")
        else
            whole+=("$text") whole_told+=("$text${told:+  -- $told}")
        fi
    done
    if (( $#whole + $#open )); then
        (( $#whole )) && compadd -l -d whole_told -a whole
        (( $#open )) && compadd -l -S '' -d open_told -a open
        return 0
    fi
    case $kind in
        files) compset -P '*='; _files ;;
        folders) compset -P '*='; _files -/ ;;
    esac
}
if [[ $funcstack[1] == _workbench ]]; then
    _workbench "$@"
else
    compdef _workbench workbench
fi
"""

FISH = """\
# Completion of workbench for fish, made by `workbench completion fish`.
function __workbench_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $before[1])
    set -l lines ($program __complete fish (count $before) $before "$current" 2>/dev/null)
    if test (count $lines) -gt 1
        printf '%s\\n' $lines[2..-1]
        return
    end
    set -l key (string match -r '^[^=]*=' -- $current)
    set -l path (string replace -r '^[^=]*=' '' -- $current)
    switch "$lines[1]"
        case files
            printf "$key%s\\n" (__fish_complete_path "$path")
        case folders
            printf "$key%s\\n" (__fish_complete_directories "$path")
    end
end
complete -c workbench -f -k -a '(__workbench_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

HELP = """\
To switch it on:
  bash   add to ~/.bashrc:   eval "$(workbench completion bash)"
  zsh    into a folder of $fpath, before compinit runs:
         workbench completion zsh > ~/.zfunc/_workbench
         and in ~/.zshrc:    fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit
  fish   workbench completion fish > ~/.config/fish/completions/workbench.fish
"""


def run(arguments: list[str]) -> int:
    """Print the script of a shell."""
    parser = argparse.ArgumentParser(
        prog="workbench completion",
        description="Print the script by which a shell completes commands of workbench: verbs,\n"
        "options, the flags and keys of a config, configs, jobs.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", metavar="SHELL", choices=list(SCRIPTS), help="bash, zsh or fish")
    options = parser.parse_args(arguments)
    output.piece(SCRIPTS[options.shell])
    return 0


def run_hidden(arguments: Sequence[str]) -> int:
    """Answer a script: what the shell completes itself, then a candidate a line, with its help.

    Args:
        arguments: the shell, the number of the word to complete, and all words, the program first.
    """
    if len(arguments) < 3 or not arguments[1].isdecimal():
        return 2
    shell, number, words = arguments[0], int(arguments[1]), list(arguments[2:])
    words = words[: number + 1] + [""] * (number + 1 - len(words))
    before, current, num_cut = _whole_words(words) if shell == "bash" else (words, words[-1], 0)
    found = complete(before[1:-1], current)
    lines = [found.by_shell]
    for candidate in found.candidates:
        told = f"\t{candidate.help}" if candidate.help else ""
        lines.append(candidate.text[num_cut:] + told)
    output.result("\n".join(lines))
    return 0


def _whole_words(words: Sequence[str]) -> tuple[list[str], str, int]:
    """Join what bash has split at each ``=``; it wants back only what stands behind the last.

    Returns:
        The words, the last of them, and how many of its first characters are not wanted back.
    """
    joined: list[str] = []
    num_cut = 0
    is_open = False
    for word in words:
        if joined and len(joined) > 1 and (word == "=" or is_open):
            joined[-1] += word
        else:
            joined.append(word)
            num_cut = 0
        is_open = word == "="
        if is_open:
            num_cut = len(joined[-1])
    return joined, joined[-1], num_cut


# ---- what fits ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way to go on: the whole word, and a line about it."""

    text: str
    help: str = ""


@dataclass(frozen=True)
class Completions:
    """What fits the word that is typed.

    Attributes:
        candidates: in the order to show; where there are some, the shell adds none.
        by_shell: what the shell may complete where there is no candidate: ``files``, ``folders``
            or ``none``.
    """

    candidates: tuple[Candidate, ...] = ()
    by_shell: str = "none"


@dataclass
class _Typed:
    """What the words before the current one say.

    Attributes:
        verb: path of verbs: ``control``, ``stop``.
        words: what can be typed behind it.
        config: of ``-t``, ``project``: of ``-p``.
        names: positional arguments.
        waiting: the option or flag whose value is the current word.
        is_torchruns: behind ``--``.
        flags: of the config; read when they are needed.
    """

    verb: list[str] = field(default_factory=list)
    words: VerbWords = field(default_factory=VerbWords)
    config: str | None = None
    project: str | None = None
    names: list[str] = field(default_factory=list)
    waiting: "OptionWords | Flag | None" = None
    is_torchruns: bool = False
    flags: "dict[str, Flag] | None" = None


def complete(before: Sequence[str], current: str) -> Completions:
    """Find what fits a word.

    Args:
        before: the words before it, without the program.
        current: as far as it is typed.
    """
    table = read_table()
    typed = _read(before, table)
    if typed.is_torchruns:
        return Completions(by_shell="files")
    name, equals, value = current.partition("=")
    if typed.waiting is not None:
        found = _value(typed, typed.waiting, current)
    elif equals and name.startswith("--"):
        spelled = _option(typed, name)
        found = _value(typed, spelled, value) if spelled is not None else Completions()
        found = _behind(f"{name}=", found)
    elif current.startswith("-"):
        found = Completions(tuple(_options(typed, table)))
    elif not typed.verb or typed.words.verbs:
        verbs = typed.words.verbs if typed.verb else table
        named = ((verb, words.line) for verb, words in verbs.items() if verb[:1] not in ("", "-"))
        found = Completions(tuple(Candidate(verb, line) for verb, line in named))
    elif equals and typed.words.takes_keys:
        found = _behind(f"{name}=", _value_of_key(typed, name))
    else:
        found = _positional(typed, current)
    return _fitting(found, current)


def _fitting(found: Completions, current: str) -> Completions:
    fitting = {each.text: each for each in found.candidates if each.text.startswith(current)}
    return Completions(tuple(fitting.values()), found.by_shell)


def _behind(prefix: str, found: Completions) -> Completions:
    return Completions(
        tuple(Candidate(prefix + each.text, each.help) for each in found.candidates), found.by_shell
    )


def _read(before: Sequence[str], table: dict[str, VerbWords]) -> _Typed:
    """Read the words before the current one, as the program would."""
    typed = _Typed(words=table[""])
    for word in before:
        if typed.waiting is not None:
            _take(typed, typed.waiting, word)
            typed.waiting = None
        elif word == "--" and typed.verb:
            typed.is_torchruns = True
        elif word == "--batch" and not typed.verb:
            typed.verb, typed.words = ["--batch"], table["--batch"]
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            option = _option(typed, name)
            if option is None and not word.startswith("--") and len(word) > 2:
                # -tdemo: a short option with its value behind it.
                option, equals, value = _option(typed, word[:2]), "=", word[2:]
            if option is not None and equals:
                _take(typed, option, value)
            elif option is not None and _takes_next(option):
                typed.waiting = option
        elif not typed.verb:
            typed.verb, typed.words = [word], table.get(word, VerbWords())
        elif typed.words.verbs:
            typed.verb.append(word)
            typed.words = typed.words.verbs.get(word, VerbWords())
        elif "=" not in word or not typed.words.takes_keys:
            typed.names.append(word)
    return typed


def _takes_next(option: "OptionWords | Flag") -> bool:
    if isinstance(option, OptionWords):
        return option.value is not None
    return option.type != "boolean"


def _take(typed: _Typed, option: "OptionWords | Flag", value: str) -> None:
    if not isinstance(option, OptionWords):
        return
    if option.value == "CONFIG":
        typed.config, typed.flags = value, None
    elif option.value == "PROJECT":
        typed.project, typed.flags = value, None


def _option(typed: _Typed, name: str) -> "OptionWords | Flag | None":
    """Find an option by its spelling: of the verb, then a flag of the config."""
    for option in typed.words.options:
        if name in option.spellings:
            return option
    return _flags(typed).get(name)


def _flags(typed: _Typed) -> "dict[str, Flag]":
    """Read the flags that the config offers, by spelling; none where it cannot be read."""
    if typed.flags is None:
        typed.flags = {}
        if typed.config is not None and typed.words.takes_keys:
            from workbench.config.load import offered_flags

            try:
                offered = offered_flags(typed.config, project=_project(typed))
            except WorkbenchError:
                offered = ()
            typed.flags = {spelling: flag for flag in offered for spelling in flag.spellings}
    return typed.flags


def _project(typed: _Typed) -> Path | None:
    from workbench.cli.config_arguments import project_folder

    return project_folder(typed.project)


def _options(typed: _Typed, table: dict[str, VerbWords]) -> Iterator[Candidate]:
    for option in typed.words.options:
        for spelling in option.spellings:
            yield Candidate(spelling, option.help)
    for spelling, flag in _flags(typed).items():
        yield Candidate(spelling, flag.help)
    if not typed.verb:
        yield Candidate("--batch", table["--batch"].line)
        yield Candidate("--version", "show the version")


# ---- values -------------------------------------------------------------------------------------

_FILES = frozenset({"FILE", "MODEL", "PATH", "DIR"})
_FOLDERS = frozenset({"RUN", "RUN|CHECKPOINT", "SRC", "DST", "DEST"})

WITHOUT_BASES = frozenset({"train", "--batch", "estimate", "code", "data", ""})
"""Verbs whose config is one to train by; the others also look at what configs extend."""


def _value(typed: _Typed, option: "OptionWords | Flag", current: str) -> Completions:
    """Complete the value of an option or flag."""
    if not isinstance(option, OptionWords):
        return _value_of_key(typed, option.path)
    if option.choices:
        return Completions(tuple(Candidate(choice) for choice in option.choices))
    match option.value:
        case "CONFIG":
            return Completions(tuple(_configs(typed, current)), "files")
        case "PROJECT":
            return Completions(by_shell="folders")
        case "NAME" if "--template" in option.spellings:
            return Completions(tuple(_templates(typed)), "files")
        case value if value in _FILES:
            return Completions(by_shell="files")
        case _:
            return Completions()


def _configs(typed: _Typed, current: str, *, with_bases: bool | None = None) -> Iterator[Candidate]:
    """Name the configs, written as the user began: with ``configs/``, with the suffix, or bare."""
    from workbench.config.find import config_names

    if with_bases is None:
        with_bases = (typed.verb[0] if typed.verb else "") not in WITHOUT_BASES
    before = "configs/" if current.startswith("configs/") else ""
    try:
        names = [before + name for name, _ in config_names(_project(typed), with_bases=with_bases)]
    except WorkbenchError:
        return
    for name in names:
        is_past_the_name = current.startswith(f"{name}.")
        yield Candidate(f"{name}.yaml" if is_past_the_name else name)


def _positional(typed: _Typed, current: str) -> Completions:
    """Complete a word that is no option: a name the verb takes, or the beginning of a key."""
    names = typed.words.names
    wanted = names[min(len(typed.names), len(names) - 1)] if names else None
    if typed.words.takes_keys and (wanted is None or len(typed.names) >= len(names)):
        if typed.config is None and not current:
            return Completions((Candidate("-t", "the config"),))
        return Completions(tuple(_keys(typed, current)))
    if wanted is None:
        return Completions()
    if wanted.choices:
        return Completions(tuple(Candidate(choice) for choice in wanted.choices))
    match wanted.value:
        case "CONFIG_OR_RUN":
            found = [*_configs(typed, current, with_bases=True), *_jobs()]
            return Completions(tuple(found), "files")
        case "JOB":
            return Completions(tuple(_jobs()), "folders")
        case value if value in _FOLDERS:
            return Completions(by_shell="folders")
        case "FILE":
            found = [*_configs(typed, current, with_bases=True), *_templates(typed)]
            return Completions(tuple(found), "files")
        case _:
            return Completions()


def _templates(typed: _Typed) -> Iterator[Candidate]:
    from workbench.config.find import template_names

    for name in sorted(template_names(_project(typed))):
        yield Candidate(name, "chat template")


def _jobs() -> Iterator[Candidate]:
    from workbench.runs.registry import latest_entries

    try:
        entries = latest_entries()
    except WorkbenchError:
        return
    for entry in entries:
        yield Candidate(entry.job, entry.run)


def _keys(typed: _Typed, current: str) -> Iterator[Candidate]:
    """Name the sections, or the keys of one once its dot is typed."""
    from workbench.config.schema.keys import all_keys, key_at

    keys = list(all_keys())
    if current.startswith("data."):
        keys += [key for key in _keys_of_config(typed) if key not in keys]
    if "." not in current:
        sections = dict.fromkeys(key.partition(".")[0] for key in keys if "." in key)
        yield from (Candidate(f"{section}.") for section in sections)
    for key in keys:
        if ("." in key) == ("." in current):
            schema_key = key_at(key.split("."))
            yield Candidate(f"{key}=", schema_key.description if schema_key else "")


def _keys_of_config(typed: _Typed) -> Iterable[str]:
    """Name the keys of the config itself: those of its data sets are not in the schema."""
    if typed.config is None:
        return ()
    from workbench.config.load import resolve

    try:
        return resolve(typed.config, project=_project(typed)).leaves
    except WorkbenchError:
        return ()


def _value_of_key(typed: _Typed, key: str) -> Completions:
    """Name the words that a key takes; where it takes a path, the shell completes it."""
    from workbench.config.flags import is_data_path, is_path
    from workbench.config.schema.keys import allows_null, choices_of, key_at, kind_of

    schema_key = key_at(key.split("."))
    if schema_key is None:
        return Completions()
    annotation = schema_key.annotation
    words = list(choices_of(annotation))
    if kind_of(annotation) == "boolean":
        words += ["true", "false"]
    found = [Candidate(word) for word in words]
    if key == "data.chat_template":
        found = [Candidate("auto", "the model's own"), *_templates(typed)]
    takes_path = is_path(key) or is_data_path(key) or key == "data.chat_template"
    if allows_null(annotation) and not takes_path:
        found.append(Candidate("null"))
    return Completions(tuple(found), "files" if takes_path else "none")
