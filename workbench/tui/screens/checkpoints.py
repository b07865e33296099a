"""Checkpoints: all of all runs and the models they come from; pick, check, publish, delete.

What is shown is read by a thread from the folders themselves. Invariants: no key acts on what is
not complete, and each says why; nothing but a checkpoint of a run that no process is at work on is
ever deleted, after its step was typed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.worker import get_current_worker

from workbench.errors import WorkbenchError
from workbench.tui import checkpoint_lines as lines
from workbench.tui import checkpoint_refusals as refusals
from workbench.tui import keys, words
from workbench.tui.checkpoint_filter import Filterable, FilterError, Term, parse
from workbench.tui.checkpoint_index import CheckpointIndex, Holdings, ModelFacts, RunCheckpoints
from workbench.tui.job_events import JobsChanged, RunsListed
from workbench.tui.keys import KeyRow, KeyState
from workbench.tui.screens.frame import Section, WorkbenchScreen
from workbench.tui.verifying import Verification, Verifications
from workbench.tui.widgets.checkpoint_list import CheckpointList, CheckpointRow, ColumnNames
from workbench.tui.widgets.filter_field import FilterField
from workbench.tui.widgets.job_detail import JobDetail
from workbench.tui.widgets.line_list import LineList

if TYPE_CHECKING:
    from workbench.runs.checkpoint_facts import CheckpointFacts
    from workbench.runs.discard import DiscardPlan

_KEPT_MODELS = 20


class CheckpointsScreen(WorkbenchScreen):
    """The list, and what is known of the row under the cursor."""

    CSS_PATH = "checkpoints.tcss"
    SCOPES = ("checkpoints",)
    BINDINGS = keys.bindings("checkpoints", "pane", "filterable")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-broad")]  # noqa: RUF012
    SECTIONS = (
        Section("checkpoint-pane", "Checkpoints"),
        Section("checkpoint-detail", "Details", always=True),
    )

    def __init__(self) -> None:
        super().__init__()
        self._holdings: Holdings | None = None
        self._index: CheckpointIndex | None = None
        self._is_reading = False
        self._reads_again = False
        self._folded: set[Path] = set()
        self._filter: Term | None = None
        self._verifications = Verifications(self._now)

    def compose_body(self) -> ComposeResult:
        """Lay out the list and the details."""
        checkpoints = CheckpointList(id="checkpoint-list")
        with Container(id="checkpoints-body"):
            with Vertical(id="checkpoint-pane", classes="pane"):
                yield FilterField(id="checkpoint-filter")
                yield ColumnNames(checkpoints, id="checkpoint-names")
                yield checkpoints
            yield JobDetail(id="checkpoint-detail", classes="pane")

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one("#checkpoint-list").focus()
        self.show_panes()
        self._fill()
        self._begin_to_read()

    def _now(self) -> float:
        return self.workbench.surroundings.clock()

    # ---- reading -----------------------------------------------------------------------

    @on(RunsListed)
    def _runs_listed(self) -> None:
        self._begin_to_read()

    @on(JobsChanged)
    def _jobs_changed(self, event: JobsChanged) -> None:
        if any("events" in parts or "state" in parts for parts in event.changed.values()):
            self._begin_to_read()

    def came_back(self) -> None:
        """Catch up with what was saved while another screen was shown."""
        self._begin_to_read()

    def _begin_to_read(self) -> None:
        if not self.is_mounted:
            return
        if self._is_reading:
            self._reads_again = True
            return
        self._is_reading = True
        self.read_checkpoints()

    @work(thread=True, group="checkpoints", exit_on_error=False)
    def read_checkpoints(self) -> None:
        """Read the folders of all runs, off the loop."""
        if self._index is None:
            self._index = CheckpointIndex(self.workbench.surroundings)
        made = [Path(each) for each in self.workbench.remembered.made_models]
        self.from_thread(self._take, self._index.read(self.workbench.index.runs, made))

    def worker_failed(self, name: str, text: str) -> None:
        """A list that cannot be read is told, and read again when something changes."""
        self._is_reading = False
        super().worker_failed(name, text)

    def _take(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._is_reading = False
        self._fill()
        if self._reads_again:
            self._reads_again = False
            self._begin_to_read()

    def clock_ticked(self) -> None:
        """Let ages grow."""
        if self.is_mounted:
            self._fill()

    # ---- the list ----------------------------------------------------------------------

    def _fill(self) -> None:
        if not self.is_mounted:
            return
        table = self.query_one("#checkpoint-list", CheckpointList)
        is_first = not table.rows
        table.empty_text = Content(self._empty_text())
        table.set_rows(list(self._rows()))
        if is_first and table.rows:
            self._choose_first(table)
        self.query_one("#checkpoint-names").refresh()
        self._show_details()
        self.entitle("checkpoint-pane")
        self.refresh_keys()

    def _choose_first(self, table: CheckpointList) -> None:
        """Begin at the newest checkpoint of the job that was looked at last."""
        looked_at = self.workbench.remembered.job
        rows = [row for row in table.rows if row.kind == "checkpoint"]
        inside = [row for row in rows if looked_at and row.path.is_relative_to(looked_at)]
        for row in (inside or rows)[:1]:
            table.choose(table.key_of(row))

    def _rows(self) -> Iterator[CheckpointRow]:
        holdings = self._holdings
        if holdings is None or not (
            holdings.num_checkpoints or self.workbench.remembered.made_models
        ):
            return
        now = self._now()
        for held in holdings.runs:
            facts = held.facts
            model = "" if facts.model is None else facts.model.name
            whole = max((each.bytes for each in facts.checkpoints if not each.problem), default=0)
            rows = []
            for each in facts.checkpoints:
                row = lines.checkpoint_row(each, self._found(each), whole, now)
                if self._is_shown(lines.filterable(row, held.known.name, each, model, now)):
                    rows.append(row)
            if rows or self._filter is None:
                is_folded = held.known.path in self._folded
                awaits = "" if facts.checkpoints else self._first_save(held)
                yield lines.run_row(held, awaits, is_folded=is_folded)
                yield from [] if is_folded else rows
        models = [
            row
            for facts in holdings.models
            if self._is_shown(lines.filterable(row := self._model_row(facts), "", None, "", now))
        ]
        if models:
            is_folded = lines.MODELS in self._folded
            count = words.number_of(len(models), "model")
            yield CheckpointRow("models", lines.MODELS, "models", tags=count, is_folded=is_folded)
            yield from [] if is_folded else models

    def _model_row(self, facts: ModelFacts) -> CheckpointRow:
        is_made = str(facts.path) in self.workbench.remembered.made_models
        return lines.model_row(facts, self._found(facts), is_made=is_made)

    def _found(self, facts: "CheckpointFacts | ModelFacts") -> Verification | None:
        return self._verifications.of(facts.path, facts.manifest_stamp)

    def _is_shown(self, shown: Filterable) -> bool:
        return self._filter is None or self._filter(shown)

    def _empty_text(self) -> str:
        holdings = self._holdings
        if holdings is None or self.workbench.index.read_at is None:
            return "Reading the checkpoints…"
        if self._filter is not None and (holdings.num_checkpoints or holdings.models):
            query = self.query_one("#checkpoint-filter", FilterField).value.strip()
            count = holdings.num_checkpoints + len(holdings.models)
            return f"0 of {count} match “{query}”: {keys.hint('leave_field')} clears."
        for held in holdings.runs:
            if held.known.is_running:
                how = f"{keys.hint('show_jobs')} shows it, {keys.hint('save')} there saves now."
                return f"Nothing saved yet; {held.known.name} {self._first_save(held)}. {how}"
        return (
            f"Nothing saved yet. {keys.hint('show_configs')} pick a config, then "
            f"{keys.hint('launch')}: what the run saves appears here."
        )

    def _first_save(self, held: RunCheckpoints) -> str:
        """Say when a run at work saves for the first time: saves at step 250 (in 3 m 2 s)."""
        every = held.facts.save_every
        if every is None:
            return "saves at its end"
        picture = self.workbench.watches.picture(held.known.path)
        step, at = 0, ""
        if picture is not None:
            step = picture.step
            if picture.last is not None and picture.last.step_seconds:
                left = (every - step % every) * picture.last.step_seconds
                at = f" (in {words.duration(left)})"
        return f"saves at step {(step // every + 1) * every:,}{at}"

    @on(LineList.Moved, "#checkpoint-list")
    def _moved(self) -> None:
        self._show_details()
        self.refresh_keys()

    @on(LineList.Opened, "#checkpoint-list")
    def _opened(self) -> None:
        self.app.call_later(self.app.action_press, "talk_to")  # type: ignore[attr-defined]

    @property
    def current(self) -> CheckpointRow | None:
        """The row under the cursor."""
        return self.query_one("#checkpoint-list", CheckpointList).current

    def run_under_cursor(self) -> RunCheckpoints | None:
        """Give the run that the cursor is in, None among the models."""
        row = self.current
        if row is None or self._holdings is None or row.kind in ("models", "model"):
            return None
        for held in self._holdings.runs:
            if held.known.path == row.path:
                return held
            if any(each.path == row.path for each in held.facts.checkpoints):
                return held
        return None

    def checkpoint_under_cursor(self) -> "CheckpointFacts | None":
        """Give the checkpoint under the cursor, None on anything else."""
        row, held = self.current, self.run_under_cursor()
        if row is None or held is None or row.kind != "checkpoint":
            return None
        return next((each for each in held.facts.checkpoints if each.path == row.path), None)

    def model_under_cursor(self) -> ModelFacts | None:
        """Give the model under the cursor, None on anything else."""
        row = self.current
        if row is None or row.kind != "model" or self._holdings is None:
            return None
        return next((each for each in self._holdings.models if each.path == row.path), None)

    # ---- details and titles ------------------------------------------------------------

    def _show_details(self) -> None:
        found = self._details()
        name_width = max((len(name) for name, _ in found), default=0) + 2
        content = [
            Content.assemble((f"{name:<{name_width}}", "$quiet"), said) for name, said in found
        ]
        self.query_one("#checkpoint-detail", JobDetail).show(lambda width: content)
        self.entitle("checkpoint-detail")

    def _details(self) -> list[lines.Line]:
        row, held, facts = self.current, self.run_under_cursor(), self.checkpoint_under_cursor()
        if row is None:
            return []
        path = self.workbench.shown_path(row.path)
        if held is not None and facts is not None:
            return lines.checkpoint_details(facts, held, self._found(facts), path, self._now())
        if held is not None:
            return lines.run_details(held, path, self._now())
        if row.kind == "models":
            return lines.MODELS_DETAILS
        model = self.model_under_cursor()
        return [] if model is None else lines.model_details(model, self._found(model), path)

    def entitle(self, section_id: str) -> None:
        """Write a title: both panes are always shown, so no tabs stand before it."""
        self.query_one(f"#{section_id}").border_title = self.title_of(section_id)

    def title_of(self, section_id: str) -> Content:
        """Give the sums above the list, and the name of what the details are of."""
        if section_id == "checkpoint-detail":
            row, held = self.current, self.run_under_cursor()
            if row is None:
                return Content("Details")
            inside = row.kind == "checkpoint" and held is not None
            return Content(f"{held.known.name}/{row.name}" if inside and held else row.name)
        holdings = self._holdings
        if holdings is None:
            return Content("Checkpoints")
        parts = [f"Checkpoints · {holdings.num_checkpoints}"]
        if holdings.num_checkpoints:
            parts.append(words.size(holdings.bytes))
        if holdings.free_bytes is not None:
            parts.append(f"disk {words.size(holdings.free_bytes)} free")
        return Content(" · ".join(parts))

    # ---- filter ------------------------------------------------------------------------

    def do_filter(self) -> None:
        """Filter the list."""
        self.query_one("#checkpoint-filter", FilterField).open()

    @on(FilterField.Typed)
    def _filter_typed(self, event: FilterField.Typed) -> None:
        try:
            self._filter = parse(event.text) if event.text.strip() else None
        except FilterError as error:
            self.workbench.say(str(error), "note")
            return
        self._fill()

    @on(FilterField.Left)
    def _filter_left(self) -> None:
        self.query_one("#checkpoint-list").focus()

    def do_back(self) -> object:
        """Leave the zoom, clear the filter, go to the list."""
        if super().do_back() is None:
            return None
        field = self.query_one("#checkpoint-filter", FilterField)
        if field.value:
            field.do_leave_field()
        self.query_one("#checkpoint-list").focus()
        return None

    # ---- keys --------------------------------------------------------------------------

    def key_state(self) -> KeyState:
        """Say what the row under the cursor allows."""
        row = self.current
        return KeyState(
            readonly=self.workbench.surroundings.readonly,
            checkpoint=self.workbench.shown_path(row.path)
            if row is not None and row.kind != "models"
            else None,
            refused=tuple(self._refusals()),
        )

    def _refusals(self) -> Iterator[tuple[str, str]]:
        row, held, facts = self.current, self.run_under_cursor(), self.checkpoint_under_cursor()
        model, holdings = self.model_under_cursor(), self._holdings
        if row is None or holdings is None:
            yield from refusals.of_nothing()
        elif facts is not None and held is not None:
            yield from refusals.of_checkpoint(facts, held, holdings.in_use)
        elif held is not None:
            yield from refusals.of_run(held)
        elif model is not None:
            yield from refusals.of_model(model)
        else:
            yield from refusals.of_models()

    def label_of(self, row: KeyRow) -> str:
        """Enter folds a run; v stops what it has begun."""
        current = self.current
        if row.id == "talk_to" and current is not None and current.is_heading:
            return "Unfold" if current.is_folded else "Fold"
        if row.id == "verify_hashes" and current is not None:
            return "Stop" if self._verifications.is_under_way(current.path) else row.label
        return super().label_of(row)

    # ---- folding, copying, talking -----------------------------------------------------

    def do_fold(self) -> None:
        """Hide the checkpoints of the run that the cursor is in."""
        self._fold(True)

    def do_unfold(self) -> None:
        """Show them again."""
        self._fold(False)

    def _fold(self, is_folded: bool) -> None:
        row, held = self.current, self.run_under_cursor()
        if row is None:
            return
        heading = lines.MODELS if held is None else held.known.path
        if (heading in self._folded) == is_folded:
            return
        self._folded ^= {heading}
        self._fill()
        kind = "models" if held is None else "run"
        self.query_one("#checkpoint-list", CheckpointList).choose((kind, heading))

    def do_talk_to(self) -> None:
        """Load it in the chat; fold or unfold a run."""
        row, held = self.current, self.run_under_cursor()
        if row is None:
            return
        if row.is_heading:
            self._fold(not row.is_folded)
        else:
            self.workbench.talk_to(row.path, held.known.name if held is not None else "models")

    def do_copy_checkpoint(self) -> None:
        """Copy the path."""
        row = self.current
        if row is not None and row.kind != "models":
            self.app.copy_to_clipboard(str(row.path))
            self.workbench.say(f"copied {row.path}")

    # ---- hashes ------------------------------------------------------------------------

    def do_verify_hashes(self) -> None:
        """Compare hashes, or stop comparing them."""
        row, held, facts = self.current, self.run_under_cursor(), self.checkpoint_under_cursor()
        model = self.model_under_cursor()
        if row is None:
            return
        if self._verifications.is_under_way(row.path):
            self._verifications.stop(row.path)
            self.workbench.say(f"{row.name}: hashes are no longer compared", "note")
        elif facts is not None:
            self._verify([(facts.path, facts.bytes)])
        elif model is not None:
            self._verify([(model.path, model.bytes)])
        elif held is not None:
            whole = [each for each in held.facts.checkpoints if not each.is_partial]
            self._verify([(each.path, each.bytes) for each in whole])
        self._fill()

    def _verify(self, folders: list[tuple[Path, int]]) -> None:
        # Each is added first: whoever runs takes all that wait.
        has_to_run = [self._verifications.add(path, size) for path, size in folders]
        if any(has_to_run):
            self.verify()

    @work(thread=True, group="hashes", exit_on_error=False)
    def verify(self) -> None:
        """Compare the hashes of what waits."""
        worker = get_current_worker()
        self._verifications.run(lambda: self.from_thread(self._fill), lambda: worker.is_cancelled)

    # ---- making, starting, deleting ----------------------------------------------------

    def do_finalize(self) -> None:
        """Open the dialog that publishes."""
        from workbench.tui.screens.finalize import FinalizeDialog, Publishable

        row, held, facts = self.current, self.run_under_cursor(), self.checkpoint_under_cursor()
        if row is None:
            return
        run = held.facts if held is not None else None
        source = Publishable(row.path, run, facts)
        self.app.push_screen(FinalizeDialog(source), self._made)

    def do_convert(self) -> None:
        """Open the dialog that converts."""
        from workbench.tui.screens.convert import ConvertDialog

        row, held = self.current, self.run_under_cursor()
        if row is not None:
            name = row.name if held is None else f"{held.known.name}/{row.name}"
            self.app.push_screen(ConvertDialog(row.path, name), self._made)

    def _made(self, folder: object) -> None:
        """List a model that was made."""
        if isinstance(folder, Path):
            made = self.workbench.remembered.made_models
            made[:] = [str(folder), *(each for each in made if each != str(folder))][:_KEPT_MODELS]
        self._begin_to_read()

    def do_start_from(self) -> None:
        """Open the preview: one more attempt from the newest, else a run of its own."""
        from workbench.tui.screens.launch_preview import LaunchPreview

        held, facts = self.run_under_cursor(), self.checkpoint_under_cursor()
        if held is None:
            return
        if facts is None or facts.is_newest:
            self.app.push_screen(LaunchPreview.of_run(held.known.path))
            return
        folder = unused_name(held.known.path)
        typed = [f"training.output_dir={folder}", f"checkpoints.resume={facts.path}"]
        config = str(held.known.path / "config.yaml")
        self.app.push_screen(LaunchPreview(config, typed=typed))

    def do_delete_checkpoint(self) -> None:
        """Look what would go, then ask."""
        held, facts = self.run_under_cursor(), self.checkpoint_under_cursor()
        if held is not None and facts is not None and self._holdings is not None:
            self.plan_deletion(held, facts, list(self._holdings.in_use))

    @work(thread=True, group="delete", exit_on_error=False)
    def plan_deletion(
        self, held: RunCheckpoints, facts: "CheckpointFacts", in_use: list[Path]
    ) -> None:
        """List the files that would go."""
        from workbench.runs.discard import plan_discard

        try:
            plan = plan_discard(held.facts.run, in_use, only=[facts.path])
        except (WorkbenchError, OSError) as error:
            self.from_thread(self.workbench.say_error, "not deleted: ", error)
            return
        self.from_thread(self._ask_to_delete, plan, facts)

    def _ask_to_delete(self, plan: "DiscardPlan", facts: "CheckpointFacts") -> None:
        from workbench.tui.screens.delete_checkpoint import DeletePrompt

        for reason in plan.spared.values():
            self.workbench.say(f"not deleted: it {reason}", "note")
            return
        if not plan.files:
            self.workbench.say(f"{facts.path.name} is gone already", "note")
            self._begin_to_read()
            return

        def answered(typed_it: object) -> None:
            if typed_it is True:
                self.delete(plan)

        self.app.push_screen(DeletePrompt(plan, facts), answered)

    @work(thread=True, group="delete", exit_on_error=False)
    def delete(self, plan: "DiscardPlan") -> None:
        """Remove what was listed."""
        from workbench.runs.discard import discard

        names = words.some([path.name for path in plan.files])
        try:
            discard(plan)
        except (WorkbenchError, OSError) as error:
            self.from_thread(self.workbench.say_error, "not deleted: ", error)
        else:
            self.from_thread(self._deleted, f"{names} deleted, {words.size(plan.bytes)}")
        self.from_thread(self._begin_to_read)

    def _deleted(self, text: str) -> None:
        """Say it, and go to what stands above."""
        self.workbench.say(text)
        self.query_one("#checkpoint-list", CheckpointList).do_move_up()


def unused_name(run: Path) -> Path:
    """Give a folder beside a run that is not there yet: demo-3 beside demo-1 and demo-2."""
    begin, dash, number = run.name.rpartition("-")
    base, first = (begin, int(number)) if dash and number.isdigit() else (run.name, 1)
    number_of_next = first + 1
    while (folder := run.with_name(f"{base}-{number_of_next}")).exists():
        number_of_next += 1
    return folder
