"""Section ``checkpoints``: what is saved, what is kept, and what a run resumes from."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import PositiveInt, Section


class CheckpointsSection(Section, frozen=True):
    """What is saved, what is kept, and what a run resumes from."""

    save_strategy: Annotated[
        Literal["no", "steps", "epoch"], Meta(description="When a checkpoint is saved unasked")
    ] = "steps"
    every_steps: Annotated[PositiveInt, Meta(description="Steps between checkpoints")] = 1000
    keep: Annotated[
        PositiveInt, Meta(description="Newest checkpoints that pruning spares, beside the best")
    ] = 3
    resume: Annotated[
        str,
        Meta(description="auto: newest complete checkpoint of the run; no: none; or a checkpoint"),
    ] = "auto"
    save_on_each_node: Annotated[
        bool, Meta(description="Each host keeps its own shards in its own output folder")
    ] = False
