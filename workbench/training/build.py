"""From a resolved config to the parts of a run: the only file here that knows both.

Every other module takes plain values. Reading order: device and seeds, data, plan, weights and
statistics, what resumes, and the loop over all of it.
"""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.config.load import dump_config
from workbench.config.schema.config import Config
from workbench.data.chat_template import ChatTemplate
from workbench.data.loader import Loader
from workbench.data.prepare import PreparedData, prepare
from workbench.data.stops import end_ids_of, stops_of
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, RunError
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions, read_dimensions
from workbench.runs.checkpoints import resume_point
from workbench.runs.host_memory import available_host_memory
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.beside_weights import files_beside_weights
from workbench.training.control_point import ControlPoint
from workbench.training.device import DTYPES, prepare_torch
from workbench.training.distributed import Ranks
from workbench.training.engine.assemble import assemble
from workbench.training.engine.calibration import rates_here
from workbench.training.engine.plan import (
    Plan,
    choose_plan,
    facts_of_dimensions,
    plan_lines,
    take_budget,
    write_plan,
)
from workbench.training.first_weights import draw_first_weights, load_first_weights
from workbench.training.loop import Intervals, Training
from workbench.training.optimizer.choice import new_optimizer
from workbench.training.optimizer.learning_rate import learning_rate
from workbench.training.publisher import Publisher
from workbench.training.report import Report
from workbench.training.samples import GivesLogits, Sampler, Sampling
from workbench.training.state import TrainingState, total_steps
from workbench.training.utilization import Utilization, peak_flops_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A run that is ready to train, its plan, and what says how fast its device can be.

    Attributes:
        training: the loop.
        plan: of the run.
        device: that trains.
        width: of the model.
        dtype: of its weights.
    """

    training: Training
    plan: Plan
    device: torch.device
    width: int
    dtype: torch.dtype


def build(
    run: RunFolder,
    config: Config,
    *,
    device: torch.device,
    ranks: Ranks,
    attempt: int,
    control: ControlPoint,
    publisher: Publisher | None,
    is_restart: bool = False,
) -> Built:
    """Build the run of a folder, resumed where its checkpoints and the config say so.

    Args:
        run: the run folder.
        config: its resolved config.
        device: of this rank.
        ranks: this rank among all.
        attempt: of this start, from 1.
        control: where commands arrive.
        publisher: rank 0's line to the supervisor; None without one.
        is_restart: torchrun starts this attempt again after a failure.

    Raises:
        WorkbenchError: model, data, config or checkpoint are not what they should be.
    """
    prepare_torch(
        config.training.seed + ranks.rank,
        matmul_precision=config.training.matmul_precision,
        deterministic=config.training.deterministic,
    )
    model_folder = _model_folder(config)
    dims = read_dimensions(model_folder)
    dtype = DTYPES[config.model.dtype]
    template = _read_template(run)
    prepared = prepare(config, model_folder, template)
    plan = _plan(config, dims, dtype, device, prepared)
    for line in plan_lines(plan):
        logger.info("%s", line)
    optimizer = new_optimizer(
        config.optimizer.name,
        parameter_shapes(dims),
        dtype=dtype,
        device=device,
        seed=config.training.seed,
        weight_decay=config.optimizer.weight_decay,
        rounding=config.optimizer.rounding,
    )
    row_length = _row_length(config, prepared)
    microbatch_rows = -(-config.batch.train // plan.microbatches)
    engine = assemble(
        plan,
        dims,
        optimizer,
        microbatch_tokens=microbatch_rows * row_length,
        dtype=dtype,
        device=device,
        attention=config.model.attention,
        clip_norm=config.optimizer.clip_norm
        if config.optimizer.clip_by == "previous_norm"
        else None,
        compiled=config.model.compile,
    )
    weights = dict(engine.store.named_tensors())
    content = checkpoint.Content(
        weights=weights,
        statistics=optimizer.named_tensors(),
        companions=dict(engine.store.named_companions()),
        common=files_beside_weights(
            model_folder,
            template=template,
            dtype=config.model.dtype,
            stop_ids=prepared.stop_ids,
            pad_id=prepared.pad_id,
        ),
        device=device,
    )
    rows, validation = _loaders(config, prepared, plan, microbatch_rows)
    sampler = _sampler(
        config,
        engine,
        template,
        pad_id=prepared.pad_id,
        microbatch_rows=microbatch_rows,
        row_length=row_length,
    )
    state = TrainingState()
    resumed = resume_point(run, config.checkpoints.resume, is_restart=is_restart)
    if resumed is None:
        if config.model.weights == "random":
            draw_first_weights(dims, config.training.seed, weights, content.low_bits())
        else:
            load_first_weights(model_folder, dims, weights, content.low_bits())
    else:
        saved = checkpoint.load(resumed, content, dims, rows.steps_per_epoch, ranks)
        engine.restore_previous_norm(saved.previous_gradient_norm)
        state = TrainingState.from_saved(saved)
    max_steps = total_steps(config.training.epochs, rows.steps_per_epoch, config.training.max_steps)
    report = Report(
        run,
        ranks,
        attempt=attempt,
        device=device,
        resumed_step=state.step,
        name=config.logging.name,
        utilization=Utilization(
            facts_of_dimensions(dims),
            peak_flops_of(torch.cuda.get_device_name(device) if device.type == "cuda" else None),
        ),
    )
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    logger.info(
        "%d parameters in %s on %s, %d rows in steps of %d (%d microbatches), step %d of %d",
        num_parameters,
        config.model.dtype,
        device,
        len(prepared.train),
        config.batch.train,
        plan.microbatches,
        state.step,
        max_steps,
    )
    report.text("experiment", f"```\n{dump_config(config)}\n```", state.step)
    report.text(
        "training_info",
        f"{num_parameters} parameters, {len(prepared.train)} rows, {max_steps} steps",
        state.step,
    )
    if ranks.rank == 0:
        write_plan(run.plan, plan)
    training = Training(
        run=run,
        ranks=ranks,
        attempt=attempt,
        engine=engine,
        rows=rows,
        validation=validation,
        rate=functools.partial(
            learning_rate,
            peak=config.optimizer.learning_rate,
            warmup_steps=config.optimizer.warmup_steps,
            cooldown_steps=config.optimizer.cooldown_steps,
            max_steps=max_steps,
        ),
        max_steps=max_steps,
        intervals=_intervals(config, rows.steps_per_epoch),
        nonfinite=config.training.nonfinite,
        content=content,
        control=control,
        publisher=publisher,
        report=report,
        state=state,
        sampler=sampler,
    )
    return Built(training, plan, device, dims.hidden_size, dtype)


def _model_folder(config: Config) -> Path:
    if config.model.path is None:
        raise ConfigError(
            "no model is named", where="model.path", remedy="give a model folder: -M MODEL"
        )
    return Path(config.model.path)


def _read_template(run: RunFolder) -> str:
    try:
        return run.chat_template.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot be read: {error.strerror}",
            where=str(run.chat_template),
            remedy="make the run folder anew: workbench train",
        ) from error


def _plan(
    config: Config,
    dims: Dimensions,
    dtype: torch.dtype,
    device: torch.device,
    prepared: PreparedData,
) -> Plan:
    budget_bytes = take_budget(device, config.memory.budget_gib)
    host = available_host_memory()
    return choose_plan(
        dims,
        dtype=dtype,
        sum_dtype=config.memory.sum_dtype,
        microbatches=config.batch.microbatches,
        rows=config.batch.train,
        row_length=_row_length(config, prepared),
        budget_bytes=budget_bytes,
        resident_fraction=config.memory.resident_fraction,
        block_inputs=config.memory.block_inputs,
        recompute=config.memory.recompute,
        optimizer=config.optimizer.name,
        exact=config.optimizer.rounding == "exact",
        host_bytes=None if host is None else host.available_bytes,
        rates=rates_here(device, width=dims.hidden_size, dtype=dtype),
        seen_tokens=prepared.train.seen_tokens,
        row_documents=prepared.train.max_documents + 1,  # padding is one more
    )


def _row_length(config: Config, prepared: PreparedData) -> int:
    """Give the tokens of the longest row that will pass, of training or validation."""
    if config.data.pad_to == "context":
        return config.data.max_length
    return max(prepared.train.longest, prepared.validation.longest)


def _loaders(
    config: Config, prepared: PreparedData, plan: Plan, microbatch_rows: int
) -> tuple[Loader, Loader | None]:
    """Give the loaders of training and of validation rows; no part is larger than in training."""
    row_length = config.data.max_length if config.data.pad_to == "context" else None
    rows = Loader(
        prepared.train,
        rows_per_step=config.batch.train,
        num_microbatches=plan.microbatches,
        shuffle=config.data.shuffle,
        seed=config.training.seed,
        pad_id=prepared.pad_id,
        row_length=row_length,
    )
    if len(prepared.validation) == 0:
        return rows, None
    validation = Loader(
        prepared.validation,
        rows_per_step=config.batch.evaluation,
        num_microbatches=-(-config.batch.evaluation // microbatch_rows),
        shuffle=False,
        seed=config.training.seed,
        pad_id=prepared.pad_id,
        row_length=row_length,
    )
    return rows, validation


def _sampler(
    config: Config,
    engine: GivesLogits,
    template: str,
    *,
    pad_id: int,
    microbatch_rows: int,
    row_length: int,
) -> Sampler | None:
    """Give what answers the prompts of a config; None where it has none."""
    if not config.samples.prompts:
        return None
    model_folder = _model_folder(config)
    tokenizer = load_tokenizer(model_folder)
    compiled = ChatTemplate(template, tokenizer.special_tokens)
    stop_ids, stop_strings = stops_of(compiled, tokenizer)
    return Sampler(
        engine,
        tokenizer,
        compiled,
        config.samples.prompts,
        Sampling(
            max_tokens=config.samples.max_tokens,
            temperature=config.samples.temperature,
            seed=config.training.seed,
            stop_ids=stop_ids | end_ids_of(model_folder, tokenizer),
            stop_strings=stop_strings,
        ),
        every_steps=config.samples.every_steps,
        microbatch_rows=microbatch_rows,
        row_length=row_length,
        pad_id=pad_id,
    )


def _intervals(config: Config, steps_per_epoch: int) -> Intervals:
    save: int | None
    match config.checkpoints.save_strategy:
        case "steps":
            save = config.checkpoints.every_steps
        case "epoch":
            save = steps_per_epoch
        case "no":
            save = None
    return Intervals(
        log=config.logging.every_steps,
        evaluate=config.evaluation.every_steps or None,
        max_evaluation_batches=config.evaluation.max_batches,
        save=save,
        save_at_end=config.checkpoints.save_strategy != "no",
        keep=config.checkpoints.keep,
    )
