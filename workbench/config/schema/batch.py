"""Section ``batch``: how many rows make a step."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import PositiveInt, Section


class BatchSection(Section, frozen=True):
    """How many rows make a step, and in how many parts they pass the model."""

    train: Annotated[PositiveInt, Meta(description="Rows per step, all microbatches together")] = 8
    evaluation: Annotated[PositiveInt, Meta(description="Rows per evaluation batch")] = 16
    microbatches: Annotated[
        Literal["auto"] | PositiveInt,
        Meta(description="Parts in which a step passes the model; auto lets the plan decide"),
    ] = "auto"
