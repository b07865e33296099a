"""Section ``pipeline``: how a model is spread over several ranks."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import PositiveInt, Section


class PipelineSection(Section, frozen=True):
    """How a model is spread over several ranks; read when training.engine is pipeline."""

    ranks: Annotated[PositiveInt, Meta(description="GPUs, all hosts together")] = 1
    schedule: Annotated[
        Literal[
            "auto",
            "gpipe",
            "1f1b",
            "interleaved_1f1b",
            "interleaved_zero_bubble",
            "zbv",
            "link_aware",
        ],
        Meta(description="Order of forwards and backwards"),
    ] = "auto"
    stages_per_rank: Annotated[
        Literal["auto"] | PositiveInt, Meta(description="auto: what the schedule needs")
    ] = "auto"
    replicas: Annotated[
        PositiveInt, Meta(description="Copies of the pipeline, each with its rows")
    ] = 1
