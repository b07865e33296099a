"""Rotary positions that restart at each document of a row.

Tables are computed in fp32 and rounded once to the dtype of the activations, as transformers
does, so that bf16 logits agree as well.
"""

import functools
import math

import torch
from torch import Tensor

from workbench.config.rotary_scaling import NO_SCALING, RotaryScaling


def document_index(document_starts: Tensor, row_length: int) -> Tensor:
    """Say for each token to which document of its row it belongs.

    Args:
        document_starts: (rows, documents) int32 or int64, ascending from 0; the tail repeats
            ``row_length``.
        row_length: tokens in a row.

    Returns:
        (rows, row_length) int64. Starts [0, 3, 5] in a row of 5 give [0, 0, 0, 1, 1].
    """
    positions = torch.arange(
        row_length, dtype=document_starts.dtype, device=document_starts.device
    ).expand(document_starts.shape[0], row_length)
    after = torch.searchsorted(document_starts.contiguous(), positions.contiguous(), right=True)
    return after - 1


def document_positions(document_starts: Tensor, row_length: int) -> Tensor:
    """Count positions anew at each document.

    Returns:
        (rows, row_length) int64. Starts [0, 3, 5] in a row of 5 give [0, 1, 2, 0, 1].
    """
    index = document_index(document_starts, row_length)
    begins = torch.gather(document_starts.long(), 1, index)
    return torch.arange(row_length, device=document_starts.device) - begins


def rotary_tables(
    positions: Tensor,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    scaling: RotaryScaling = NO_SCALING,
    longest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Give cosine and sine of each position's angles.

    Args:
        positions: (rows, row_length) int64.
        head_dim: width of a head, even.
        theta: base of the frequencies.
        dtype: of the result.
        scaling: of the frequencies.
        longest: tokens of the longest document among these positions; only dynamic scaling asks.

    Returns:
        Two tensors (rows, row_length, 1, head_dim), ready to broadcast over heads. The second
        half of the last axis repeats the first.
    """
    if scaling.kind == "dynamic":
        assert longest is not None, "dynamic scaling depends on it"
        # Up to what the model is made for nothing is scaled: one table for all of them.
        limit = int(dict(scaling.numbers)["max_position_embeddings"])
        longest = None if longest <= limit else longest
    else:
        longest = None
    frequencies = _frequencies(head_dim, theta, scaling, longest, positions.device)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[..., None, :]
    cosine, sine = angles.cos(), angles.sin()
    factor = dict(scaling.numbers).get("attention_factor", 1.0)
    if factor != 1.0:
        cosine, sine = cosine * factor, sine * factor
    return cosine.to(dtype), sine.to(dtype)


@functools.lru_cache(maxsize=1024)
def _frequencies(
    head_dim: int,
    theta: float,
    scaling: RotaryScaling,
    longest: int | None,
    device: torch.device,
) -> Tensor:
    """Give (head_dim / 2,) fp32, kept on the device so that no step waits for its copy."""
    # On the CPU always: a power differs in its last bit between devices.
    with torch.inference_mode(mode=False):  # whoever asks first, training can use it too
        frequencies = scaled_frequencies(head_dim, theta, scaling, longest)
        # One wait in a run is nothing; of dynamic scaling each new length would be one.
        return frequencies.to(device, non_blocking=longest is not None)


def scaled_frequencies(
    head_dim: int, theta: float, scaling: RotaryScaling, longest: int | None = None
) -> Tensor:
    """Compute the angles by which one position more turns each pair of a head.

    In fp32 and in the order of transformers, so that logits agree to the last bits.

    Args:
        head_dim: width of a head, even.
        theta: base of the frequencies.
        scaling: of the frequencies.
        longest: tokens of the longest document, for dynamic scaling; None: none exceeds what the
            model is made for.

    Returns:
        (head_dim / 2,) fp32 on the host, descending.
    """
    numbers = dict(scaling.numbers)
    match scaling.kind:
        case "default":
            return _plain_frequencies(head_dim, theta)
        case "linear":
            return _plain_frequencies(head_dim, theta) / numbers["factor"]
        case "dynamic":
            return _dynamic_frequencies(head_dim, theta, numbers, longest)
        case "llama3":
            return _llama3_frequencies(_plain_frequencies(head_dim, theta), numbers)
        case "yarn":
            return _yarn_frequencies(head_dim, theta, numbers)
        case _:
            raise AssertionError(f"rotary scaling {scaling.kind} was read and is not computed")


def _plain_frequencies(head_dim: int, theta: float | Tensor) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / (theta**exponents)


def _dynamic_frequencies(
    head_dim: int, theta: float, numbers: dict[str, float], longest: int | None
) -> Tensor:
    """Raise the base with the document's length (bloc97 and emozilla, NTK-aware scaling, 2023)."""
    if longest is None:
        return _plain_frequencies(head_dim, theta)
    factor, limit = numbers["factor"], numbers["max_position_embeddings"]
    ratio = factor * torch.tensor(longest) / limit - (factor - 1)
    return _plain_frequencies(head_dim, theta * ratio ** (head_dim / (head_dim - 2)))


def _llama3_frequencies(frequencies: Tensor, numbers: dict[str, float]) -> Tensor:
    """Slow down what turns rarely within the original context (Llama 3.1, 2024)."""
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    lengths = 2 * math.pi / frequencies
    share = (original / lengths - low) / (high - low)
    between = (1 - share) * frequencies / factor + share * frequencies
    scaled = torch.where(lengths > original / low, frequencies / factor, frequencies)
    is_between = (lengths >= original / high) & (lengths <= original / low)
    return torch.where(is_between, between, scaled)


def _yarn_frequencies(head_dim: int, theta: float, numbers: dict[str, float]) -> Tensor:
    """Slow down by parts: pairs that turn often stay (Peng et al., YaRN, 2023, section 3.2)."""
    original = numbers["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        """Give the pair that turns so often within the original context, as a fraction."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(numbers["beta_fast"]), pair_of(numbers["beta_slow"])
    if numbers["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    kept = 1 - ((pairs - first) / (last - first)).clamp(0, 1)
    powers = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return 1.0 / (numbers["factor"] * powers) * (1 - kept) + 1.0 / powers * kept
