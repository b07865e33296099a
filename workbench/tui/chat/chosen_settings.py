"""How the next answers are made, as long as the program runs, and what is said of it.

Invariant: a locked seed is that of every answer until it is unlocked.
"""

import random
from dataclasses import replace

from workbench.jobs.chat_settings import BEGINNING, FIELD_OF, FIELDS, ChatSettings
from workbench.tui import keys

_SEEDS = 10_000  # short enough to be read aloud and typed again


class ChosenSettings:
    """Settings that the user has chosen."""

    def __init__(self) -> None:
        self.settings = BEGINNING

    @property
    def is_locked(self) -> bool:
        """Every answer is made with the same seed."""
        return self.settings.seed is not None

    def lock(self, seed: int | None) -> int:
        """Keep a seed, or one that is drawn now; give it."""
        kept = random.randrange(_SEEDS) if seed is None else seed
        self.settings = replace(self.settings, seed=kept)
        return kept

    def unlock(self) -> None:
        """Draw a seed for each answer."""
        self.settings = replace(self.settings, seed=None)

    def for_an_answer(self) -> ChatSettings:
        """Give the settings of one answer, with a seed in any case."""
        if self.is_locked:
            return self.settings
        return replace(self.settings, seed=random.randrange(_SEEDS))

    def lines(self) -> list[tuple[str, str]]:
        """Give name and value of each setting that matters: those always looked for, those set."""
        always = ("temperature", "max_tokens", "seed")
        lines = []
        for each in FIELDS:
            value = each.written(self.settings)
            if each.name in always or value:
                does = "unlocks" if self.is_locked else "locks"
                key = f" · {keys.hint('lock_seed')} {does}" if each.name == "seed" else ""
                lines.append((each.label, (value or each.unset) + key))
        return lines

    def brief(self) -> str:
        """Say in a few words what is set: T 0.7 · seed 7 locked."""
        parts = [f"T {FIELD_OF['temperature'].shown(self.settings)}"]
        for each in FIELDS:
            value = each.written(self.settings)
            if value and each.name not in ("temperature", "seed"):
                parts.append(f"{each.label} {value}")
        if self.is_locked:
            parts.append(f"seed {self.settings.seed} locked")
        return " · ".join(parts)
