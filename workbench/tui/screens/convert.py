"""Convert a model folder: dtype, longest document, chat template; what is kept stays as it is.

The work is that of ``workbench convert``, done by the same worker.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work
from textual.worker import get_current_worker

from workbench.errors import ConfigError, WorkbenchError
from workbench.tui import words
from workbench.tui.screens.work_dialog import WorkDialog
from workbench.tui.widgets.form import ChoiceField, FormField, FormLine

if TYPE_CHECKING:
    from workbench.jobs.model_worker import Converted, Planned

_AS_IT_IS = "as it is"


class ConvertDialog(WorkDialog):
    """Where to, dtype, longest document and template."""

    def __init__(self, source: Path, name: str) -> None:
        super().__init__(f"Convert {name}")
        self._source = source
        self._name_of_source = name.replace("/checkpoint-", "-").replace("/", "-")
        self._planned: Planned | None = None
        self._converted: Converted | None = None

    # ---- the form ----------------------------------------------------------------------

    def facts(self) -> Sequence[tuple[str, str]]:
        """Say what is converted."""
        return (("source", self.workbench.shown_path(self._source)),)

    def fields(self) -> Iterable[FormLine]:
        """Give the fields."""
        from workbench.config.find import template_names
        from workbench.jobs.publishing import CONVERT_DTYPES

        name = f"models/{self._name_of_source}-converted"
        templates = sorted(template_names(self.workbench.surroundings.project))
        yield FormLine("destination", FormField(name, id="destination"))
        yield FormLine("dtype", ChoiceField([_AS_IT_IS, *CONVERT_DTYPES], _AS_IT_IS, id="dtype"))
        yield FormLine("max length", FormField("", id="length", placeholder=_AS_IT_IS))
        yield FormLine(
            "template",
            FormField("", id="template", placeholder=f"{_AS_IT_IS}; {', '.join(templates)}"),
        )

    @property
    def dtype(self) -> str | None:
        """Of the weights, None: as it is."""
        chosen = self.choice_of("dtype")
        return None if chosen == _AS_IT_IS else chosen

    @property
    def template(self) -> str | None:
        """Name or file of a template, None: as it is."""
        return self.text_of("template") or None

    def max_length(self) -> int | None:
        """Give the longest document in tokens, None: as it is.

        Raises:
            ConfigError: what was typed is no number of tokens.
        """
        typed = self.text_of("length")
        if not typed:
            return None
        if not typed.isdecimal() or int(typed) < 1:
            raise ConfigError(
                f"{typed} is no number of tokens", where="max length", remedy="write 4096, say"
            )
        return int(typed)

    def command_line(self) -> str:
        """Give the command line."""
        from workbench.jobs.publishing import convert_command

        source = self.workbench.shown_path(self._source)
        destination = self.text_of("destination") or "DST"
        return convert_command(source, destination, self.dtype, self.max_length(), self.template)

    def objection(self) -> str | None:
        """Say what speaks against what is typed."""
        from workbench.jobs.publishing import check_place

        try:
            check_place(self.destination(), [self._source])
            self.max_length()
        except WorkbenchError as error:
            return f"{error.what}; {error.remedy}"
        return None

    # ---- the work ----------------------------------------------------------------------

    def begin_work(self) -> None:
        """Convert."""
        self.make(self.destination(), self.dtype, self.max_length(), self.template)

    @work(thread=True, group="convert", exit_on_error=False)
    def make(
        self, destination: Path, dtype: str | None, max_length: int | None, template: str | None
    ) -> None:
        """Have the worker convert, and tell of it."""
        from workbench.jobs import model_worker
        from workbench.jobs.publishing import named_template

        worker = get_current_worker()
        try:
            text = None if template is None else named_template(template, self._source)
            for record in model_worker.convert(
                self._source,
                destination,
                dtype=dtype,
                max_length=max_length,
                template=text,
                is_unwanted=lambda: worker.is_cancelled,
            ):
                match record:
                    case model_worker.Progress():
                        self.from_thread(self.tell_stage, record.stage, record.done, record.total)
                    case model_worker.Planned():
                        self.from_thread(self._take_plan, record)
                    case model_worker.Converted():
                        self.from_thread(self._take, record)
        except WorkbenchError as error:
            if not worker.is_cancelled:
                self.from_thread(self.fail, error)

    def _take_plan(self, planned: "Planned") -> None:
        self._planned = planned
        for notice in planned.notices:
            self.tell_note(notice)

    def _take(self, converted: "Converted") -> None:
        self._converted = converted
        self.finish(Path(converted.path))

    # ---- the end -----------------------------------------------------------------------

    def findings(self) -> Sequence[tuple[str, str]]:
        """Say what has changed, and how much the logits have."""
        made, planned = self._converted, self._planned
        if made is None or planned is None:
            return ()
        folder = self.workbench.shown_path(Path(made.path))
        logits = f"equal the source's (difference {made.difference:.0e})"
        if made.rounding:
            logits += f"; the new dtype moves them by {made.rounding:.0e}"
        facts = [("converted", f"{words.size(made.bytes)} in {len(made.files)} files: {folder}")]
        for number, change in enumerate(planned.changes or ["none"]):
            facts.append(("changes" if number == 0 else "", change))
        facts.append(("logits", logits))
        return facts
