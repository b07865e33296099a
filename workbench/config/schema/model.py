"""Section ``model``: which weights a run begins with, and in which precision."""

from typing import Annotated, Literal

from msgspec import Meta

from workbench.config.schema.section import Section


class ModelSection(Section, frozen=True):
    """Which weights a run begins with, and in which precision."""

    path: Annotated[
        str | None,
        Meta(description="Model folder in Hugging Face layout: config.json, weights, tokenizer"),
    ] = None
    weights: Annotated[
        Literal["load", "random"],
        Meta(description="load reads the weights; random draws them from training.seed"),
    ] = "load"
    dtype: Annotated[
        Literal["bfloat16", "float32"], Meta(description="Precision of weights and activations")
    ] = "bfloat16"
    attention: Annotated[
        Literal["auto", "varlen", "sdpa", "flex", "dense"],
        Meta(
            description="Attention within documents; auto: the fastest that passes its test; flex "
            "is compiled first"
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Meta(description="Compile norms, rotary and gates with torch.compile, not our kernels"),
    ] = False
