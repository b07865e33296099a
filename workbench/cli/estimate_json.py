"""An estimate for machines: bytes and seconds as numbers, under names that stay."""

from dataclasses import asdict

from workbench.config.memory_plan import Estimate, basis_words
from workbench.config.model_facts import ModelFacts
from workbench.config.run_time import RunTime


def estimate_json(found: Estimate, name: str, facts: ModelFacts) -> dict[str, object]:
    """Give an estimate for machines: bytes and seconds as numbers."""
    fit = found.fit
    return {
        "model": {
            "name": name,
            "family": facts.family,
            "parameters": facts.num_parameters,
            "is_trainable": facts.is_trainable,
        },
        "verdict": found.verdict,
        "total_bytes": found.total,
        "budget_bytes": fit.budget_bytes,
        "budget_source": fit.budget_source,
        "margin_bytes": found.margin_bytes,
        "peak_phase": fit.worst.peak_phase,
        "worst_rank": fit.worst.rank,
        "basis": basis_words(found),
        "is_measured_form": fit.is_measured_form,
        "device": "cuda" if fit.is_gpu else "cpu",
        "microbatches": fit.form.microbatches,
        "least_budget_bytes": fit.least,
        "plan": asdict(fit.form),
        "ranks": [
            {
                "rank": rank.rank,
                "blocks": rank.blocks,
                "alive": rank.alive,
                "total_bytes": rank.total,
                "peak_phase": rank.peak_phase,
                "parts": [{"label": part.label, "bytes": part.num_bytes} for part in rank.parts],
                "host_bytes": rank.host.total,
            }
            for rank in fit.ranks
        ],
        "host": {"needed_bytes": fit.host_needed, "available_bytes": fit.host_available},
        "disk": {
            "checkpoint_bytes": found.checkpoint_bytes,
            "num_checkpoints": found.num_checkpoints,
        },
        "time": {
            "seconds_per_step": found.seconds_per_step,
            "tokens_per_step": fit.step_tokens,
            "steps_per_epoch": found.steps_per_epoch,
            "predicted_parts": None if fit.step_parts is None else asdict(fit.step_parts),
            "rates": found.rates.basis,
            "run": _run_json(found.run_time),
        },
        "measured": None
        if found.measured is None
        else {
            "run": found.measured.name,
            "gpu_reserved_bytes": found.measured.gpu_reserved_bytes,
            "predicted_bytes": found.measured.predicted_bytes,
            "host_peak_bytes": found.measured.host_peak_bytes,
            "tokens_per_second": found.measured.tokens_per_second,
        },
        "notes": list(fit.notes),
        "levers": [
            {
                "words": lever.words,
                "overrides": dict(lever.overrides),
                "saved_bytes": lever.saved_bytes,
                "time_ratio": lever.time_ratio,
                "changes_training": lever.changes_training,
                "can_start": lever.can_start,
                "verdict": lever.verdict,
                "total_bytes": lever.total,
                "host_bytes": lever.host_bytes,
            }
            for lever in found.levers
        ],
        "proposals": [
            {
                "overrides": dict(proposal.overrides),
                "total_bytes": proposal.found.worst.total,
                "host_bytes": proposal.found.host_needed,
                "verdict": proposal.found.verdict,
                "time_ratio": proposal.time_ratio,
                "changes_training": proposal.changes_training,
                "can_start": proposal.can_start,
            }
            for proposal in found.proposals
        ],
        "hardware": None if found.hardware is None else asdict(found.hardware),
    }


def _run_json(found: RunTime) -> dict[str, object]:
    """Give the whole run's time; null stands for what only prepared data says."""
    return {
        "first_step": found.first_step,
        "last_step": found.last_step,
        "training_seconds": found.training,
        "total_seconds": found.total,
        "occasions": {
            each.kind: {
                "every_steps": each.every_steps,
                "times": each.times,
                "seconds_each": each.seconds,
                "is_most": each.is_most,
                "total_seconds": each.total,
            }
            for each in found.occasions
        },
    }
