"""The next token of every row of a batch, each by its own rules and its own random numbers.

Knows tensors, no model and no tokenizer. Invariant: what a row gets depends on its logits, its
rules and its draw alone, never on the rows beside it, so a seed repeats a reply whoever else asks.

Shapes: R rows, V tokens of the vocabulary, K most likely ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Below it logits of a few hundred become too large for float32, and all other shares are 0 anyway.
_LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to end; every value is in effect, none is a default.

    ``temperature`` 0 takes the likeliest token; then top_p, top_k and min_p play no part.
    ``top_k`` 0 and ``min_p`` 0 are off. ``seed`` None draws anew each time. ``num_top`` asks for
    the log probability of each token and of so many likeliest ones beside it; None for none.
    ``of_prompt`` asks for those of the prompt's tokens as well.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    num_top: int | None = None
    of_prompt: bool = False

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is taken: at 0, and where dividing by it leaves no numbers."""
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def is_narrowed(self) -> bool:
        """Only some of the tokens may be drawn, so they have to be put in order."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class TokenLogprob:
    """What the model thought of a token, as natural logarithm of a probability.

    It is the model's own distribution: before penalties, temperature and what narrows the choice.

    Attributes:
        token_id: the token.
        logprob: of it.
        top: id and logarithm of the likeliest ones, in order, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose_tokens(
    logits_RV: torch.Tensor, rules: Sequence[Sampling], draws: Sequence[float]
) -> torch.Tensor:
    """Choose one token for each row.

    The order of the rules is that of ``transformers``: temperature, top_k, top_p, min_p. A draw is
    where in the accumulated probabilities the token lies: of three tokens with 0.5, 0.3 and 0.2,
    the draw 0.6 takes the second.

    Args:
        logits_RV: (R, V) floating point, penalties already applied.
        rules: of each row.
        draws: (R) in [0, 1), one random number for each row; unused where temperature is 0.

    Returns:
        (R,) int64 on the device of the logits.
    """
    if all(rule.is_greedy for rule in rules):
        return logits_RV.argmax(-1)
    chosen_R = logits_RV.argmax(-1)
    for is_narrowed in (False, True):
        rows = [
            row
            for row, rule in enumerate(rules)
            if not rule.is_greedy and rule.is_narrowed is is_narrowed
        ]
        if not rows:
            continue
        draw = _draw_narrowed if is_narrowed else _draw_freely
        some = [rules[row] for row in rows]
        place = torch.tensor(rows, device=logits_RV.device)
        temperatures = _column([rule.temperature for rule in some], logits_RV)
        scaled_RV = logits_RV[place].float() / temperatures
        draws_R1 = _column([draws[row] for row in rows], logits_RV, torch.float64)
        chosen_R[place] = draw(scaled_RV, some, draws_R1)
    return chosen_R


def _draw_freely(
    scaled_RV: torch.Tensor, _: Sequence[Sampling], draws_R1: torch.Tensor
) -> torch.Tensor:
    accumulated_RV = scaled_RV.softmax(-1).cumsum(-1, dtype=torch.float64)
    return _at(accumulated_RV, draws_R1)


def _draw_narrowed(
    scaled_RV: torch.Tensor, rules: Sequence[Sampling], draws_R1: torch.Tensor
) -> torch.Tensor:
    size = scaled_RV.shape[-1]
    sorted_RV, ids_RV = scaled_RV.sort(stable=True, dim=-1, descending=True)
    shares_RV = sorted_RV.softmax(-1)
    ranks_V = torch.arange(size, device=scaled_RV.device)
    most_R1 = _column([rule.top_k or size for rule in rules], ranks_V, torch.int64)
    is_kept_RV = ranks_V < most_R1
    shares_RV = shares_RV * is_kept_RV
    shares_RV = shares_RV / shares_RV.sum(-1, keepdim=True)
    before_RV = shares_RV.cumsum(-1) - shares_RV
    is_kept_RV &= before_RV < _column([rule.top_p for rule in rules], shares_RV)
    is_kept_RV &= shares_RV >= shares_RV[:, :1] * _column([rule.min_p for rule in rules], shares_RV)
    # However narrow the rules are, the likeliest token is left.
    is_kept_RV[:, 0] = True
    accumulated_RV = (shares_RV * is_kept_RV).cumsum(-1, dtype=torch.float64)
    return ids_RV.gather(-1, _at(accumulated_RV, draws_R1)[:, None])[:, 0]


def _at(accumulated_RV: torch.Tensor, draws_R1: torch.Tensor) -> torch.Tensor:
    """Find the first token at which the accumulated shares exceed the draw: (R,) int64."""
    wanted_R1 = draws_R1 * accumulated_RV[:, -1:]
    found_R = torch.searchsorted(accumulated_RV, wanted_R1, right=True)[:, 0]
    return found_R.clamp_(max=accumulated_RV.shape[-1] - 1)


def _column(
    values: Sequence[float], like: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def penalise(logits_V: torch.Tensor, is_seen_V: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make tokens that were seen less likely, as ``transformers`` does (CTRL, section 4.1).

    Args:
        logits_V: (V,) of one row.
        is_seen_V: (V,) bool, the tokens of prompt and reply.
        penalty: what positive logits are divided by and negative ones multiplied with.
    """
    weakened_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
    return torch.where(is_seen_V, weakened_V, logits_V)


def logprobs_of(
    logits_RV: torch.Tensor, token_ids: Sequence[int], num_top: int
) -> list[TokenLogprob]:
    """Give what the model thought of one token per row.

    Args:
        logits_RV: (R, V) as the model gave them.
        token_ids: (R) the tokens in question.
        num_top: likeliest tokens to name beside each.
    """
    logs_RV = logits_RV.float().log_softmax(-1)
    chosen_R1 = logs_RV.gather(-1, torch.tensor(token_ids, device=logs_RV.device)[:, None])
    top_RK, ids_RK = logs_RV.topk(min(num_top, logs_RV.shape[-1]), dim=-1)
    return [
        TokenLogprob(token_id, logprob[0], tuple(zip(ids, tops, strict=True)))
        for token_id, logprob, ids, tops in zip(
            token_ids, chosen_R1.tolist(), ids_RK.tolist(), top_RK.tolist(), strict=True
        )
    ]
