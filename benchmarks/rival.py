"""What a skilled user writes by hand, on the same rows: the mark that our engine is held against.

    python benchmarks/rival.py '{"shapes": "demo", "row": 256, "rows": 8}'

The Hugging Face model with random bfloat16 weights (the very numbers our engine gets), Liger's
kernels with fused linear cross entropy where liger_kernel is installed, gradient checkpointing of
every block, and one Adafactor object per parameter that steps in the parameter's gradient hook and
frees the gradient. Attention is ``sdpa`` over whole rows: without a mask the model sees no
documents, and a mask would cost it more. The whole step is one batch, since gradients that are
freed in hooks cannot add up.

Prints one JSON line with the fields of ``our_step.py``. 4,096 x 4 of 7B shapes takes about 45 s.
"""

import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from typing import Any

import torch
from machine import choose_device, synchronize
from our_step import Trial, _between, _mark, _peaks, utilization
from shapes import dimensions, draw_weights, random_rows
from torch import Tensor, nn

from workbench.data.loader import StepRows
from workbench.model.families import Dimensions


def apply_liger(family: str) -> str:
    """Put Liger's kernels in place of the model's own; say what was done."""
    try:
        from liger_kernel.transformers import (
            apply_liger_kernel_to_llama,
            apply_liger_kernel_to_mistral,
        )
    except ImportError as error:
        return f"no Liger kernels ({error})"
    apply = apply_liger_kernel_to_mistral if family == "mistral" else apply_liger_kernel_to_llama
    apply(
        rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=True
    )
    return "Liger kernels, fused linear cross entropy"


def make_model(dims: Dimensions, family: str, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Build the Hugging Face model on the device, with the weights our engine gets."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    config_of, model_of = kinds[family]
    config = config_of(
        vocab_size=dims.vocabulary_size,
        hidden_size=dims.hidden_size,
        num_hidden_layers=dims.num_layers,
        intermediate_size=dims.intermediate_size,
        num_attention_heads=dims.num_heads,
        num_key_value_heads=dims.num_key_value_heads,
        rms_norm_eps=dims.norm_epsilon,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        use_cache=False,
        **({"sliding_window": None} if family == "mistral" else {}),
    )
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(dtype)
    with device:
        model = model_of(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        draw_weights(model.named_parameters(), device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model


def step_in_hooks(model: nn.Module) -> str:
    """Give each parameter an optimizer that steps when its gradient is there; say which."""
    try:
        from transformers.optimization import Adafactor

        name = "transformers Adafactor"

        def new(parameter: nn.Parameter) -> torch.optim.Optimizer:
            return Adafactor([parameter], lr=1e-6, scale_parameter=False, relative_step=False)

    except ImportError:
        name = "torch.optim.Adafactor"

        def new(parameter: nn.Parameter) -> torch.optim.Optimizer:
            return torch.optim.Adafactor([parameter], lr=1e-6)

    optimizers = {parameter: new(parameter) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return name


def measure(trial: Trial) -> dict[str, Any]:
    """Run a trial of the baseline; give the fields that ``our_step`` gives."""
    device = choose_device()
    torch.set_float32_matmul_precision("high")
    dims = dimensions(trial.shapes, trial.layers)
    family = "mistral" if "mistral" in trial.shapes else "llama"
    liger = apply_liger(family) if device.type == "cuda" else "no Liger kernels on the CPU"
    model = make_model(dims, family, getattr(torch, trial.dtype), device)
    optimizer = step_in_hooks(model)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rows = [
        random_rows(dims, trial.rows, trial.row, 1, seed, one_document=trial.one_document)
        for seed in range(1, trial.warmup + trial.steps + 1)
    ]
    inputs = [_inputs(each, device) for each in rows]
    warmup_seconds, loss = [], torch.zeros(())
    for ids, labels in inputs[: trial.warmup]:
        begin = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        synchronize(device)
        warmup_seconds.append(round(time.perf_counter() - begin, 3))
    marks = [_mark(device)]
    for ids, labels in inputs[trial.warmup :]:
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        marks.append(_mark(device))
    synchronize(device)
    seconds = [round(_between(one, other), 4) for one, other in itertools.pairwise(marks)]
    return {
        "system": f"Hugging Face, {liger}, checkpointing, {optimizer} in hooks",
        "trial": dataclasses.asdict(trial),
        "seconds": seconds,
        "warmup_seconds": warmup_seconds,
        "tokens_per_second": round(trial.tokens / statistics.median(seconds), 1),
        "loss": float(loss.detach()),
        "layers": dims.num_layers,
        **_peaks(device),
        **utilization(dims, rows[trial.warmup :], seconds, device),
    }


def _inputs(rows: StepRows, device: torch.device) -> tuple[Tensor, Tensor]:
    (batch,) = rows.microbatches
    ids = torch.from_numpy(batch.ids).long()
    labels = ids.masked_fill(~torch.from_numpy(batch.targets), -100)
    return ids.to(device), labels.to(device)


def main() -> int:
    trial = Trial(**json.loads(sys.argv[1]))
    try:
        print(json.dumps(measure(trial)), flush=True)
    except torch.OutOfMemoryError as error:
        failed = {"trial": dataclasses.asdict(trial), "failed": "OutOfMemoryError"}
        print(json.dumps(failed | {"system": "rival", "message": str(error)[:500]}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
