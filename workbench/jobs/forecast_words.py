"""A forecast in the words of a check: how long a run takes, and what to do where it does not fit.

Knows no file and no machine. Invariant: a remedy that is named was estimated and fits, or is said
to leave it tight.
"""

import shlex

from workbench.config.load import ResolvedConfig, key_value_words, typed_words
from workbench.config.memory_levers import Lever, lever_words
from workbench.config.memory_plan import Estimate, gib_enough, needed_budget
from workbench.config.memory_ways import Combination, hardware_words
from workbench.config.run_time import occasion_words, run_words, seconds_words


def time_words(found: Estimate) -> str:
    """Say how long a run takes, or what of it is known; and what that rests on."""
    if found.measured is None and found.rates.is_assumed and not found.fit.is_gpu:
        return "how fast this CPU is will be known once a run of a model as wide has ended here"
    step = found.seconds_per_step
    speed = found.fit.step_tokens / step
    words = f"{seconds_words(step)} per step, {speed:,.0f} tokens/s"
    if (whole := run_words(found.run_time)) is not None:
        words = f"{whole}; {words}"
    else:
        for each in found.run_time.occasions:
            words += f"; {each.kind} {occasion_words(each)}"
    basis = found.rates.basis if found.measured is None else f"as in {found.measured.name}"
    return f"{words}; {basis}"


def memory_remedy(found: Estimate, resolved: ResolvedConfig) -> str:
    """Name the cheapest way out that this version has, and where the others are shown."""
    typed = ["workbench estimate -t", shlex.quote(resolved.name), *typed_words(resolved)]
    more = f"{' '.join(typed)} shows more"
    usable = [lever for lever in found.levers if lever.can_start]
    if found.verdict == "tight" and usable:
        best = next((lever for lever in usable if lever.verdict == "fits"), None)
        if best is not None:
            return f"{lever_words(best)}; {more}"
        return f"{lever_words(usable[0])}, which is still tight; {more}"
    # What changes training alone is worse than changes that leave it as it is.
    ways: list[Lever | Combination] = [*usable, *found.proposals]
    # Of ways that are as gentle, the one with a single change comes first.
    needed = needed_budget(found)
    for way in sorted(ways, key=lambda way: way.changes_training):
        if needed is not None and set(way.overrides) == {"memory.budget_gib"}:
            continue  # less than all of the card is enough, as said below
        if way.can_start:
            keys = " ".join(key_value_words(way.overrides))
            change = ", which changes training" if way.changes_training else ""
            return f"set {keys}, with which it fits{change}; {more}"
    if needed is not None:
        return f"set memory.budget_gib to {gib_enough(needed)} or more, with as much free; {more}"
    if found.hardware is not None:
        return f"what would hold it: {hardware_words(found.hardware, found.fit)}; {more}"
    return f"no setting of this version makes more room; {more}"
