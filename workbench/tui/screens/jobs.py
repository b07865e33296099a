"""Jobs: what runs and what has run, the selected one in numbers, curves and its log.

Everything shown comes from the run folder through a job's connection; closing this screen, or the
program, changes nothing for a job. Invariant: no key reaches a job that its state or its link
forbids, and every command shows that it was accepted and what became of it.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import Static

from workbench.control.messages import CommandName
from workbench.control.states import END_STATES
from workbench.runs.job_file import this_host
from workbench.tui import keys, words
from workbench.tui.job_events import CommandSaid, JobsChanged, RunsListed
from workbench.tui.job_lines import detail_lines
from workbench.tui.keys import KeyRow, KeyState
from workbench.tui.marks import mark_of
from workbench.tui.screens.frame import Section, WorkbenchScreen
from workbench.tui.widgets.chart import Chart, Curve
from workbench.tui.widgets.filter_field import FilterField
from workbench.tui.widgets.job_detail import JobDetail
from workbench.tui.widgets.job_table import JobRow, JobTable
from workbench.tui.widgets.line_list import LineList
from workbench.tui.widgets.log_view import LogView

if TYPE_CHECKING:
    from workbench.tui.job_index import KnownRun
    from workbench.tui.job_picture import JobPicture

_UNDER_WAY: dict[CommandName, str] = {
    "save": "saving…",
    "evaluate": "evaluating…",
    "pause": "pausing…",
    "resume": "resuming…",
    "stop": "stopping…",
    "abort": "aborting…",
}


class JobsScreen(WorkbenchScreen):
    """Table · detail · loss and memory · log."""

    CSS_PATH = "jobs.tcss"
    SCOPES = ("job", "jobs")
    BINDINGS = keys.bindings("job", "jobs", "pane", "filterable")
    SECTIONS = (
        Section("job-pane", "Jobs", always=True),
        Section("job-detail", "Overview"),
        Section("loss-chart", "Loss"),
        Section("memory-chart", "Memory"),
        Section("job-log", "Log"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.selected: Path | None = None
        self._has_chosen = False

    def compose_body(self) -> ComposeResult:
        """Lay out the panes; the form decides which of them are seen."""
        with Container(id="jobs-top", classes="holder"):
            with Vertical(id="job-pane", classes="pane"):
                yield FilterField(id="job-filter")
                yield JobTable(id="job-table")
            yield JobDetail(id="job-detail", classes="pane")
        yield Static(id="banner")
        with Container(id="jobs-charts", classes="holder"):
            yield Chart("loss", id="loss-chart", classes="pane")
            yield Chart("memory", from_zero=True, id="memory-chart", classes="pane")
        yield LogView(id="job-log", classes="pane")

    def on_mount(self) -> None:
        """Show what is known already."""
        self.query_one("#job-table").focus()
        self.show_panes()
        self._fill_table()

    def panes_of(self, active: str) -> set[str]:
        """The overview of the narrow form has a curve below its numbers."""
        return {active, "loss-chart"} if active == "job-detail" else {active}

    # ---- news --------------------------------------------------------------------------

    @on(RunsListed)
    def _runs_listed(self) -> None:
        self._fill_table()

    @on(JobsChanged)
    def _jobs_changed(self, event: JobsChanged) -> None:
        self._fill_table()
        if self.selected in event.changed:
            self._show_selected(event.changed[self.selected])

    def came_back(self) -> None:
        """Catch up with what happened while another screen was shown."""
        self.workbench.index.num_unseen_failures = 0
        self._fill_table()
        self._show_selected(frozenset({"state", "metrics", "events", "log"}))

    def clock_ticked(self) -> None:
        """Let ages grow."""
        if not self.is_mounted:
            return
        self._show_detail()
        self.entitle("job-detail")
        self._fill_table()
        self._show_banner()

    # ---- the table ---------------------------------------------------------------------

    def _fill_table(self) -> None:
        if not self.is_mounted:
            return
        index = self.workbench.index
        table = self.query_one("#job-table", JobTable)
        query = self.query_one("#job-filter", FilterField).value.strip().casefold()
        rows = [self._row_of(run) for run in index.runs if run.state is not None or not run.summary]
        shown = [row for row in rows if query in f"{row.name} {row.state}".casefold()]
        if rows and not shown:
            clear = keys.hint("leave_field")
            table.empty_text = Content(f"0 of {len(rows)} match “{query}”: {clear} clears.")
        else:
            table.empty_text = Content(self._nothing_yet())
        table.set_rows(shown)
        wanted = self.workbench.wanted_job
        if wanted is not None and table.choose(wanted):
            self.workbench.wanted_job = None
            self._has_chosen = True
        elif not self._has_chosen and shown:
            # What runs comes before what was looked at last time.
            candidates = [row for row in shown if row.state not in END_STATES] or shown
            remembered = self.workbench.remembered.job
            same = [row for row in candidates if str(row.path) == remembered]
            table.choose((same or candidates)[0].path)
            self._has_chosen = True
        self._select(table.current)
        self.entitle("job-pane")

    def _nothing_yet(self) -> str:
        index = self.workbench.index
        if index.read_at is None:
            return "Reading the registry…"
        return (
            f"No jobs yet. {keys.hint('show_configs')} pick a config, then {keys.hint('launch')}. "
            f"Or {keys.hint('palette')}demo: a small CPU run that fills this screen. "
            "Registry: 0 entries."
        )

    def _row_of(self, run: "KnownRun") -> JobRow:
        """Give a run as the table shows it: the connection's word before the files'."""
        summary = run.summary
        row = JobRow(run.path, run.name, run.state)
        if summary is not None:
            row = replace(
                row,
                step=summary.step,
                max_steps=summary.max_steps,
                loss=summary.loss,
                said=_ended_because(run),
                started=summary.started,
            )
        picture = self.workbench.watches.picture(run.path)
        if picture is None or picture.state is None or picture.attempt < run.attempt:
            return row
        now = self.workbench.surroundings.clock()
        said = row.said if picture.has_ended else ""
        under_way = self.workbench.under_way.get(run.path)
        if under_way:
            said = _UNDER_WAY[under_way[-1]]
        elif picture.pending:
            said = _UNDER_WAY[picture.pending[-1].name]
        return JobRow(
            run.path,
            run.name,
            picture.state,
            silent_seconds=picture.idle(now) if picture.is_silent(now) else None,
            step=picture.step,
            max_steps=picture.max_steps,
            loss=picture.last.loss if picture.last else row.loss,
            trend=picture.trend,
            eta_seconds=picture.eta_seconds,
            said=said,
            learning_rate=picture.last.learning_rate if picture.last else None,
            started=row.started,
        )

    @on(LineList.Moved, "#job-table")
    def _moved(self, event: LineList.Moved) -> None:
        self._select(event.row)

    @on(LineList.Opened, "#job-table")
    def _opened(self) -> None:
        self.focus_pane("job-log" if not self.is_narrow else self.section or "job-detail")

    def _select(self, row: JobRow | None) -> None:
        path = row.path if row else None
        if path == self.selected:
            return
        self.selected = path
        self.workbench.follow_jobs(path)
        if path is not None:
            self.workbench.remembered.job = str(path)
        self._show_selected(frozenset({"state", "metrics", "events", "log"}))

    @property
    def picture(self) -> "JobPicture | None":
        """What is known of the selected job."""
        return self.workbench.watches.picture(self.selected) if self.selected else None

    # ---- the selected job --------------------------------------------------------------

    def _show_selected(self, parts: frozenset[str]) -> None:
        if not self.is_mounted:
            return
        picture = self.picture
        self._show_detail()
        if parts & {"metrics", "events", "state"}:
            self._show_charts(picture)
        if parts & {"log", "events", "state"}:
            log = self.query_one("#job-log", LogView)
            log.empty_text = self._no_output_text(picture)
            if picture is None:
                log.show((), 0)
            else:
                log.show(picture.log, picture.num_log_lines)
        for each in self.SECTIONS[1:]:
            self.entitle(each.id)
        self._show_banner()
        self.refresh_keys()

    def _show_detail(self) -> None:
        picture, now = self.picture, self.workbench.surroundings.clock()
        path = self.workbench.shown_path(self.selected) if self.selected else ""
        self.query_one("#job-detail", JobDetail).show(
            lambda width: detail_lines(picture, now, width, path) if picture else ()
        )

    def _show_charts(self, picture: "JobPicture | None") -> None:
        loss, memory = self.query_one("#loss-chart", Chart), self.query_one("#memory-chart", Chart)
        empty = self._no_metrics_text(picture)
        curves = picture.curves if picture else None
        if picture is None or curves is None:
            loss.show((), empty_text=empty)
            memory.show((), empty_text=empty)
            return
        loss.show(
            (
                Curve(curves.loss.raw, "chart-dim"),
                Curve(curves.eval_loss, "chart-2"),
                Curve(curves.loss.average, "chart-1"),
            ),
            picture.happenings,
            empty_text=empty,
        )
        series = curves.gpu_memory or curves.host_memory
        memory.show(
            [Curve(each, f"chart-{rank % 8 + 1}") for rank, each in enumerate(series)],
            empty_text=empty,
        )

    def _no_metrics_text(self, picture: "JobPicture | None") -> str:
        if picture is None or picture.state is None:
            return ""
        if picture.has_ended:
            return f"No metrics: {picture.state} before the first logged step."
        return f"No metrics yet: {self._phase(picture)}"

    def _no_output_text(self, picture: "JobPicture | None") -> str:
        if picture is None:
            return ""
        return "No output." if picture.has_ended else f"No output yet: {self._phase(picture)}"

    def _phase(self, picture: "JobPicture") -> str:
        if picture.state is None or picture.state_since is None:
            return "starting"
        age = self.workbench.surroundings.clock() - picture.state_since
        return f"{picture.state} for {words.duration(age)}"

    def _show_banner(self) -> None:
        """Say that the supervisor of the selected job does not answer, and what follows."""
        banner = self.query_one("#banner", Static)
        picture = self.picture
        is_cut = picture is not None and not picture.has_ended and picture.link is not None
        banner.display = is_cut and not self.zoomed
        if is_cut and picture is not None:
            since = words.clock(picture.link_since) if picture.link_since else "?"
            banner.update(
                Content.assemble(
                    (" ! ", "bold $note"),
                    f"supervisor of {picture.name} does not answer since {since}. "
                    "Shown from its run folder; keys that act on it are off until it does.",
                )
            )

    # ---- titles ------------------------------------------------------------------------

    def title_of(self, section_id: str) -> Content:
        """Give pane titles with what they show."""
        picture = self.picture
        match section_id:
            case "job-pane":
                return Content(f"Jobs · {len(self.query_one('#job-table', JobTable).rows)}")
            case "job-detail":
                return self._headline() if picture else Content("Overview")
            case "loss-chart":
                return Content.assemble("loss", (" · EMA .9 over raw · eval", "$quiet"))
            case "memory-chart":
                kind = "GPU" if picture and picture.curves and picture.curves.gpu_memory else "host"
                return Content.assemble(f"{kind} memory GiB", (" · peak per window", "$quiet"))
            case _:
                return Content.assemble("log", (f" · {self._follow_word()}", "$quiet"))

    def note_of(self, section_id: str) -> Content:
        """Give the job's name behind the tabs of the narrow form."""
        if self.picture is None:
            return Content("")
        if section_id == "job-log":
            return Content(f"{self.picture.name} · {self._follow_word()}")
        return self._headline() if section_id == "job-detail" else Content(self.picture.name)

    def entitle(self, section_id: str) -> None:
        """Write a title, and below the charts what part of the run they show."""
        super().entitle(section_id)
        if not self.is_mounted or self.picture is None or self.picture.curves is None:
            return
        if section_id == "loss-chart":
            chart = self.query_one("#loss-chart", Chart)
            last = self.picture.curves.loss.average.last
            value = f"EMA {last[1]:.4f} · " if last else ""
            chart.border_subtitle = f"{value}{chart.view_in_words}"
        elif section_id == "memory-chart":
            self.query_one("#memory-chart").border_subtitle = self.query_one(
                "#memory-chart", Chart
            ).view_in_words

    def _headline(self) -> Content:
        picture = self.picture
        if picture is None:
            return Content("")
        if picture.state is None:
            return Content(picture.name)
        now = self.workbench.surroundings.clock()
        mark, colour = mark_of(picture.state)
        since = ""
        if picture.state_since is not None:
            since = f" since {words.clock(picture.state_since)}"
            if not self.is_narrow:
                since += f" ({words.duration(now - picture.state_since)})"
        return Content.assemble(
            picture.name, " · ", (f"{mark} {picture.state}", colour), (since, "$quiet")
        )

    def _follow_word(self) -> str:
        log = self.query_one("#job-log", LogView)
        if log.follows:
            return "FOLLOW"
        new = f", ↓ {log.num_new} new" if log.num_new else ""
        return f"PAUSED{new}, {keys.hint('move_last')} follows"

    @on(LogView.FollowChanged)
    def _follow_changed(self) -> None:
        self.entitle("job-log")

    @on(Chart.ViewChanged)
    def _view_changed(self, event: Chart.ViewChanged) -> None:
        other = "#memory-chart" if event.chart.id == "loss-chart" else "#loss-chart"
        chart = self.query_one(other, Chart)
        if chart.tail != event.chart.tail:
            chart.tail = event.chart.tail
            chart.refresh()
        self.entitle("loss-chart")
        self.entitle("memory-chart")

    # ---- filter ------------------------------------------------------------------------

    def do_filter(self) -> None:
        """Filter the table by name or state."""
        self.query_one("#job-filter", FilterField).open()

    @on(FilterField.Typed)
    def _filter_typed(self) -> None:
        self._fill_table()

    @on(FilterField.Left)
    def _filter_left(self) -> None:
        self.query_one("#job-table").focus()

    def do_back(self) -> object:
        """Leave the zoom, clear the filter, go to the table."""
        if super().do_back() is None:
            return None
        if self.query_one("#job-filter", FilterField).value:
            self.query_one("#job-filter", FilterField).do_leave_field()
        self.query_one("#job-table").focus()
        return None

    # ---- commands ----------------------------------------------------------------------

    def key_state(self) -> KeyState:
        """Say what the selected job allows."""
        picture = self.picture
        readonly = self.workbench.surroundings.readonly
        if self.selected is None or picture is None:
            return KeyState(readonly=readonly)
        run = self.workbench.index.find(self.selected)
        state = picture.state or (run.state if run else None)
        return KeyState(
            readonly=readonly,
            job=picture.name,
            job_state=state,
            link=picture.link,
            pending=frozenset(each.name for each in picture.pending),
            has_checkpoint=picture.last_checkpoint is not None,
        )

    def label_of(self, row: KeyRow) -> str:
        """P says which way it goes."""
        if row.id == "pause" and self.picture and self.picture.state == "paused":
            return "Resume"
        return super().label_of(row)

    def do_save(self) -> None:
        """Ask for a checkpoint."""
        self.command("save")

    def do_evaluate(self) -> None:
        """Ask for an evaluation."""
        self.command("evaluate")

    def do_pause(self) -> None:
        """Hold, or go on."""
        is_paused = self.picture is not None and self.picture.state == "paused"
        self.command("resume" if is_paused else "pause")

    def command(self, name: CommandName, **fields: bool) -> None:
        """Send a command, unless the same one is under way: then say since when."""
        picture = self.picture
        if self.selected is None or picture is None:
            return
        since = picture.pending_since(name)
        if since is not None or name in self.workbench.under_way.get(self.selected, ()):
            age = (
                f", accepted {words.duration(self.workbench.surroundings.clock() - since)} ago"
                if since is not None
                else ""
            )
            self.workbench.say(f"{picture.name}: {_UNDER_WAY[name]} already{age}", "working")
            return
        self.workbench.send_command(self.selected, name, **fields)

    def do_stop(self) -> None:
        """Open the stop menu."""
        if self.picture is not None:
            from workbench.tui.screens.stop_menu import StopMenu

            self.app.push_screen(StopMenu(self.picture), self._stop_chosen)

    def _stop_chosen(self, choice: object) -> None:
        match choice:
            case "save":
                self.command("stop", save=True)
            case "discard":
                self.command("stop", save=False)
            case "pause":
                self.command("pause")
            case "abort":
                self.command("abort")

    def do_start_again(self) -> None:
        """Open the preview of a new attempt."""
        if self.selected is not None:
            from workbench.tui.screens.launch_preview import LaunchPreview

            self.app.push_screen(LaunchPreview.of_run(self.selected))

    def do_copy_job(self) -> None:
        """Copy the path of the run folder."""
        if self.selected is not None:
            self.app.copy_to_clipboard(str(self.selected))
            self.workbench.say(f"copied {self.selected}")

    @on(CommandSaid)
    def _command_said(self) -> None:
        self._fill_table()
        self.refresh_keys()


def _ended_because(run: "KnownRun") -> str:
    """Give what a row says of a run that did not end well, or that another host knows."""
    summary = run.summary
    if summary is not None and summary.host not in (None, this_host()):
        return f"on {summary.host}"
    if summary is None or summary.state in (None, "finished", "stopped"):
        return ""
    if summary.state in END_STATES:
        reason = (summary.reason or "").replace("_", " ")
        first_line = summary.message.splitlines()[0] if summary.message else ""
        return ": ".join(part for part in (reason, first_line) if part)
    return ""
