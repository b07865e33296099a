"""What the model worker says on its stdout: one record per line, typed for both of its ends.

``python -m workbench.model`` writes them, ``jobs/model_worker`` reads them. Knows neither tensors
nor files. Invariant: the last record is ``Done`` or ``Refused``; nothing before is taken back.
"""

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line on the model worker's stdout."""


class Progress(Record, frozen=True, tag="progress"):
    """How far a stage is, in bytes; ``total`` 0 where it is not known."""

    stage: str
    done: int
    total: int


class Notice(Record, frozen=True, tag="notice"):
    """Something that whoever publishes should know, and that stops nothing."""

    what: str
    remedy: str


class Refused(Record, frozen=True, tag="refused"):
    """It was not done, and nothing is left of it; ``exit_status`` is that of the command."""

    where: str
    what: str
    remedy: str
    exit_status: int


class Published(Record, frozen=True, tag="published"):
    """A model folder is complete.

    Attributes:
        path: of the folder.
        step: of the checkpoint; None for what is no checkpoint.
        bytes: of all its files.
        files: name to SHA-256 of each.
        stop_ids: that end a reply, as its generation config says.
        difference: of its logits from the checkpoint's, relative to their norm.
        reference_difference: of its logits from those transformers computes of it; None where
            the model is too large for this machine's memory in fp32.
        gguf: name of the GGUF file in it; None where none was asked for.
    """

    path: str
    step: int | None
    bytes: int
    files: dict[str, str]
    stop_ids: list[int]
    difference: float
    reference_difference: float | None
    gguf: str | None


class Verified(Record, frozen=True, tag="verified"):
    """A model folder gives the logits that transformers computes of it, nearly: ``difference``."""

    path: str
    difference: float


class Planned(Record, frozen=True, tag="planned"):
    """What a conversion comes to, before anything is written.

    Attributes:
        source: the model folder.
        changes: in words.
        notices: what should be known, in words.
        bytes: of the new folder.
        vocabulary_size: of the model afterwards.
    """

    source: str
    changes: list[str]
    notices: list[str]
    bytes: int
    vocabulary_size: int


class Converted(Record, frozen=True, tag="converted"):
    """A converted model folder is complete.

    Attributes:
        path: of the folder.
        bytes: of all its files.
        files: name to SHA-256 of each.
        difference: of its logits from the source's with weights of the same dtype, relative.
        rounding: how far the new dtype alone moves the logits; 0 where it is the old one.
    """

    path: str
    bytes: int
    files: dict[str, str]
    difference: float
    rounding: float


class Fetched(Record, frozen=True, tag="fetched"):
    """A model of the hub is on this machine, in the folder ``path``."""

    path: str


class Done(Record, frozen=True, tag="done"):
    """All that was asked for is said."""


AnyRecord = (
    Progress | Notice | Refused | Published | Verified | Planned | Converted | Fetched | Done
)
