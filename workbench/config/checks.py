"""Rules between keys, each with its remedy, and what this version cannot start.

A rule here needs two keys; what one key may be stands in the schema. Knows nothing of files: a
problem names its key, and ``load`` adds who states it. Invariant: a rule reads the config and
nothing else.
"""

from collections.abc import Iterator

from workbench.config.model_facts import ModelFacts
from workbench.config.problems import Problem
from workbench.config.schedule_facts import broken_rules, stages_per_rank
from workbench.config.schema.config import Config


def check(config: Config) -> Iterator[Problem]:
    """Give the contradictions between the keys of a config: it is wrong on any machine."""
    yield from _splits(config)
    yield from _steps(config)
    yield from _rounding(config)
    yield from _engine(config)
    yield from _schedule(config)


def _splits(config: Config) -> Iterator[Problem]:
    train_end, validation_end = config.data.split_at
    if not 0.0 < train_end <= validation_end <= 1.0:
        yield Problem(
            key="data.split_at",
            what=f"the shares {train_end:g} and {validation_end:g} do not ascend from above 0 to 1",
            remedy="write two shares such as [0.80, 0.95]",
        )
    elif train_end == validation_end and config.evaluation.every_steps > 0:
        yield Problem(
            key="evaluation.every_steps",
            what="there is nothing to evaluate: data.split_at leaves no validation rows",
            remedy="set evaluation.every_steps: 0, or give data.split_at two different shares",
            others=("data.split_at",),
        )


def _steps(config: Config) -> Iterator[Problem]:
    optimizer, max_steps = config.optimizer, config.training.max_steps
    # A run may end within its warm-up (a trial of ten steps does); a cool-down that begins before
    # the warm-up has ended would ask for two rates at once.
    if (
        max_steps is not None
        and optimizer.cooldown_steps > 0
        and optimizer.warmup_steps + optimizer.cooldown_steps > max_steps
    ):
        yield Problem(
            key="optimizer.cooldown_steps",
            what=f"{optimizer.warmup_steps} steps of warm-up and {optimizer.cooldown_steps} of "
            f"cool-down do not fit into {max_steps} steps",
            remedy="shorten one of them, or raise training.max_steps",
            others=("optimizer.warmup_steps", "training.max_steps"),
        )
    microbatches = config.batch.microbatches
    if microbatches != "auto" and microbatches > config.batch.train:
        yield Problem(
            key="batch.microbatches",
            what=f"{microbatches} parts cannot be made of {config.batch.train} rows",
            remedy="set at most batch.train microbatches, or auto",
            others=("batch.train",),
        )


def _rounding(config: Config) -> Iterator[Problem]:
    if config.optimizer.rounding == "exact" and config.model.dtype == "float32":
        yield Problem(
            key="optimizer.rounding",
            what="weights of float32 have no low bits that could be kept beside them: they are "
            "exact as they are",
            remedy="set optimizer.rounding: nearest, or model.dtype: bfloat16",
            others=("model.dtype",),
        )


def _schedule(config: Config) -> Iterator[Problem]:
    """Give the rules of the schedule that the pipeline's numbers break."""
    if config.training.engine != "pipeline":
        return
    pipeline, microbatches = config.pipeline, config.batch.microbatches
    for broken in broken_rules(
        pipeline.schedule, pipeline.ranks, pipeline.stages_per_rank, microbatches
    ):
        yield Problem(
            key=broken.key,
            what=broken.what,
            remedy=broken.remedy,
            others=("pipeline.schedule", "pipeline.ranks"),
        )


def _engine(config: Config) -> Iterator[Problem]:
    if config.training.engine != "layer_major":
        return
    if config.optimizer.clip_by == "exact_norm":
        yield Problem(
            key="optimizer.clip_by",
            what="the norm is known only after the first blocks have been updated",
            remedy="set optimizer.clip_by: previous_norm, or keep update, Adafactor's own bound",
            others=("training.engine",),
        )
    if config.pipeline.ranks > 1:
        yield Problem(
            key="pipeline.ranks",
            what=f"the layer-major engine uses one GPU, not {config.pipeline.ranks}",
            remedy="set pipeline.ranks: 1, or training.engine: pipeline",
            others=("training.engine",),
        )


def refused_at_start(config: Config) -> list[Problem]:
    """Give what keeps a config from being started: keys left open, and engines not built yet.

    Such a config resolves, lists and shows; preflight refuses it before anything is written.
    """
    return [*left_open(config), *not_in_this_version(config)]


def left_open(config: Config) -> Iterator[Problem]:
    """Give the keys without which no run can be: a config may leave them to the command line."""
    if config.model.path is None:
        yield Problem(
            key="model.path",
            what="no model is named",
            remedy="give a model folder: --model PATH, or model.path in the config",
        )
    if not config.data.sources:
        yield Problem(
            key="data.sources",
            what="no data set is named",
            remedy="name one: data.sources.NAME.path=FILE, or data.sources in the config",
        )


def not_in_this_version(config: Config) -> Iterator[Problem]:
    """Give the keys that ask for an engine which is not built; a dry run only names them."""
    if config.training.engine == "pipeline":
        yield _refused(
            "training.engine",
            "the pipeline engine",
            "train on one GPU with a 1gpu config, or look at the command with --dry-run",
        )
    if config.pipeline.replicas > 1:
        yield _refused("pipeline.replicas", "training several replicas", "set pipeline.replicas: 1")
    if config.checkpoints.save_on_each_node:
        yield _refused(
            "checkpoints.save_on_each_node",
            "training on several hosts",
            "set checkpoints.save_on_each_node: false",
        )


def _refused(key: str, what: str, remedy: str) -> Problem:
    return Problem(key=key, what=f"{what} is not in this version", remedy=remedy)


def check_model(config: Config, facts: ModelFacts) -> Iterator[Problem]:
    """Give the contradictions between a config and the model it names."""
    pipeline = config.pipeline
    num_stages = pipeline.ranks * stages_per_rank(pipeline.schedule, pipeline.stages_per_rank)
    if config.training.engine == "pipeline" and num_stages > facts.num_layers:
        yield Problem(
            key="pipeline.ranks",
            what=f"{num_stages} stages cannot be cut from a model of {facts.num_layers} blocks",
            remedy="lower pipeline.ranks or pipeline.stages_per_rank",
            others=("pipeline.stages_per_rank", "model.path"),
        )
    longest = facts.longest_document or facts.max_positions
    if longest is not None and config.data.max_length > longest:
        yield Problem(
            key="data.max_length",
            what=f"the model takes {longest} positions, not {config.data.max_length}",
            remedy=f"set data.max_length to {longest} or less",
            others=("model.path",),
        )
