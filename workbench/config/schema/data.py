"""Section ``data``: which conversations are trained on, and how they become rows."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from workbench.config.schema.section import NonNegativeInt, Section


class SourceSection(Section, frozen=True):
    """One data set: where it lies and what form its rows have."""

    path: Annotated[
        str, Meta(description="A file, a folder, or the id of a data set on the hub: owner/name")
    ]
    files: Annotated[
        list[str],
        Meta(description="Names within a folder or hub data set; empty takes every data file"),
    ] = msgspec.field(default_factory=list)
    format: Annotated[
        Literal["auto", "sharegpt", "messages", "alpaca", "text"],
        Meta(description="Form of a row; auto looks at the first row of each file"),
    ] = "auto"
    split: Annotated[
        str | None,
        Meta(description="Split of a hub data set; null: its only one, or the one called train"),
    ] = None
    weight: Annotated[
        float,
        Meta(
            gt=0.0,
            le=1000.0,
            description="Times each training row is seen per epoch; 0.5: every second",
        ),
    ] = 1.0


class DataSection(Section, frozen=True):
    """Which conversations are trained on, and how they become rows."""

    sources: Annotated[
        dict[str, SourceSection | None],
        Meta(description="Data sets by name; null drops an inherited one"),
    ] = msgspec.field(default_factory=dict)
    split_at: Annotated[
        list[float],
        Meta(
            min_length=2,
            max_length=2,
            description="Shares where training and validation end; the rest is the test split",
        ),
    ] = msgspec.field(default_factory=lambda: [0.80, 0.95])
    chat_template: Annotated[
        str,
        Meta(
            description="A shipped name, a .jinja file, or auto: the tokenizer's own, else chatml"
        ),
    ] = "auto"
    max_length: Annotated[int, Meta(ge=16, description="Tokens of a row")] = 4096
    pad_to: Annotated[
        Literal["longest", "context"],
        Meta(description="Pad the rows of a step to the longest of them, or to max_length"),
    ] = "longest"
    packing: Annotated[
        Literal["none", "best_fit", "first_fit", "greedy"],
        Meta(description="How documents share a row; none gives each a row of its own"),
    ] = "none"
    overlong: Annotated[
        Literal["truncate", "split"], Meta(description="What happens to documents over max_length")
    ] = "truncate"
    targets: Annotated[
        Literal["assistant", "last", "all"],
        Meta(description="Turns that are trained: the assistant's, the last of them, or all"),
    ] = "assistant"
    roles: Annotated[
        dict[str, Literal["system", "user", "assistant", "tool"]],
        Meta(description="Further role names found in the data, and what they mean"),
    ] = msgspec.field(default_factory=dict)
    skip_bad_rows: Annotated[
        bool, Meta(description="Drop and report rows that cannot be used, in place of refusing")
    ] = False
    shuffle: Annotated[bool, Meta(description="Draw a new order of rows for each epoch")] = True
    num_workers: Annotated[
        NonNegativeInt, Meta(description="Processes that render and tokenize; 0 uses this one")
    ] = 1
