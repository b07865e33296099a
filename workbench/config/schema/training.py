"""Section ``training``: how long, where, and what to do when a number is not one."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import PositiveInt, Section


class TrainingSection(Section, frozen=True):
    """How long a run trains, where, and what it does about a loss that is not finite."""

    engine: Annotated[
        Literal["layer_major", "pipeline"],
        Meta(description="layer_major: one GPU, block by block; pipeline: stages over several"),
    ] = "layer_major"
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="auto: CUDA when there is a GPU, else the CPU"),
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="Seed of every random number of the run")] = 42
    epochs: Annotated[
        float, Meta(gt=0.0, description="Passes over the training rows; the last may be partial")
    ] = 1.0
    max_steps: Annotated[
        PositiveInt | None, Meta(description="End after so many steps; null: what epochs give")
    ] = None
    output_dir: Annotated[
        str | None, Meta(description="The run folder; null: output/<config name>-<number>")
    ] = None
    matmul_precision: Annotated[
        Literal["highest", "high", "medium"],
        Meta(description="Precision of fp32 products, as torch.set_float32_matmul_precision"),
    ] = "high"
    nonfinite: Annotated[
        Literal["stop", "skip"],
        Meta(description="At a loss that is not finite: end the run, or skip the step and go on"),
    ] = "stop"
    deterministic: Annotated[
        bool,
        Meta(description="Only algorithms that repeat bit for bit, even where they are slower"),
    ] = False
