"""What autograd and PyTorch twins take of a pipeline stage: formula only, nothing was measured.

Knows shapes and numbers, no config, no torch.

    hidden (h), query width (q), key width (k), FFN width (f), bytes of an element (e)
"""

from workbench.config.memory_parts import MIB, Phase, chunk_rows
from workbench.config.model_facts import ModelFacts

# What torch's allocator (expandable segments) holds without using it where tensors of many sizes
# come and go, fitted to peaks of 0.6 B to 8 B shapes on one H200: a share of a block's workspace;
# and while the head is at work a share of its chunk, whose tensors are the largest of all.
_GAP_OF_BLOCK, _GAP_OF_HEAD, _GAP_BYTES = 0.07, 0.235, 32 * MIB


def recomputed_block_bytes_per_token(facts: ModelFacts, element: int = 2) -> int:
    """Give the bytes per token that the backward pass of one recomputed block takes at its worst.

    Three moments compete. *MLP*: both norms' fp32 copies and results (2 x 8h in bfloat16), the
    residual (2h), queries, keys, values and attention's result (4q + 4k), and seven tensors of the
    MLP's width (gate, its SiLU, up, product, and the gradients of product, up and SiLU).
    *Norm*: its backward holds five fp32 copies. *Attention*: gradients of q, k, v, and the fp32
    sums of its backward kernel.
    """
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    wide = 4  # a norm computes in fp32, whatever the activations are
    norms = 2 * (wide * h + 2 * element * h)
    mlp = norms + element * (h + 2 * q + 2 * k + 7 * f)
    norm = (
        norms // 2 + element * (h + 2 * q + 2 * k + 2 * f) + norms // 2 + (4 * wide + element) * h
    )
    attention = norms // 2 + element * (2 * h + 4 * q + 4 * k + 2 * f) + 8 * q
    return max(mlp, norm, attention) + _head_norms(facts, element) + 4 * facts.num_heads


def saved_bytes_per_token(facts: ModelFacts, element: int = 2) -> int:
    """Give the bytes per token and block that autograd keeps where nothing is recomputed.

    The block's input and the residual behind attention, both norms with an fp32 copy, q, k, v,
    attention's result, and gate, its SiLU, up, product.
    """
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    norms = 2 * (4 * h + 2 * element * h)
    norms += _head_norms(facts, element)
    return norms + element * (2 * h + 2 * q + 2 * k + 4 * f) + 4 * facts.num_heads


def _head_norms(facts: ModelFacts, element: int) -> int:
    """Give what norms of queries and keys keep per token: fp32 copies and results."""
    width = facts.query_size + facts.key_size if facts.query_key_norm else 0
    return width * (4 + 2 * element)


def head_bytes(facts: ModelFacts, tokens: int, element: int = 2) -> int:
    """Give what head and loss of a microbatch take, all its tokens being targets.

    A chunk's logits, their fp32 copy and the temporary of its log-sum-exp; for every target its
    row, the row's norm with an fp32 copy, and the gradients of both and of the hidden state.
    """
    chunk = min(chunk_rows(facts.vocabulary_size), tokens)
    logits = chunk * facts.vocabulary_size * (8 + (element if element < 4 else 0))
    return logits + tokens * facts.hidden_size * (4 + 5 * element)


def gap_bytes(block: int) -> int:
    """Give what torch's allocator holds beside what is alive, from a block's workspace."""
    return round(_GAP_OF_BLOCK * block + _GAP_BYTES)


def head_phase(num_bytes: int, *, is_gpu: bool) -> Phase:
    """Give the moment of head and loss, from what it takes."""
    gap = round(_GAP_OF_HEAD * num_bytes) if is_gpu else 0
    return Phase("head and loss", num_bytes, gap=gap)
