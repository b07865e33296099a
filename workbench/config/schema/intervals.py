"""Sections ``evaluation``, ``logging``, ``samples``: what happens every so many steps."""

from typing import Annotated

import msgspec
from msgspec import Meta

from workbench.config.schema.section import NonNegativeInt, PositiveInt, Section


class EvaluationSection(Section, frozen=True):
    """When the validation split is evaluated, and how much of it."""

    every_steps: Annotated[
        NonNegativeInt, Meta(description="Evaluate after every so many steps; 0: never")
    ] = 100
    max_batches: Annotated[
        PositiveInt | None, Meta(description="Evaluation batches at most; null: all")
    ] = None


class LoggingSection(Section, frozen=True):
    """How often a metrics record is written."""

    every_steps: Annotated[PositiveInt, Meta(description="Steps in a metrics record")] = 10
    name: Annotated[
        str | None, Meta(description="Name of the run in TensorBoard; null: the run folder's")
    ] = None


class SamplesSection(Section, frozen=True):
    """Prompts answered while training goes on."""

    prompts: Annotated[list[str], Meta(description="What the model is asked")] = msgspec.field(
        default_factory=list
    )
    every_steps: Annotated[
        PositiveInt, Meta(description="Ask after every so many steps, and after the last")
    ] = 100
    max_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Tokens of a reply at most; prompt and reply fit a row. Each token takes "
            "a pass of the whole model",
        ),
    ] = 64
    temperature: Annotated[
        float, Meta(ge=0.0, description="0 takes the likeliest token; above it tokens are drawn")
    ] = 0.0
