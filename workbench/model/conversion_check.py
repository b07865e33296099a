"""Proves that a model that was prepared is the same model: its texts, every tensor, the logits.

What is expected is computed of the source, one block at a time; no model is in memory as a whole.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.config.template_source import own_template
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import end_ids_of
from workbench.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, load_tokenizer
from workbench.errors import DataError, WorkbenchError
from workbench.model.conversion_plan import Conversion, Tell, new_tensor
from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    block_forward,
    block_parameters,
    block_prefix,
    embed,
    final_norm,
    row_context,
)
from workbench.model.families import read_dimensions
from workbench.model.safetensors_reader import StoredTensor, read_tensor
from workbench.model.streamed_logits import probe_ids, relative_difference
from workbench.model.weights import stored_weights

# Of the same numbers by the same program: only the order of sums within a product may differ.
_SAME = 1e-6


def check_texts(conversion: Conversion, folder: Path) -> None:
    """See that tokenizer and template work, and agree with the embedding.

    Raises:
        DataError: they do not; a tokenizer that names no end among it.
    """
    if TOKENIZER_FILE not in conversion.small_files:
        return
    tokenizer = load_tokenizer(folder)
    num_rows = conversion.vocabulary_size
    if tokenizer.vocabulary_size > num_rows:
        raise DataError(
            f"has ids up to {tokenizer.vocabulary_size - 1:,}, the embedding {num_rows:,} rows",
            where=str(conversion.source / TOKENIZER_FILE),
            remedy="give them rows: --add-tokens",
        )
    if not end_ids_of(folder, tokenizer):
        raise DataError(
            "names no token that ends a text",
            where=str(conversion.source / TOKENIZER_CONFIG_FILE),
            remedy="name one: --add-tokens FILE, with eos_token in it",
        )
    for row in conversion.tokens.rows.values() if conversion.tokens is not None else ():
        ids = [int(number) for number in tokenizer.encode([row.token])[0].ids]
        if ids != [row.token_id]:
            raise DataError(
                f"reads {row.token!r} as the ids {ids}, not as {row.token_id}",
                where=str(conversion.source / TOKENIZER_FILE),
                remedy="choose another text for the token",
            )
    source = own_template(folder)
    if source is not None:
        template = ChatTemplate(source, tokenizer.special_tokens)
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        try:
            template.render(turns)
        except DataError as error:
            raise DataError(
                error.what,
                where=f"{conversion.source} {error.where}",
                remedy="choose another template: -t chatml",
            ) from error


def compare(
    conversion: Conversion, folder: Path, tell: Tell = lambda stage, done, total: None
) -> tuple[float, float]:
    """Compare a new folder with its source: every tensor, and the logits of a few rows.

    What is expected is computed of the source, in the new dtype; one block at a time is in memory.

    Args:
        conversion: what was done.
        folder: what came of it.
        tell: how far it is.

    Returns:
        How far the logits are from those of the source with weights of the new dtype, and how far
        these are from those of the source as it is; relative to their norm.

    Raises:
        WorkbenchError: a tensor or the logits are not what they should be.
        RunError: the new folder cannot be read.
    """
    dims, new_dims = conversion.dims, read_dimensions(folder)
    walk = _Comparison(conversion, stored_weights(folder, new_dims), tell)
    ids = probe_ids(dims)
    starts = torch.zeros((len(ids), 1), dtype=torch.int32)
    # What is expected, what is there, and where the dtype changes the source as it is.
    models = [dims, new_dims, *([dims] if walk.is_rounded else [])]
    contexts = [row_context(starts, ids.shape[1], each, torch.float32, "dense") for each in models]
    with torch.inference_mode():
        states = [embed(weight, ids) for weight in walk.read(EMBEDDING)]
        for block in range(dims.num_layers):
            weights: list[dict[str, Tensor]] = [{} for _ in models]
            for name in block_parameters(dims):
                read = walk.read(block_prefix(block) + name)
                for held, tensor in zip(weights, read, strict=True):
                    held[name] = tensor
            states = [
                block_forward(held, x, context, each, block)
                for held, x, context, each in zip(weights, states, contexts, models, strict=True)
            ]
        norms = walk.read(FINAL_NORM)
        states = [final_norm(norm, x, dims) for norm, x in zip(norms, states, strict=True)]
        heads = walk.read(EMBEDDING if dims.tied else HEAD)
        expected, found, *exact = (
            F.linear(x, head)[..., : dims.vocabulary_size]
            for x, head in zip(states, heads, strict=True)
        )
    # Rows that begin anew in place of padding give other logits, and are none of the source's.
    kept = torch.ones(dims.vocabulary_size, dtype=torch.bool)
    if conversion.tokens is not None:
        kept[[row for row in conversion.tokens.rows if row < dims.vocabulary_size]] = False
    difference = relative_difference(found[..., kept], expected[..., kept])
    if not difference <= _SAME:
        raise WorkbenchError(
            f"logits differ from the source's by {difference:.1e}, allowed is {_SAME:.0e}",
            where=str(folder),
            remedy="report it with the model's config.json; nothing was kept",
        )
    rounding = relative_difference(expected[..., kept], exact[0][..., kept]) if exact else 0.0
    return difference, rounding


class _Comparison:
    """Reads each weight from both folders, and compares it on the way."""

    def __init__(
        self, conversion: Conversion, stored: Mapping[str, StoredTensor], tell: Tell
    ) -> None:
        self._conversion, self._stored, self._tell = conversion, stored, tell
        self._done, self._total = 0, sum(each.num_bytes for each in stored.values())
        self.is_rounded = any(
            conversion.kinds[name].dtype != each.dtype for name, each in conversion.stored.items()
        )

    def read(self, name: str) -> list[Tensor]:
        """Give a weight as it should be, as it is, and where dtypes change the source's; in fp32.

        Raises:
            WorkbenchError: it is not what it should be.
        """
        expected = new_tensor(self._conversion, name)
        found = read_tensor(self._stored[name])
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            raise WorkbenchError(
                f"{name} is not what was to be written",
                where=str(self._stored[name].path),
                remedy="check the disk, then convert anew; nothing was kept",
            )
        self._done += self._stored[name].num_bytes
        self._tell("comparing", min(self._done, self._total), self._total)
        both = [expected.float(), found.float()]
        if not self.is_rounded:
            return both
        return [*both, read_tensor(self._conversion.stored[name]).float()]
