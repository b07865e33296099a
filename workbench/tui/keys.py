"""THE table of keys: dispatch, footer, help and palette come from it; no other module names a key.

A row says where its keys work (``scope``), what they do, what they may cost (``danger``) and when
they are refused (``refusal``). A widget or screen takes the rows of its scopes as bindings; the
key press ends in ``do_<id>`` of the nearest node from the focus upwards. Invariants, kept by
tests: ids are unique, no key has two meanings in scopes that are alive together, no key is one
that terminals or multiplexers change or swallow.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding, BindingType

from workbench.control.states import END_STATES, JobState, refusal

Scope = Literal[
    "global",
    "list",
    "pane",
    "filterable",
    "field",
    "dialog",
    "configs",
    "tree",
    "launch",
    "flags",
    "jobs",
    "job",
    "chart",
    "stop_menu",
    "abort",
    "confirm",
    "chat",
    "models",
    "conversation",
    "transcript",
    "checkpoints",
    "form",
    "choice",
    "work",
    "delete",
    "compare",
    "settings",
]


@dataclass(frozen=True)
class KeyState:
    """What the keys of a screen depend on.

    Attributes:
        readonly: the program was started to look, not to act.
        job: name of the selected job, None where none is selected.
        job_state: its state, as last said.
        link: why the job cannot be reached, None while its supervisor answers.
        pending: names of commands that are accepted and not done.
        has_checkpoint: a complete checkpoint can be started from or talked to.
        checkpoint: path of the selected checkpoint as seen from the project, None without one.
        refused: why the screen itself refuses a row, by row id.
    """

    readonly: bool = False
    job: str | None = None
    job_state: JobState | None = None
    link: str | None = None
    pending: frozenset[str] = frozenset()
    has_checkpoint: bool = False
    checkpoint: str | None = None
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class KeyRow:
    """One thing a key does.

    Attributes:
        id: name of the action; ``do_<id>`` carries it out.
        keys: Textual's names of the keys, the first is the one that is shown.
        scope: where the keys work.
        label: one or two words for the footer.
        help: one sentence for help and palette.
        danger: 0 reads · 1 undoable · 2 costs work, asks · 3 destroys, the number is typed.
        command: the command line that does the same; JOB, CONFIG and CHECKPOINT stand for the
            selected one.
        footer: rank in the footer, 1 is dropped last; 0 keeps it out.
        acts: it touches jobs or files, so ``--readonly`` refuses it.
        needs: refuses the row in a state, with the reason.
    """

    id: str
    keys: tuple[str, ...]
    scope: Scope
    label: str
    help: str
    danger: Literal[0, 1, 2, 3] = 0
    command: str = ""
    footer: int = 0
    acts: bool = False
    needs: Callable[[KeyState], str | None] | None = None

    def refusal(self, state: KeyState) -> str | None:
        """Say why the row does nothing in ``state``, or None where it works."""
        if self.acts and state.readonly:
            return "started with --readonly"
        for row_id, reason in state.refused:
            if row_id == self.id:
                return reason
        return self.needs(state) if self.needs else None

    @property
    def shown(self) -> str:
        """The key as the footer writes it, "" for a row that only palette and help offer."""
        return shown(self.keys[0]) if self.keys else ""

    @property
    def shown_while_typing(self) -> str:
        """The first key that a text field leaves alone, "" where there is none."""
        return next((shown(key) for key in self.keys if not _types(key)), "")


_ARROWS = ("up", "down", "left", "right")


def _types(key: str) -> bool:
    """Whether a key puts a character into a text field."""
    return len(key) == 1 or (key in _SHOWN and len(_SHOWN[key]) == 1 and key not in _ARROWS)


def _command(name: str) -> Callable[[KeyState], str | None]:
    def needs(state: KeyState) -> str | None:
        if state.job is None or state.job_state is None:
            return "no job is selected"
        refused = refusal(name, state.job_state)
        if refused:
            return refused[1]
        return state.link

    return needs


def _pause(state: KeyState) -> str | None:
    return _command("resume" if state.job_state == "paused" else "pause")(state)


def _stop(state: KeyState) -> str | None:
    # A job that is stopping can still be aborted, so its menu opens.
    return _command("abort")(state)


def _start_again(state: KeyState) -> str | None:
    if state.job is None:
        return "no job is selected"
    if state.job_state not in END_STATES:
        return f"{state.job} still runs"
    return None


TABLE: tuple[KeyRow, ...] = (
    # ---- a job, wherever one is selected -----------------------------------------------
    KeyRow(
        "save", ("S",), "job", "Save", "Save a checkpoint at the next step boundary.",
        1, "workbench control save JOB", 1, acts=True, needs=_command("save"),
    ),
    KeyRow(
        "stop", ("X",), "job", "Stop…", "Open the stop menu: save and stop, stop, pause, abort.",
        2, "workbench control stop JOB", 1, acts=True, needs=_stop,
    ),
    KeyRow(
        "pause", ("P",), "job", "Pause", "Hold the job at the next step boundary, or let it go on.",
        1, "workbench control pause JOB", 2, acts=True, needs=_pause,
    ),
    KeyRow(
        "evaluate", ("V",), "job", "Evaluate", "Evaluate on the validation split now.",
        1, "workbench control evaluate JOB", 4, acts=True, needs=_command("evaluate"),
    ),
    KeyRow(
        "start_again", ("R",), "job", "Start again…",
        "Start a new attempt from the newest complete checkpoint, through the preview.",
        1, "workbench train -t RUN/config.yaml training.output_dir=RUN", 2,
        acts=True, needs=_start_again,
    ),
    # ---- screens -----------------------------------------------------------------------
    KeyRow(
        "launch", ("L",), "configs", "Launch…",
        "Open the launch preview of the selected config; nothing starts before enter there.",
        1, "workbench train -t CONFIG", 1, acts=True,
    ),
    KeyRow(
        "preview", ("p",), "configs", "Preview",
        "Open the launch preview to look only: checks, flags, plan, exact command.",
        0, "workbench train -t CONFIG --dry-run", 2,
    ),
    KeyRow(
        "edit", ("e",), "configs", "Edit",
        "Open in the editor: the config's file, or the marked ones, or the line that sets the key "
        "under the cursor; then read all configs again.",
        1, "workbench edit FILE", 3, acts=True,
    ),
    KeyRow(
        "mark", ("space",), "tree", "Mark",
        "Mark the file under the cursor, or take its mark off; marked files are edited together.",
        0, "", 3,
    ),
    KeyRow(
        "reread", ("u",), "configs", "Re-read", "Read all config files again.", 0, "workbench ls", 4
    ),
    KeyRow("open_row", ("enter",), "list", "Open", "Open the row under the cursor."),
    KeyRow(
        "start_run", ("enter",), "launch", "Launch",
        "Make the run folder and start the job; warnings are asked about first.",
        1, "workbench train -t CONFIG --detach", 1, acts=True,
    ),
    KeyRow(
        "edit_flags", ("i",), "launch", "Flags",
        "Set flags and keys for this launch: --flag value or key=value, separated by spaces.",
        0, "workbench train -t CONFIG --flag VALUE key=value", 2,
    ),
    KeyRow(
        "copy_command", ("y",), "launch", "Copy command",
        "Copy the exact command line to the clipboard.", 0, "", 2,
    ),
    KeyRow("check_again", ("r",), "launch", "Check again", "Run every check again.", 0, "", 3),
    KeyRow(
        "accept_flags", ("enter",), "flags", "Apply", "Take what was typed and check again.",
        0, "", 1,
    ),
    KeyRow(
        "leave_flags", ("escape",), "flags", "Leave", "Leave the flags as they were.", 0, "", 1
    ),
    KeyRow(
        "copy_job", ("y",), "jobs", "Copy path", "Copy the path of the run folder.", 0,
        "workbench control status JOB", 5,
    ),
    KeyRow(
        "longer_tail", ("minus",), "chart", "Longer", "Show more steps of the charts.", 0, "", 3
    ),
    KeyRow(
        "shorter_tail", ("plus", "equals_sign"), "chart", "Shorter",
        "Show only the newest steps of the charts; new ones keep coming in.", 0, "", 3,
    ),
    KeyRow(
        "whole_run", ("0",), "chart", "All", "Show all steps of the run in the charts.", 0, "", 5
    ),
    # ---- stop menu and confirmations ---------------------------------------------------
    KeyRow(
        "stop_save", ("s",), "stop_menu", "Save, then stop",
        "Save at the next step boundary, then end the job.",
        2, "workbench control stop JOB", 1, acts=True, needs=_command("stop"),
    ),
    KeyRow(
        "stop_discard", ("n",), "stop_menu", "Stop without saving",
        "End the job at the next step boundary; steps since the last checkpoint are lost.",
        2, "workbench control stop JOB --no-save", 1, acts=True, needs=_command("stop"),
    ),
    KeyRow(
        "stop_pause", ("p",), "stop_menu", "Pause instead",
        "Hold at the next step boundary; memory stays taken.",
        1, "workbench control pause JOB", 1, acts=True, needs=_command("pause"),
    ),
    KeyRow(
        "stop_abort", ("a",), "stop_menu", "Abort now…",
        "End every process of the job at once; the job's number has to be typed.",
        3, "workbench control abort JOB", 1, acts=True, needs=_command("abort"),
    ),
    KeyRow(
        "abort_now", ("enter",), "abort", "Abort", "Abort, once the job's number is typed.",
        3, "workbench control abort JOB", 1, acts=True,
    ),
    KeyRow("confirm_yes", ("y",), "confirm", "Yes", "Go on in spite of what is listed.", 2, "", 1),
    KeyRow("confirm_no", ("n",), "confirm", "No", "Go back; nothing happens.", 0, "", 1),
    KeyRow("close", ("escape",), "dialog", "Close", "Close this and change nothing.", 0, "", 1),
    # ---- chat --------------------------------------------------------------------------
    KeyRow(
        "send", ("enter",), "chat", "Send", "Send the message.",
        0, "workbench chat -m CHECKPOINT --message TEXT", 1,
    ),
    KeyRow("newline", ("ctrl+j", "shift+enter"), "chat", "New line", "Begin a new line.", 0, "", 5),
    KeyRow(
        "regenerate", ("f5",), "conversation", "Regenerate",
        "Answer the last message again: with a new seed, or with the same where it is locked.",
        0, "", 1,
    ),
    KeyRow(
        "compare", ("f6",), "conversation", "Compare…",
        "Tell this model and another one the same, side by side; then back to one.", 0, "", 1,
    ),
    KeyRow(
        "chat_settings", ("f7",), "conversation", "Settings",
        "Set how answers are made: temperature, what is drawn among, longest answer, seed, stops.",
        0, "workbench chat -m CHECKPOINT --temperature T --top-p P --max-tokens N", 1,
    ),
    KeyRow(
        "lock_seed", ("f8",), "conversation", "Lock seed",
        "Keep the seed of the last answer for every next one, or draw seeds anew again.",
        0, "workbench chat -m CHECKPOINT --seed N --message TEXT", 3,
    ),
    KeyRow(
        "stop_reply", ("escape",), "transcript", "Stop",
        "Stop the reply; what came so far stays. Else leave the field, then go to the models.",
        0, "", 1,
    ),
    KeyRow("clear_chat", (), "transcript", "New chat", "Begin a new conversation."),
    KeyRow(
        "set_system", ("f3",), "transcript", "System",
        "Write the instruction before the conversation; send it to set it.",
        0, "workbench chat -m CHECKPOINT --system TEXT --message TEXT",
    ),
    KeyRow(
        "edit_message", ("e",), "transcript", "Edit",
        "Say the last message otherwise; what was said before stays as a branch.",
    ),
    KeyRow(
        "drop_exchange", ("delete",), "transcript", "Drop",
        "Forget the last message and its answers.",
    ),
    KeyRow(
        "next_version", ("right_curly_bracket",), "transcript", "Next version",
        "Show the next version of a message that was edited.",
    ),
    KeyRow(
        "previous_version", ("left_curly_bracket",), "transcript", "Previous version",
        "Show the version before this one.",
    ),
    KeyRow(
        "save_chat", (), "transcript", "Save chat",
        "Save the conversation to output/chat.jsonl, where a data set can name it.",
        1, "workbench chat -m CHECKPOINT --interactive", acts=True,
    ),
    KeyRow(
        "next_answer", ("right_square_bracket",), "transcript", "Next answer",
        "Show the next of several answers to the last message.", 0, "", 4,
    ),
    KeyRow(
        "previous_answer", ("left_square_bracket",), "transcript", "Previous answer",
        "Show the answer before this one.", 0, "", 4,
    ),
    KeyRow(
        "stop_side", ("escape",), "compare", "Stop",
        "Stop one side, pressed again the other; else leave the field, then go back to one model.",
        0, "", 1,
    ),
    KeyRow(
        "swap_sides", ("f9",), "compare", "Swap sides",
        "Put the left model to the right and the right one to the left.", 0, "", 4,
    ),
    KeyRow(
        "other_side", ("right_square_bracket", "left_square_bracket"), "compare", "Other side",
        "Go to the other side; where one is shown at a time, show it.", 0, "", 1,
    ),
    KeyRow(
        "vote_left", ("less_than_sign",), "compare", "A is better",
        "Note in output/votes.jsonl that the left answer is the better one.", 1, "", 5,
    ),
    KeyRow(
        "vote_right", ("greater_than_sign",), "compare", "B is better",
        "Note in output/votes.jsonl that the right answer is the better one.", 1, "", 5,
    ),
    KeyRow(
        "vote_tie", ("equals_sign",), "compare", "Tie",
        "Note in output/votes.jsonl that neither answer is better.", 1, "", 5,
    ),
    KeyRow(
        "leave_settings", ("escape", "f7"), "settings", "Leave",
        "Go back to the conversation; what was typed holds from the next answer on.", 0, "", 1,
    ),
    KeyRow(
        "next_setting", ("enter", "down"), "settings", "Next", "Go to the next setting.", 0, "", 2
    ),
    KeyRow(
        "previous_setting", ("up",), "settings", "Previous", "Go to the setting before.", 0, "", 3
    ),
    KeyRow(
        "load_model", ("enter",), "models", "Load", "Start a server for this checkpoint.",
        0, "workbench serve -m CHECKPOINT", 1,
    ),
    # ---- checkpoints -------------------------------------------------------------------
    KeyRow(
        "talk_to", ("enter",), "checkpoints", "Chat",
        "Load it and talk to it. On the name of a run: fold its checkpoints, or show them.",
        0, "workbench chat -m CHECKPOINT --interactive", 1,
    ),
    KeyRow(
        "verify_hashes", ("v",), "checkpoints", "Verify",
        "Read every byte and compare it with the hashes of when it was saved; again stops it. "
        "On a run: all of its checkpoints.",
        0, "workbench checkpoints verify CHECKPOINT", 2,
    ),
    KeyRow(
        "finalize", ("F",), "checkpoints", "Finalize…",
        "Publish it as a model for others, also as GGUF: compared, and asked for one reply.",
        1, "workbench finalize CHECKPOINT DEST", 1, acts=True,
    ),
    KeyRow(
        "convert", ("x",), "checkpoints", "Convert…",
        "Make another model folder of it: dtype, longest document, chat template.",
        1, "workbench convert CHECKPOINT DEST", 2, acts=True,
    ),
    KeyRow(
        "start_from", ("R",), "checkpoints", "Start again…",
        "Go on training from it, through the preview: its run from the newest one, else a new run.",
        1, "workbench train -t RUN/config.yaml checkpoints.resume=CHECKPOINT", 1, acts=True,
    ),
    KeyRow(
        "delete_checkpoint", ("D",), "checkpoints", "Delete…",
        "List its files and bytes; they go once its step is typed. No model is ever touched.",
        3, "workbench checkpoints delete CHECKPOINT", 1, acts=True,
    ),
    KeyRow(
        "copy_checkpoint", ("y",), "checkpoints", "Copy path", "Copy its path.", 0,
        "workbench checkpoints list RUN", 3,
    ),
    KeyRow("fold", ("left",), "checkpoints", "Fold", "Hide the checkpoints of this run."),
    KeyRow("unfold", ("right",), "checkpoints", "Unfold", "Show the checkpoints of this run."),
    KeyRow(
        "delete_now", ("enter",), "delete", "Delete", "Delete, once the step is typed.",
        3, "workbench checkpoints delete CHECKPOINT", 1, acts=True,
    ),
    KeyRow("next_field", ("tab", "down"), "form", "Next", "Move to the next field."),
    KeyRow("previous_field", ("shift+tab", "up"), "form", "Back", "Move to the field before."),
    KeyRow("begin", ("enter",), "form", "Begin", "Begin with what is chosen."),
    KeyRow("next_choice", ("right", "space"), "choice", "Next choice", "Choose the next."),
    KeyRow("previous_choice", ("left",), "choice", "Choice before", "Choose the one before."),
    KeyRow(
        "copy_work", ("y",), "work", "Copy command", "Copy the command line that does the same."
    ),
    KeyRow(
        "older_models", ("space",), "models", "Older",
        "Show the run's older checkpoints and the model it began with, or hide them.", 0, "", 2,
    ),
    KeyRow(
        "leave_models", ("escape",), "models", "Back",
        "Stop loading; else go back to the conversation.", 0, "", 1,
    ),
    # ---- everywhere --------------------------------------------------------------------
    KeyRow(
        "filter", ("slash",), "filterable", "Filter", "Filter this list; enter keeps it.", 0, "", 3
    ),
    KeyRow("zoom", ("z",), "pane", "Zoom", "Give the pane the whole screen, and back.", 0, "", 3),
    KeyRow(
        "next_tab", ("right_square_bracket",), "pane", "Next tab", "Show the next tab or pane."
    ),
    KeyRow(
        "previous_tab", ("left_square_bracket",), "pane", "Previous tab",
        "Show the tab or pane before this one.",
    ),
    KeyRow("keep_filter", ("enter", "down"), "field", "Keep", "Keep the filter.", 0, "", 1),
    KeyRow("leave_field", ("escape",), "field", "Clear", "Clear the field and leave it.", 0, "", 1),
    KeyRow("move_down", ("j", "down"), "list", "Down", "Move one row down."),
    KeyRow("move_up", ("k", "up"), "list", "Up", "Move one row up."),
    KeyRow("move_first", ("g", "home"), "list", "First", "Move to the first row."),
    KeyRow("move_last", ("G", "end"), "list", "Last", "Move to the last row."),
    KeyRow("page_down", ("pagedown",), "list", "Page down", "Move one page down."),
    KeyRow("page_up", ("pageup",), "list", "Page up", "Move one page up."),
    KeyRow(
        "show_configs", ("1",), "global", "Configs", "Show the configs.", 0, "workbench ls"
    ),
    KeyRow(
        "show_jobs", ("2",), "global", "Jobs", "Show the jobs.", 0, "workbench control list"
    ),
    KeyRow("show_chat", ("5",), "global", "Chat", "Talk to a checkpoint.", 0, "workbench chat"),
    KeyRow(
        "show_checkpoints", ("6",), "global", "Checkpoints", "Show the checkpoints of all runs.",
        0, "workbench checkpoints list RUN",
    ),
    KeyRow("next_screen", ("ctrl+pagedown",), "global", "Next screen", "Show the next screen."),
    KeyRow(
        "previous_screen", ("ctrl+pageup",), "global", "Previous screen",
        "Show the screen before this one.",
    ),
    KeyRow("focus_next", ("tab",), "global", "Next pane", "Move to the next pane."),
    KeyRow("focus_previous", ("shift+tab",), "global", "Previous pane", "Move to the pane before."),
    KeyRow("messages", ("exclamation_mark",), "global", "Messages", "Show past messages."),
    KeyRow(
        "help", ("question_mark", "f1"), "global", "Help",
        "Show what every key does here; a row can be run.", 0, "workbench --help", 1,
    ),
    KeyRow(
        "palette", ("colon", "ctrl+p"), "global", "Command", "Find any action by name.", 0, "", 2
    ),
    KeyRow("back", ("escape",), "global", "Back", "Leave zoom, clear the filter, go back."),
    KeyRow(
        "interrupt", ("ctrl+c",), "global", "Copy or stop",
        "Copy the selection, else stop the reply, else say how to detach.",
    ),
    KeyRow(
        "suspend", ("ctrl+z",), "global", "Suspend",
        "Go back to the shell for a while; fg there comes back here.",
    ),
    KeyRow(
        "detach", ("q",), "global", "Detach",
        "Leave the program; every job keeps running.", 0, "", 1,
    ),
)  # fmt: skip

BY_ID: dict[str, KeyRow] = {row.id: row for row in TABLE}

ON_A_CONFIG: tuple[tuple[str, str], ...] = (
    ("workbench show -t CONFIG", "every key, and where each value comes from"),
    ("workbench tree -t CONFIG --format svg -e", "which file extends which, as a picture"),
    ("workbench diff CONFIG OTHER", "in which keys it differs from another config, or a run"),
    ("workbench new -t CONFIG NAME", "a config of your own that extends it"),
    ("workbench code -t CONFIG", "the config as a Python program"),
    ("workbench estimate -t CONFIG", "what it takes, whether it fits, what would make it fit"),
    ("workbench data check -t CONFIG", "every odd row of its data"),
    ("workbench data prepare -t CONFIG", "tokenize its data now, so that a start need not"),
    ("workbench data preview -t CONFIG", "the very batches, with what is trained marked"),
    ("workbench train -t CONFIG --help", "the flags it offers"),
)
"""Commands for the selected config that have no key; the palette offers to copy them."""

# Keys that a terminal, tmux or a shell takes for itself or turns into another key (tried in tmux
# without extended keys): never bound, also not by a widget of Textual's that we use.
BANNED: frozenset[str] = frozenset(
    {
        "ctrl+h", "ctrl+i", "ctrl+m", "ctrl+left_square_bracket", "alt+enter", "ctrl+space",
        "ctrl+at", "ctrl+slash", "ctrl+underscore", "ctrl+enter", "ctrl+b", "ctrl+a", "ctrl+s",
        "ctrl+q", "f10", "f11",
    }
    | {f"alt+{digit}" for digit in "123456789"}
)  # fmt: skip

# The function keys are ours alone, also where a text field of Textual's has a use for them.
FUNCTION_KEYS: frozenset[str] = frozenset(f"f{number}" for number in range(1, 10))

_SHOWN = {
    "escape": "esc",
    "question_mark": "?",
    "colon": ":",
    "slash": "/",
    "exclamation_mark": "!",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left_curly_bracket": "{",
    "right_curly_bracket": "}",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "pagedown": "PgDn",
    "pageup": "PgUp",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
}


def shown(key: str) -> str:
    """Write a key as people know it: ``question_mark`` is ?, ``ctrl+pagedown`` ctrl+PgDn."""
    *modifiers, last = key.split("+")
    name = _SHOWN.get(last, last.upper() if last[0] == "f" and last[1:].isdigit() else last)
    return "+".join([*modifiers, name])


_DANGERS = ("reads", "undoable", "costs work, asks", "destroys, the number is typed")


def page() -> str:
    """Write the table as a page of Markdown, by scope: docs/keys.md."""
    lines = [
        "# Keys",
        "",
        "Made from the table in `workbench/tui/keys.py`; `?` in the program shows those that work",
        "where you are. Lower case reads, upper case acts on a job or on files.",
    ]
    for scope in dict.fromkeys(row.scope for row in TABLE):
        lines += ["", f"## {scope.replace('_', ' ')}", "", "| key | does | danger | command |"]
        lines.append("| --- | --- | --- | --- |")
        for row in TABLE:
            if row.scope == scope:
                names = " ".join(f"`{shown(key)}`" for key in row.keys) or f"palette: {row.label}"
                command = f"`{row.command}`" if row.command else ""
                lines.append(f"| {names} | {row.help} | {_DANGERS[row.danger]} | {command} |")
    lines += ["", "## commands on a config", "", "The palette copies them, CONFIG filled in.", ""]
    lines += ["| command | tells |", "| --- | --- |"]
    lines += [f"| `{command}` | {tells} |" for command, tells in ON_A_CONFIG]
    return "\n".join(lines) + "\n"


def hint(row_id: str) -> str:
    """Give the key of a row as texts on the screens name it."""
    return BY_ID[row_id].shown


def rows(scopes: Iterable[Scope]) -> list[KeyRow]:
    """Give the rows of ``scopes``, in the order of the table."""
    wanted = set(scopes)
    return [row for row in TABLE if row.scope in wanted]


def alive(scopes: Iterable[Scope]) -> list[KeyRow]:
    """Give the rows of ``scopes`` that a key still reaches, in the order of the table.

    Args:
        scopes: from the focus outwards; of two rows with one key the inner one counts.
    """
    taken: set[str] = set()
    found: set[str] = set()
    for scope in scopes:
        inside = [row for row in TABLE if row.scope == scope]
        found |= {row.id for row in inside if not row.keys or row.keys[0] not in taken}
        taken |= {key for row in inside for key in row.keys}
    return [row for row in TABLE if row.id in found]


def bindings(*scopes: Scope) -> list[BindingType]:
    """Make Textual's bindings for ``scopes``; every one ends in the app's dispatch."""
    return [
        Binding(",".join(row.keys), f"app.press('{row.id}')", row.label, show=False, id=row.id)
        for row in rows(scopes)
        if row.keys
    ]


def without_banned(inherited: Iterable[object]) -> list[BindingType]:
    """Give a widget's own bindings less the banned keys, for text fields of Textual's."""
    kept: list[BindingType] = []
    for binding in inherited:
        assert isinstance(binding, Binding), binding
        keys = [key for key in binding.key.split(",") if key not in BANNED | FUNCTION_KEYS]
        if keys:
            kept.append(binding.with_key(",".join(keys)))
    return kept
