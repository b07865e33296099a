"""Section ``memory``: what may lie where."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import Section


class MemorySection(Section, frozen=True):
    """What may lie on the GPU, and what waits in pinned host RAM."""

    budget_gib: Annotated[
        Annotated[float, Meta(gt=0.0, le=100_000.0)] | None,
        Meta(description="GiB of GPU memory a rank may take; null: what is free on the card"),
    ] = None
    resident_fraction: Annotated[
        Literal["auto"] | Annotated[float, Meta(ge=0.0, le=1.0)],
        Meta(description="Share of blocks that stay on the GPU; the others come from host RAM"),
    ] = "auto"
    block_inputs: Annotated[
        Literal["auto", "gpu", "pinned"], Meta(description="Where the kept block inputs lie")
    ] = "auto"
    recompute: Annotated[
        Literal["auto", "full", "selective", "none"],
        Meta(
            description="What backward computes again: full all of a block, selective its norms "
            "and MLP, none no product; auto: what the budget asks for"
        ),
    ] = "auto"
    sum_dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        Meta(description="Precision of gradient sums; auto: bfloat16 up to 4 microbatches"),
    ] = "auto"
