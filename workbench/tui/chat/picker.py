"""The pane in which a model is picked: what every run offers, and how far loading is."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from workbench.control.states import END_STATES
from workbench.tui import keys, words
from workbench.tui.chat.model_choices import ModelChoices, RunModels
from workbench.tui.program import Program
from workbench.tui.widgets.model_list import ModelList, ModelRow

if TYPE_CHECKING:
    from workbench.runs.catalog import RunSummary


class Picker(Vertical):
    """Models to choose from."""

    DEFAULT_CSS = """
    Picker ModelList { height: 1fr; }
    Picker #stage { height: 1; padding: 0 1; }
    """

    class Changed(Message):
        """What can be picked, or what the cursor is on, has changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="pane")
        self._choices = ModelChoices()
        self._offered: tuple[RunModels, ...] = ()
        self._open: set[Path] = set()
        self._wanted: Path | None = None
        self._beside: ModelRow | None = None
        self._title = "Talk to"

    def compose(self) -> ComposeResult:
        """Lay out the list, and a line for what is being loaded."""
        yield ModelList(id="models")
        yield Static(id="stage")

    @property
    def current(self) -> ModelRow | None:
        """The model under the cursor."""
        return self.query_one("#models", ModelList).current

    def offer(self, title: str, *, beside: ModelRow | None = None) -> None:
        """Say what a model is picked for.

        Args:
            title: said above the list.
            beside: a model that has been picked already: all that its run offers is shown, and the
                cursor goes to another one.
        """
        self._title = title
        self._beside = beside
        if beside is not None and beside.run_path is not None:
            self._open.add(beside.run_path)
        self.look()

    def choose(self, path: Path) -> None:
        """Put the cursor on a model of this run, or on this checkpoint, once it is known."""
        self._wanted = path
        self._choose_wanted()

    def say_stage(self, text: str) -> None:
        """Say how far loading is, "" when nothing is being loaded."""
        mark = Content.assemble(("◌ ", "$busy"), text) if text else Content("")
        self.query_one("#stage", Static).update(mark)

    def row_of(self, path: Path, run: str) -> ModelRow:
        """Give the row of a checkpoint or model, also of one that has not been read yet."""
        rows = self.query_one("#models", ModelList).rows
        unknown = ModelRow(path, run, path.name, "", run_path=path.parent.parent)
        return next((row for row in rows if row.path == path), unknown)

    # ---- reading -----------------------------------------------------------------------

    def look(self) -> None:
        """Read what can be picked, in a thread."""
        if self.is_mounted:
            self._read()

    @work(thread=True, exclusive=True, group="models", exit_on_error=False)
    def _read(self) -> None:
        runs = self._workbench.index.runs
        if self._workbench.index.read_at is None:
            return  # nobody has looked for runs yet
        offered = self._choices.read(runs, frozenset(self._open))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            self.app.call_later(self._take, offered)

    def _take(self, offered: tuple[RunModels, ...]) -> None:
        if not (self.app.is_running and self.is_attached):
            return
        self._offered = offered
        self._fill()
        self._leave_what_is_picked()

    def _fill(self) -> None:
        now = self._workbench.surroundings.clock()
        models = self.query_one("#models", ModelList)
        models.empty_text = Content(
            f"No checkpoint yet: nothing has been saved. {keys.hint('show_jobs')} shows the jobs; "
            f"{keys.hint('save')} there saves one now."
        )
        was_empty = not models.rows
        models.set_rows([row for each in self._offered for row in self._rows(each, now)])
        num = sum(len(each.checkpoints) for each in self._offered)
        self.border_title = Content(f"{self._title} · {words.number_of(num, 'checkpoint')}")
        if was_empty and self._wanted is None and self._workbench.remembered.job:
            self._wanted = Path(self._workbench.remembered.job)
        self._choose_wanted()
        self.post_message(self.Changed())

    def _rows(self, offered: RunModels, now: float) -> list[ModelRow]:
        run = offered.run
        is_open = run.path in self._open
        older = [
            ModelRow(
                each.path,
                run.name,
                each.path.name,
                f"{words.brief(now - written)} ago{_mark_of_best(each.step, offered.best)}",
                is_older=True,
                run_path=run.path,
            )
            for each, written in offered.checkpoints[1:]
        ]
        if offered.base is not None:
            name = f"base {words.last_parts(str(offered.base))}"
            said = "what the run began with"
            older.append(
                ModelRow(offered.base, run.name, name, said, is_older=True, run_path=run.path)
            )
        newest, written = offered.checkpoints[0]
        said = _said_of(run.summary, now) if run.summary else f"{words.brief(now - written)} ago"
        first = ModelRow(
            newest.path,
            run.name,
            newest.path.name,
            said + _mark_of_best(newest.step, offered.best if len(older) else None),
            num_older=len(older),
            is_open=is_open,
            run_path=run.path,
        )
        return [first, *older] if is_open else [first]

    def _choose_wanted(self) -> None:
        models = self.query_one("#models", ModelList)
        for row in models.rows:
            if self._wanted is not None and self._wanted in (row.path, row.run_path):
                models.choose(row.path)
                self._wanted = None
                return

    def _leave_what_is_picked(self) -> None:
        """Put the cursor beside the model that has been picked already, once."""
        beside, self._beside = self._beside, None
        if beside is None or self.current is None or self.current.path != beside.path:
            return
        models = self.query_one("#models", ModelList)
        others = [row for row in models.rows if row.path != beside.path]
        of_its_run = [row for row in others if row.run_path == beside.run_path]
        for row in (of_its_run or others)[:1]:
            models.choose(row.path)

    def do_older_models(self) -> None:
        """Show all that the run under the cursor offers, or its newest checkpoint alone."""
        row = self.current
        if row is None or row.run_path is None:
            return
        self._open ^= {row.run_path}
        if row.run_path not in self._open:
            self._wanted = row.run_path
        self._fill()
        self.look()

    @property
    def _workbench(self) -> Program:
        return cast(Program, self.app)


def _mark_of_best(step: int, best: int | None) -> str:
    return " · best" if step == best else ""


def _said_of(summary: "RunSummary", now: float) -> str:
    """Say where the run of a checkpoint stands: the loss is the run's newest, with its step."""
    state: str = summary.state or "never started"
    if summary.state in END_STATES:
        state += f" {words.brief(max(now - summary.since, 0))} ago"
    if summary.loss is None:
        return state
    return f"{state} · loss {words.loss(summary.loss)} at step {summary.step}"
