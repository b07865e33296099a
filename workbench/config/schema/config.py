"""The whole of a resolved config: every section, every key, nothing inherited."""

from typing import Annotated

import msgspec
from msgspec import Meta

from workbench.config.schema.batch import BatchSection
from workbench.config.schema.checkpoints import CheckpointsSection
from workbench.config.schema.data import DataSection
from workbench.config.schema.intervals import EvaluationSection, LoggingSection, SamplesSection
from workbench.config.schema.memory import MemorySection
from workbench.config.schema.model import ModelSection
from workbench.config.schema.optimizer import OptimizerSection
from workbench.config.schema.pipeline import PipelineSection
from workbench.config.schema.section import Section
from workbench.config.schema.training import TrainingSection


class Config(Section, frozen=True):
    """What a run should be."""

    description: Annotated[str, Meta(description="The line `workbench ls` shows")] = ""
    model: ModelSection = msgspec.field(default_factory=ModelSection)
    data: DataSection = msgspec.field(default_factory=DataSection)
    batch: BatchSection = msgspec.field(default_factory=BatchSection)
    optimizer: OptimizerSection = msgspec.field(default_factory=OptimizerSection)
    memory: MemorySection = msgspec.field(default_factory=MemorySection)
    pipeline: PipelineSection = msgspec.field(default_factory=PipelineSection)
    evaluation: EvaluationSection = msgspec.field(default_factory=EvaluationSection)
    logging: LoggingSection = msgspec.field(default_factory=LoggingSection)
    checkpoints: CheckpointsSection = msgspec.field(default_factory=CheckpointsSection)
    samples: SamplesSection = msgspec.field(default_factory=SamplesSection)
    training: TrainingSection = msgspec.field(default_factory=TrainingSection)
