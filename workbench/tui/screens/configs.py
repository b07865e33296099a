"""Configs: what can be run, the files each config is made of, and who set every key.

Knows ``config.load`` and nothing of jobs but how to open the launch preview. Invariant: a config
that cannot be resolved stays in the list with its mistake and cannot be launched.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from workbench.errors import ConfigError, WorkbenchError
from workbench.tui import keys, words
from workbench.tui.editing import Edited, ToEdit, contents_of, edit, judge
from workbench.tui.fuzzy import score
from workbench.tui.job_events import RunsListed
from workbench.tui.keys import KeyState
from workbench.tui.screens.config_words import (
    brief_problem,
    config_facts,
    first_problem,
    has_key,
    lineage,
    needs,
    problem_lines,
)
from workbench.tui.screens.frame import Section, WorkbenchScreen
from workbench.tui.widgets.config_list import ConfigList, ConfigRow
from workbench.tui.widgets.config_tree import ConfigTree, TreeRow, tree_rows
from workbench.tui.widgets.filter_field import FilterField
from workbench.tui.widgets.line_list import LineList
from workbench.tui.widgets.origin_table import KeyLine, OriginTable, chain, value_text

if TYPE_CHECKING:
    from workbench.config.load import ConfigListing, ConfigProblems, ResolvedConfig
    from workbench.jobs.editor import EditorCommand

NO_CONFIGS = "No configs under {place}, and none came with the program."


@dataclass(frozen=True)
class Resolution:
    """What became of a config: resolved, or its problems."""

    name: str
    resolved: "ResolvedConfig | None"
    problems: "ConfigProblems | None"


class ConfigsScreen(WorkbenchScreen):
    """List · tree · resolved keys with their origin."""

    CSS_PATH = "configs.tcss"
    SCOPES = ("configs",)
    BINDINGS = keys.bindings("configs", "pane", "filterable")
    SECTIONS = (
        Section("config-pane", "Configs"),
        Section("config-tree", "Tree"),
        Section("key-pane", "Keys"),
        Section("summary", "Summary", beside=True),
    )

    resolution: reactive[Resolution | None] = reactive(None)

    def __init__(self) -> None:
        super().__init__()
        self._listings: list[ConfigListing] = []
        self._has_read = False
        self._cache: dict[str, Resolution] = {}
        self._only_file: Path | None = None
        self._shown_states: tuple[tuple[str, str | None], ...] = ()

    def compose_body(self) -> ComposeResult:
        """Lay out the panes; the form decides which of them are seen."""
        with Vertical(classes="holder", id="configs-columns"):
            with Horizontal(classes="holder", id="configs-top"):
                with Vertical(id="config-pane", classes="pane"):
                    yield FilterField(id="config-filter")
                    yield ConfigList(id="config-list")
                yield ConfigTree(id="config-tree", classes="pane")
            with Vertical(id="key-pane", classes="pane"):
                yield FilterField(id="key-filter")
                yield Static(id="key-header")
                yield OriginTable(self._project, id="key-table")
                yield Static(id="key-chain")
            yield Static(id="summary", classes="pane")

    # ---- reading -----------------------------------------------------------------------

    def on_mount(self) -> None:
        """Read the configs, off the loop."""
        self.show_panes()
        self.query_one("#config-pane").border_subtitle = "mark: state of the last run"
        only = keys.hint("open_row")
        mark = keys.hint("mark")
        self.query_one(
            "#config-tree"
        ).border_subtitle = f"{only}: only keys from here · {mark}: mark"
        self.query_one("#key-pane").border_subtitle = f"{only}: meaning and chain"
        self.query_one("#config-list", ConfigList).empty_text = Content("reading configs…")
        self.query_one("#config-list").focus()
        self.read_configs()

    @work(thread=True, exclusive=True, group="list", exit_on_error=False)
    def read_configs(self, edited: Edited | None = None) -> None:
        """List every config, a broken one as a row with its mistake; say what an edit has done."""
        from workbench.config.load import list_configs

        project = self.workbench.surroundings.project
        try:
            listings = list_configs(project)
        except ConfigError as error:
            self.from_thread(self.workbench.say, str(error), "error")
            listings = []
        self.from_thread(self._take_listings, listings)
        if edited is not None:
            text, severity = judge(edited, listings, project)
            self.from_thread(self.workbench.say, text, severity)

    @on(RunsListed)
    def _runs_listed(self, event: RunsListed) -> None:
        states = tuple((run.name, run.state) for run in event.runs)
        if self._has_read and states != self._shown_states:
            self._shown_states = states
            self._show_list()

    def _take_listings(self, listings: "list[ConfigListing]") -> None:
        self._listings, self._has_read = listings, True
        self._cache.clear()
        self._show_list()
        remembered = self.workbench.remembered.config
        config_list = self.query_one("#config-list", ConfigList)
        if remembered:
            config_list.choose(remembered)
        if config_list.current is not None:
            self.select(config_list.current.name)

    # ---- editing -----------------------------------------------------------------------

    def do_edit(self) -> None:
        """Open what is marked or under the cursor in the editor; then read all configs again."""
        from workbench.config.editable import check_editable
        from workbench.jobs.editor import editor_command

        target = self._to_edit()
        assert not isinstance(target, str), "the key is refused"
        try:
            for file in target.files:
                check_editable(file, self._project)
            command = editor_command(target.files, os.environ, wait=True, line=target.line)
        except WorkbenchError as error:
            self.workbench.say_error(f"{words.from_project(error.where, self._project)} ", error)
            return
        if command.note:
            self.workbench.say(command.note, "note")
        self._edit(target, command)

    def _to_edit(self) -> ToEdit | str:
        """Say which files are meant, or why there is none."""
        pane = self.pane_of(self.focused)
        tree = self.query_one("#config-tree", ConfigTree)
        line = self.query_one("#key-table", OriginTable).current
        if pane == "key-pane" and line is not None:
            origin = line.leaf.origin
            if origin.file is None:
                return f"{line.key} is stated by no file ({origin.source})"
            return ToEdit((origin.file,), origin.line)
        if tree.marked:
            return ToEdit(tuple(tree.marked))
        if pane == "config-tree" and tree.current is not None and tree.current.file is not None:
            return ToEdit((tree.current.file,))
        current = self.query_one("#config-list", ConfigList).current
        listing = next(
            (each for each in self._listings if current and each.name == current.name), None
        )
        if listing is None:
            return "no config is selected"
        found = self.resolution
        if found is not None and found.problems is not None and found.name == listing.name:
            first = found.problems.problems[0]
            return ToEdit((first.file or listing.path,), first.line)
        return ToEdit((listing.path,))

    @work(group="edit", exit_on_error=False)
    async def _edit(self, target: ToEdit, command: "EditorCommand") -> None:
        before = contents_of(target.files)
        reread = keys.hint("reread")
        if command.is_graphical and command.waits:
            self.workbench.say(f"opened in {command.name}; read again when closed there", "working")
        elif command.is_graphical:
            self.workbench.say(
                f"opened in {command.name}; {reread} reads the configs again", "note"
            )
        try:
            status = await edit(self.app, command)
        except WorkbenchError as error:
            self.workbench.say_error(f"{error.where} ", error)
            return
        self.query_one("#config-tree", ConfigTree).unmark()
        if status or command.waits:
            ended = f"{command.name} ended with status {status}" if status else command.note
            after = contents_of(target.files)
            num_changed = sum(old != new for old, new in zip(before, after, strict=True))
            broken = frozenset(each.name for each in self._listings if each.problem)
            self.read_configs(Edited(target.files, num_changed, broken, ended))

    def do_reread(self) -> None:
        """Read all config files again."""
        self.read_configs()
        self.workbench.say("configs read again")

    def select(self, name: str) -> None:
        """Show a config: from memory, else resolved by a worker."""
        self.workbench.remembered.config = name
        self.workbench.refresh_frame()
        self._only_file = None
        if name in self._cache:
            self.resolution = self._cache[name]
        else:
            self.resolve_config(name)

    @work(thread=True, exclusive=True, group="resolve", exit_on_error=False)
    def resolve_config(self, name: str) -> None:
        """Resolve a config and give it to the screen."""
        from workbench.config.load import ConfigProblems, resolve

        try:
            found = Resolution(name, resolve(name, project=self._project), None)
        except ConfigProblems as problems:
            found = Resolution(name, None, problems)
        self.from_thread(self._take_resolution, found)

    @property
    def _project(self) -> Path:
        return self.workbench.surroundings.project

    def _take_resolution(self, found: Resolution) -> None:
        self._cache[found.name] = found
        current = self.query_one("#config-list", ConfigList).current
        if current is not None and current.name == found.name:
            self.resolution = found

    # ---- the list ----------------------------------------------------------------------

    def _show_list(self) -> None:
        """Fill the list by what the filter lets through, under headings of folders."""
        query = self.query_one("#config-filter", FilterField).value.strip()
        shown = [listing for listing in self._listings if self._matches(listing, query)]
        rows: list[ConfigRow] = []
        folder = ""
        for listing in shown:
            parent, slash, _ = listing.name.rpartition("/")
            if slash and parent != folder:
                rows.append(ConfigRow(f"{parent}/"))
            folder = parent
            mark, colour, run = self.workbench.index.last_run_of(listing.name)
            rows.append(
                ConfigRow(
                    listing.name,
                    listing.description,
                    needs(listing),
                    brief_problem(listing),
                    mark,
                    colour,
                    run,
                )
            )
        config_list = self.query_one("#config-list", ConfigList)
        if self._listings and not shown:
            clear = keys.hint("leave_field")
            config_list.empty_text = Content(
                f"0 of {len(self._listings)} match “{query}”: {clear} clears."
            )
        elif self._has_read:
            place = self._project / "configs"
            config_list.empty_text = Content(NO_CONFIGS.format(place=place))
        config_list.set_rows(rows)
        self._num_shown = len(shown)
        self.show_panes()

    _num_shown = 0

    def _matches(self, listing: "ConfigListing", query: str) -> bool:
        """Every word of the query has to match: name and description, ``key:`` or ``set:``."""
        for word in query.split():
            if word.startswith(("key:", "set:")):
                resolution = self._resolution_now(listing.name)
                if resolution.resolved is None or not has_key(resolution.resolved, word):
                    return False
            elif score(word, listing.name) is None and (
                word.casefold() not in listing.description.casefold()
            ):
                return False
        return True

    def _resolution_now(self, name: str) -> Resolution:
        from workbench.config.load import ConfigProblems, resolve

        if name not in self._cache:
            try:
                self._cache[name] = Resolution(name, resolve(name, project=self._project), None)
            except ConfigProblems as problems:
                self._cache[name] = Resolution(name, None, problems)
        return self._cache[name]

    @on(FilterField.Typed)
    def _filter_typed(self) -> None:
        if self.query_one("#key-filter", FilterField).has_focus:
            self._show_keys()
        else:
            self._show_list()
            self._go_to_best()

    def _go_to_best(self) -> None:
        """Put the cursor on the config whose name is most like what is typed in the filter."""
        words = self.query_one("#config-filter", FilterField).value.split()
        config_list = self.query_one("#config-list", ConfigList)
        names = [row.name for row in config_list.rows if not row.is_folder]
        if words and names:
            config_list.choose(max(names, key=lambda name: sum(score(w, name) or 0 for w in words)))

    @on(FilterField.Left)
    def _filter_left(self) -> None:
        if self.query_one("#key-filter", FilterField).has_focus:
            self.query_one("#key-table").focus()
        else:
            self.query_one("#config-list").focus()

    def do_filter(self) -> None:
        """Open the filter of the pane that has the focus."""
        is_keys = self.pane_of(self.focused) == "key-pane"
        self.query_one("#key-filter" if is_keys else "#config-filter", FilterField).open()

    @on(LineList.Moved, "#config-list")
    def _config_moved(self, event: LineList.Moved) -> None:
        if isinstance(event.row, ConfigRow):
            self.select(event.row.name)
        self.refresh_keys()

    @on(LineList.Opened, "#config-list")
    def _config_opened(self) -> None:
        if self.is_narrow:
            self.section = "key-pane"
        self.query_one("#key-table").focus()

    def do_back(self) -> object:
        """Clear what narrows the panes: one file, then the filter; then go to the list."""
        if super().do_back() is None:
            return None
        if self._only_file is not None:
            self._only_file = None
            self._show_keys()
        elif self.query_one("#config-filter", FilterField).value:
            self.query_one("#config-filter", FilterField).do_leave_field()
        elif self.query_one("#key-filter", FilterField).value:
            self.query_one("#key-filter", FilterField).do_leave_field()
            self._show_keys()
        else:
            self.section = ""
            self.query_one("#config-list").focus()
        return None

    # ---- tree and keys -----------------------------------------------------------------

    def watch_resolution(self, found: Resolution | None) -> None:
        """Show tree, keys and summary of another config."""
        if not self.is_mounted or found is None:
            return
        tree = self.query_one("#config-tree", ConfigTree)
        if found.resolved is not None:
            rows = tree_rows(found.resolved.files)
            facts = config_facts(found.resolved)
            tree.set_rows(
                [*rows, TreeRow(text=Content("")), *(TreeRow(text=line) for line in facts)]
            )
        else:
            self._show_problems()
        self._show_keys()
        self._show_summary()
        self.show_panes()

    def _show_problems(self) -> None:
        """Write the problems of a broken config as wide as the tree is."""
        found = self.resolution
        if found is None or found.problems is None:
            return
        tree = self.query_one("#config-tree", ConfigTree)
        lines = problem_lines(found.problems.problems, self._project, tree.text_width)
        if [row.text for row in tree.rows] != lines:
            tree.set_rows([TreeRow(text=line) for line in lines])

    @on(ConfigTree.Widened)
    def _tree_widened(self) -> None:
        self._show_problems()

    def _show_keys(self) -> None:
        table = self.query_one("#key-table", OriginTable)
        resolved = self.resolution.resolved if self.resolution else None
        if resolved is None:
            table.empty_text = Content("No keys: this config has mistakes, listed in its tree.")
            table.set_rows(())
        else:
            query = self.query_one("#key-filter", FilterField).value.strip()
            lines = [
                KeyLine(key, leaf)
                for key, leaf in resolved.leaves.items()
                if self._only_file is None or leaf.origin.file == self._only_file
            ]
            shown = [
                line
                for line in lines
                if not query
                or score(query, line.key) is not None
                or query in value_text(line.leaf.value)
            ]
            table.empty_text = Content(f"0 of {len(lines)} keys match “{query}”.")
            table.set_rows(shown)
        self._show_chain(table.current)
        self.entitle("key-pane")

    @on(LineList.Moved, "#key-table")
    def _key_moved(self, event: LineList.Moved) -> None:
        self._show_chain(event.row)

    @on(OriginTable.Widened)
    def _keys_widened(self, event: OriginTable.Widened) -> None:
        self.query_one("#key-header", Static).update(event.table.header())

    def _show_chain(self, line: KeyLine | None) -> None:
        widget = self.query_one("#key-chain", Static)
        if line is None:
            widget.update("")
        else:
            widget.update(
                Content.assemble(
                    (" chain ", "$quiet"), words.from_project(chain(line.leaf), self._project)
                )
            )

    @on(LineList.Opened, "#config-tree")
    def _file_opened(self, event: LineList.Opened) -> None:
        self._only_file = event.row.file
        if self.is_narrow:
            self.section = "key-pane"
        self._show_keys()
        self.query_one("#key-table").focus()

    @on(LineList.Opened, "#key-table")
    def _key_opened(self, event: LineList.Opened) -> None:
        from workbench.tui.screens.key_details import KeyDetails

        assert isinstance(event.row, KeyLine)
        self.app.push_screen(KeyDetails(event.row))

    # ---- titles ------------------------------------------------------------------------

    def title_of(self, section_id: str) -> Content:
        """Give pane titles with their counts."""
        resolved = self.resolution.resolved if self.resolution else None
        if section_id == "config-pane":
            return Content(f"Configs · {self._num_shown}")
        if section_id == "key-pane":
            if resolved is None:
                return Content("Resolved keys")
            only = f" · only {self._only_file.name}" if self._only_file else ""
            return Content(f"Resolved · {len(resolved.leaves)} keys{only}")
        if section_id == "summary":
            return Content(self.resolution.name if self.resolution else "")
        return Content("Tree")

    def note_of(self, section_id: str) -> Content:
        """Give counts behind the tabs of the narrow form."""
        if section_id == "config-pane":
            return Content(str(self._num_shown))
        if section_id == "key-pane" and self.resolution and self.resolution.resolved:
            only = f" · {self._only_file.name}" if self._only_file else ""
            return Content(f"{len(self.resolution.resolved.leaves)} keys{only}")
        return Content("")

    def _show_summary(self) -> None:
        found = self.resolution
        if found is None:
            return
        if found.resolved is None:
            assert found.problems is not None, "it is resolved, or it has problems"
            lines = first_problem(found.problems.problems, self._project, 76)
        else:
            listing = next((each for each in self._listings if each.name == found.name), None)
            description = listing.description if listing else ""
            lines = [
                Content(words.shorten(description, 76)),
                Content.assemble((lineage(found.resolved), "$quiet")),
                *config_facts(found.resolved)[:2],
            ]
        self.query_one("#summary", Static).update(Content("\n").join(lines))

    # ---- keys --------------------------------------------------------------------------

    def key_state(self) -> KeyState:
        """Refuse to launch what cannot be resolved."""
        refused: tuple[tuple[str, str], ...] = ()
        current = self.query_one("#config-list", ConfigList).current
        if current is None:
            refused = (("launch", "no config is selected"), ("preview", "no config is selected"))
        elif current.problem:
            reason = f"{current.name} has a mistake: {current.problem}"
            refused = (("launch", reason), ("preview", reason))
        if isinstance(target := self._to_edit(), str):
            refused = (*refused, ("edit", target))
        return KeyState(readonly=self.workbench.surroundings.readonly, refused=refused)

    def do_launch(self) -> None:
        """Open the launch preview."""
        self._open_preview(can_launch=True)

    def do_preview(self) -> None:
        """Open the launch preview without its launch key."""
        self._open_preview(can_launch=False)

    def _open_preview(self, *, can_launch: bool) -> None:
        current = self.query_one("#config-list", ConfigList).current
        if current is None:
            return
        from workbench.tui.screens.launch_preview import LaunchPreview

        self.app.push_screen(LaunchPreview(current.name, can_launch=can_launch))

    def came_back(self) -> None:
        """Bring the marks of last runs up to date."""
        if self._has_read:
            self._show_list()
