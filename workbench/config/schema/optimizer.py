"""Section ``optimizer``: how a weight moves."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import NonNegativeInt, Section


class OptimizerSection(Section, frozen=True):
    """How a weight moves: the rule, its rate over the steps, and the rounding of the result."""

    name: Annotated[
        Literal["adafactor", "adamw", "adamw_8bit", "adamw_4bit"],
        Meta(
            description="Update rule; adafactor keeps factored fp32 statistics and no momentum, "
            "adamw two fp32 moments; adamw_8bit and adamw_4bit need torchao"
        ),
    ] = "adafactor"
    learning_rate: Annotated[
        float, Meta(ge=0.0, description="Rate after warm-up; scale by the square root of the batch")
    ] = 5e-6
    warmup_steps: Annotated[
        NonNegativeInt, Meta(description="Steps of linear warm-up; step k uses rate x k / steps")
    ] = 200
    cooldown_steps: Annotated[
        NonNegativeInt, Meta(description="Steps of linear decay to zero at the end of the run")
    ] = 0
    weight_decay: Annotated[
        float, Meta(ge=0.0, description="Share of a weight taken off per step, times the rate")
    ] = 1e-3
    rounding: Annotated[
        Literal["stochastic", "nearest", "exact"],
        Meta(
            description="How an updated weight becomes bfloat16 again; exact keeps the other 16 "
            "bits of fp32 weights beside them"
        ),
    ] = "stochastic"
    clip_by: Annotated[
        Literal["update", "previous_norm", "exact_norm"],
        Meta(
            description="update: Adafactor's own bound, none for AdamW; previous_norm: by the last "
            "step's norm; exact_norm: in pipelines alone"
        ),
    ] = "update"
    clip_norm: Annotated[
        float,
        Meta(gt=0.0, description="Bound of the gradient norm for previous_norm and exact_norm"),
    ] = 1.0
