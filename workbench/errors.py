"""The mistakes that someone can mend, each with what is wrong, where, and what to do.

    WorkbenchError     shown without a traceback, exit status in ``exit_status``
    ├── ConfigError    a key, a value, or two keys that contradict each other
    ├── DataError      a file, a row, a template
    ├── RunError       a run folder, checkpoint or model folder that is not what it should be
    ├── ControlError   a job, supervisor or server that cannot be reached
    └── RefusedError   a request that is refused, or would not fit

A mistake of a programmer is an ``assert``, never one of these.
"""


class WorkbenchError(Exception):
    """A mistake that someone can mend; shown without a traceback.

    Args:
        what: what is wrong with the value, without a capital or a full stop.
        where: file:line, key, row and turn, rank, or path.
        remedy: what to do about it, as an imperative.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}; {remedy}")
        self.what, self.where, self.remedy = what, where, remedy

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Survive pickling, as errors from worker processes must."""
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[WorkbenchError], what: str, where: str, remedy: str) -> WorkbenchError:
    return kind(what, where=where, remedy=remedy)


class ConfigError(WorkbenchError):
    """A key, a value, or two keys that contradict each other."""

    exit_status = 2


class DataError(WorkbenchError):
    """A file, a row or a template that cannot be trained on."""

    exit_status = 2


class RunError(WorkbenchError):
    """A run folder, checkpoint or model folder that is not what it should be."""

    exit_status = 2


class ControlError(WorkbenchError):
    """A job, supervisor or server that cannot be reached."""

    exit_status = 3


class RefusedError(WorkbenchError):
    """A request that is refused, or would not fit."""

    exit_status = 4
