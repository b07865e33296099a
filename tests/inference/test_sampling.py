"""How the next token is chosen: the distributions of transformers, row by row."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workbench.inference.sampling import Sampling, choose_tokens, logprobs_of, penalise

NUM_DRAWS = 4000
DRAWS = [(at + 0.5) / NUM_DRAWS for at in range(NUM_DRAWS)]
LOGITS_V = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2


def shares_of(rule: Sampling) -> torch.Tensor:
    """Give how often each token comes, over draws that are evenly spread."""
    chosen = choose_tokens(LOGITS_V.expand(NUM_DRAWS, -1), [rule] * NUM_DRAWS, DRAWS)
    return chosen.bincount(minlength=LOGITS_V.numel()) / NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.1), (12, 0.8, 0.05), (1, 1e-6, 1.0)],
)
def test_tokens_come_as_often_as_transformers_says(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rule = Sampling(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(torch.tensor([[0]]), LOGITS_V[None].clone())[0].softmax(-1)
    found = shares_of(rule)
    # Evenly spread draws count each share to within one draw at either end.
    assert (found - expected).abs().max() <= 2 / NUM_DRAWS
    assert found[expected == 0].sum() == 0


def test_a_row_is_chosen_as_if_it_were_alone() -> None:
    logits_RV = torch.randn(6, 50, generator=torch.Generator().manual_seed(5)) * 2
    rules = [
        Sampling(max_tokens=1, temperature=temperature, top_k=top_k)
        for temperature, top_k in [(0, 0), (1, 0), (1, 7), (0.5, 0), (0, 3), (2, 9)]
    ]
    draws = [0.2, 0.93, 0.6, 0.4, 0.1, 0.77]
    together = choose_tokens(logits_RV, rules, draws).tolist()
    alone = [
        choose_tokens(logits_RV[row : row + 1], [rules[row]], [draws[row]]).item()
        for row in range(6)
    ]
    assert together == alone
    assert together[0] == int(logits_RV[0].argmax())
    assert together != logits_RV.argmax(-1).tolist()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_the_ends_of_the_draws_take_tokens_that_may_come(draw: float, top_p: float) -> None:
    logits_V = torch.full((1000,), float("-inf"))
    logits_V[400:600] = 0
    rule = Sampling(max_tokens=1, top_p=top_p)
    assert 400 <= choose_tokens(logits_V[None], [rule], [draw]).item() < 600


def test_what_was_seen_is_penalised_as_in_transformers() -> None:
    seen = [3, 8, 8, 40]
    is_seen_V = torch.zeros(50, dtype=torch.bool)
    is_seen_V[seen] = True
    processor = RepetitionPenaltyLogitsProcessor(1.4)
    expected = processor(torch.tensor([seen]), LOGITS_V[None].clone())[0]
    assert torch.equal(penalise(LOGITS_V, is_seen_V, 1.4), expected)
    assert not torch.equal(expected, LOGITS_V)


def test_log_probabilities_name_the_token_and_the_likeliest() -> None:
    logs = LOGITS_V.log_softmax(-1)
    (entry,) = logprobs_of(LOGITS_V[None], [7], 3)
    assert (entry.token_id, entry.logprob) == (7, pytest.approx(logs[7].item()))
    assert [number for number, _ in entry.top] == logs.topk(3).indices.tolist()
    assert logprobs_of(LOGITS_V[None], [7], 0)[0].top == ()
