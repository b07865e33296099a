"""Rows that are generated together: prompts come in at any token, replies leave at any token.

A row's newest token is fed to the model beside those of all other rows, on top of one cache
(``batch_cache``). Prompts that arrive together are read together; a long one is read in parts,
between which the others go on. Knows the model, nothing of queues, threads or HTTP.
Invariant: a row that is not cancelled gets one token per step, chosen by its own rules.

Shapes: R rows, C columns of the cache, V tokens of the vocabulary.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from workbench.inference.batch_cache import BatchCache
from workbench.inference.reply import Generation, ReplyText
from workbench.inference.sampling import choose_tokens, logprobs_of, penalise

# Positions of a prompt whose logits are made at once, where a request asks for their logarithms.
_LOGITS_AT_ONCE = 256


class Row:
    """One generation in a batch.

    Attributes:
        generation: what was asked, and who waits.
        text: takes the tokens.
        ids: prompt and reply so far.
    """

    def __init__(
        self,
        generation: Generation,
        decode: Callable[[Sequence[int]], str],
        special_texts: Mapping[int, str],
    ) -> None:
        self.generation = generation
        self.text = ReplyText(generation, decode, special_texts)
        self.ids = list(generation.prompt_ids)
        # Numbers from the host: the same on every device, and one per token whoever else asks.
        self._random = random.Random(generation.sampling.seed)
        self._is_seen_V: torch.Tensor | None = None

    @property
    def is_over(self) -> bool:
        """No token is wanted any more."""
        return self.text.has_ended or self.generation.is_cancelled

    def draw(self) -> float:
        """Give the next random number in [0, 1)."""
        return self._random.random()

    def seen(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Give which tokens prompt and reply hold: (V,) bool, on the device of the logits."""
        if self._is_seen_V is None:
            self._is_seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
            self._is_seen_V[torch.tensor(self.ids, device=logits_V.device)] = True
        return self._is_seen_V

    def take(self, token_id: int) -> None:
        """Append a token that was chosen."""
        self.ids.append(token_id)
        if self._is_seen_V is not None:
            self._is_seen_V[token_id] = True


class RowsFailed(Exception):  # noqa: N818 - says whose failure it is; the cause is the error
    """Rows whose tokens could not be made; the others are not concerned.

    Attributes:
        rows: which are no longer in the batch.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(f"{len(rows)} rows failed")
        self.rows = list(rows)


class _Reading:
    """Rows whose prompts are being read, all at once or one in parts."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.cache = BatchCache()
        self.num_read = 0


class Batch:
    """A model and the rows it is at work on.

    Args:
        model: of ``transformers``, in eval mode.
        device: takes its inputs; parts of the model may lie elsewhere.
        most_rows: rows that may be generated together.
        at_once: tokens of prompts that are read in one forward; others wait no longer than that.
        host_bytes: that keys and values may take where the device is the CPU; None: no limit.

    Attributes:
        most_rows: rows that may be generated together; fewer while memory is short.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers gives its models no useful type
        device: torch.device,
        most_rows: int,
        at_once: int,
        host_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._at_once = at_once
        self._rows: list[Row] = []
        self._paddings: list[int] = []
        self._cache = BatchCache()
        self._readings: list[_Reading] = []
        self._most_places = None
        if host_bytes is not None:
            self._most_places = host_bytes // bytes_per_place(model.config, model.dtype)
        self._most_rows = 1 if depends_on_longest(model.config) else most_rows
        self.most_rows = self._most_rows

    @property
    def rows(self) -> list[Row]:
        """All rows, those whose prompts are being read at the end."""
        return [*self._rows, *(row for reading in self._readings for row in reading.rows)]

    @property
    def has_room(self) -> bool:
        """Another row may come in."""
        return len(self.rows) < self.most_rows

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows in; their prompts are read with the next steps."""
        for group in groups_of(rows, self._at_once):
            self._readings.append(_Reading(group))

    def drop_all(self) -> list[Row]:
        """Forget everything; give the rows there were."""
        rows = self.rows
        self._rows, self._paddings, self._readings = [], [], []
        self._cache = BatchCache()
        return rows

    def step(self) -> list[Row]:
        """Read a part of one prompt, or of several, and make one token for every other row.

        Returns:
            Rows that memory did not suffice for: they begin again later, with ``add``.

        Raises:
            RowsFailed: the model failed, or memory did not suffice for a single row.
        """
        there = self.rows
        try:
            with torch.inference_mode():
                self._drop_finished()
                put_back = self._read_prompts() if self._readings else []
                self._drop_finished()
                if self._rows:
                    put_back += self._make_tokens()
                self._drop_finished()
        except torch.OutOfMemoryError as error:
            # While rows were moved: their cache is in pieces, so all of them are read again.
            put_back = [row for row in there if not row.is_over]
            self.drop_all()
            if len(put_back) < 2:
                raise RowsFailed(put_back) from error
            self._lower_limit(len(put_back) // 2)
        return put_back

    # ---- prompts -----------------------------------------------------------------------------

    def _read_prompts(self) -> list[Row]:
        reading = self._readings[0]
        try:
            logits_RV = self._read(reading)
        except Exception as error:
            is_alone = len(self.rows) == 1
            self._readings.pop(0)
            if is_alone or not isinstance(error, torch.OutOfMemoryError):
                raise RowsFailed(reading.rows) from error
            self._lower_limit(len(self.rows))
            return reading.rows
        if logits_RV is None:
            return []
        self._readings.pop(0)
        for row in reading.rows:
            row.text.begin()
        self._append(reading)
        self._choose(reading.rows, logits_RV)
        return []

    def _read(self, reading: _Reading) -> torch.Tensor | None:
        """Read the next part; give the logits behind the last one, else None."""
        rows = reading.rows
        longest = max(len(row.ids) for row in rows)
        begin, end = reading.num_read, min(reading.num_read + self._at_once, longest)
        if len(rows) == 1 and rows[0].generation.sampling.of_prompt:
            end = min(end, begin + _LOGITS_AT_ONCE)
            logits_TV = self._forward(
                [rows[0].ids[begin:end]], range(begin, end), None, reading.cache, keep=0
            )[0]
            self._note_prompt(rows[0], logits_TV, begin, end)
            reading.num_read = end
            return logits_TV[-1:] if end == longest else None
        paddings = [longest - len(row.ids) for row in rows]
        inputs = [[0] * padding + row.ids for row, padding in zip(rows, paddings, strict=True)]
        mask_RC = self._mask(paddings, longest)
        logits_R1V = self._forward(
            [ids[begin:end] for ids in inputs],
            [[max(0, at - padding) for at in range(begin, end)] for padding in paddings],
            mask_RC,
            reading.cache,
        )
        reading.num_read = end
        return logits_R1V[:, -1] if end == longest else None

    def _note_prompt(self, row: Row, logits_TV: torch.Tensor, begin: int, end: int) -> None:
        """Keep what the model thought of the tokens that follow those of a part."""
        generation = row.generation
        if generation.num_tokens:
            return  # known since it was read for the first time
        if begin == 0:
            generation.prompt_logprobs = []
        following = generation.prompt_ids[begin + 1 : end + 1]
        if following:
            num_top = generation.sampling.num_top or 0
            logits_TV = logits_TV[: len(following)]
            generation.prompt_logprobs += logprobs_of(logits_TV, following, num_top)

    def _append(self, reading: _Reading) -> None:
        width = max(self._cache.num_columns, reading.cache.num_columns)
        self._check_room(len(self._rows) + len(reading.rows), width)
        longest = max(len(row.ids) for row in reading.rows)
        added = [longest - len(row.ids) for row in reading.rows]
        if not self._rows:
            self._rows, self._paddings = reading.rows, added
            self._cache = reading.cache
            return
        old = self._cache.num_columns
        self._cache.append_rows(reading.cache)
        self._paddings = [
            *(padding + width - old for padding in self._paddings),
            *(padding + width - longest for padding in added),
        ]
        self._rows = [*self._rows, *reading.rows]

    # ---- tokens ------------------------------------------------------------------------------

    def _make_tokens(self) -> list[Row]:
        """Feed the newest token of every row that has one which was not fed."""
        num_columns = self._cache.num_columns
        assert all(
            len(row.ids) - 1 + padding == num_columns
            for row, padding in zip(self._rows, self._paddings, strict=True)
        ), "every row has one token that was not fed"
        mask_RC = self._mask(self._paddings, num_columns + 1)
        try:
            logits_R1V = self._forward(
                [[row.ids[-1]] for row in self._rows],
                [[len(row.ids) - 1] for row in self._rows],
                mask_RC,
                self._cache,
            )
        except Exception as error:
            if len(self.rows) == 1 or not isinstance(error, torch.OutOfMemoryError):
                rows = self._rows
                self._keep([])
                raise RowsFailed(rows) from error
            self._cache.cut_to(num_columns)
            return self._give_up_half()
        self._choose(self._rows, logits_R1V[:, -1])
        return []

    def _choose(self, rows: Sequence[Row], logits_RV: torch.Tensor) -> None:
        """Give each row its next token."""
        some = [at for at, row in enumerate(rows) if not row.is_over]
        if not some:
            return
        rows = [rows[at] for at in some]
        if len(some) < logits_RV.shape[0]:
            logits_RV = logits_RV[torch.tensor(some, device=logits_RV.device)]
        rules = [row.generation.sampling for row in rows]
        weighed_RV = logits_RV
        if any(rule.repetition_penalty != 1 for rule in rules):
            weighed_RV = logits_RV.clone()
            for at, row in enumerate(rows):
                if (penalty := rules[at].repetition_penalty) != 1:
                    seen_V = row.seen(logits_RV[at])
                    weighed_RV[at] = penalise(logits_RV[at], seen_V, penalty)
        draws = [row.draw() for row in rows]
        token_ids = choose_tokens(weighed_RV, rules, draws).tolist()
        asking = [at for at, rule in enumerate(rules) if rule.num_top is not None]
        logprobs = {}
        if asking:
            logprobs = dict(
                zip(
                    asking,
                    logprobs_of(
                        logits_RV[torch.tensor(asking, device=logits_RV.device)],
                        [token_ids[at] for at in asking],
                        max(rules[at].num_top or 0 for at in asking),
                    ),
                    strict=True,
                )
            )
        for at, (row, token_id) in enumerate(zip(rows, token_ids, strict=True)):
            entry = logprobs.get(at)
            if entry is not None:
                entry = replace(entry, top=entry.top[: rules[at].num_top or 0])
            row.take(token_id)
            row.text.take(token_id, entry)

    # ---- rows --------------------------------------------------------------------------------

    def _drop_finished(self) -> None:
        for reading in list(self._readings):
            if all(row.is_over for row in reading.rows):
                self._readings.remove(reading)
        kept = [at for at, row in enumerate(self._rows) if not row.is_over]
        if len(kept) < len(self._rows):
            self._keep(kept)

    def _keep(self, places: Sequence[int]) -> None:
        self._rows = [self._rows[at] for at in places]
        self._paddings = [self._paddings[at] for at in places]
        if not places:
            self._cache = BatchCache()
            self.most_rows = self._most_rows
            return
        first = min(self._paddings)
        self._cache.keep(places, first)
        self._paddings = [padding - first for padding in self._paddings]

    def _give_up_half(self) -> list[Row]:
        """Set the younger half aside: what they have said is read again when there is room."""
        half = len(self._rows) // 2
        put_back = self._rows[half:]
        if half:
            self._keep(range(half))
        else:
            # A single row, beside prompts that are being read: these wait instead.
            put_back = [row for reading in self._readings for row in reading.rows]
            self._readings = []
        self._lower_limit(len(self.rows))
        return put_back

    def _lower_limit(self, most_rows: int) -> None:
        self.most_rows = max(1, most_rows)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _check_room(self, num_rows: int, num_columns: int) -> None:
        """Refuse what the host has no memory for: there, the kernel would end the process.

        Raises:
            torch.OutOfMemoryError: keys and values, and a copy of them, take more than is allowed.
        """
        if self._most_places is not None and 2 * num_rows * num_columns > self._most_places:
            raise torch.OutOfMemoryError(f"no room for {num_rows} rows of {num_columns} tokens")

    # ---- the model ---------------------------------------------------------------------------

    def _mask(self, paddings: Sequence[int], num_columns: int) -> torch.Tensor | None:
        """Say which columns are no padding: (R, C) int64; None if none is."""
        if not any(paddings):
            return None
        starts_R1 = torch.tensor(paddings, device=self._device)[:, None]
        columns_C = torch.arange(num_columns, device=self._device)
        return (columns_C >= starts_R1).long()

    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]] | range,
        mask_RC: torch.Tensor | None,
        cache: BatchCache,
        keep: int = 1,
    ) -> torch.Tensor:
        """Run the model over new tokens of some rows.

        Args:
            ids: (R, T) new tokens.
            positions: (R, T) their positions, or those of a single row.
            mask_RC: (R, C) 0 where a column is padding, the new ones included.
            cache: takes the new columns.
            keep: logits of so many last positions are wanted; 0 for all.

        Returns:
            (R, T or ``keep``, V) logits.
        """
        device = self._device
        self._check_room(len(ids), cache.num_columns + len(ids[0]))
        places = [list(positions)] if isinstance(positions, range) else positions
        if mask_RC is not None:
            mask_RC = mask_RC[:, : cache.num_columns + len(ids[0])]
        answer = self._model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask_RC,
            position_ids=torch.tensor(places, device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = answer.logits
        return logits


def groups_of(rows: Sequence[Row], at_once: int) -> list[list[Row]]:
    """Put rows together whose prompts are read in one forward, with their padding.

    Prompts of 5, 90, 6 and 100 tokens, 200 at once, give [[5, 6], [90, 100]]: a prompt is never
    padded to more than twice its length.

    Args:
        rows: to group.
        at_once: tokens of a group, padding included; a longer prompt is a group by itself.
    """
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        last = groups[-1] if groups else []
        is_alike = bool(last) and (
            not row.generation.sampling.of_prompt
            and not last[0].generation.sampling.of_prompt
            and len(row.ids) <= 2 * len(last[0].ids)
            and len(row.ids) * (len(last) + 1) <= at_once
        )
        if is_alike:
            last.append(row)
        else:
            groups.append([row])
    # The first that came is not kept waiting by others that are shorter.
    order = {id(row): at for at, row in enumerate(rows)}
    return sorted(groups, key=lambda group: min(order[id(row)] for row in group))


def bytes_per_place(config: Any, dtype: torch.dtype) -> int:  # noqa: ANN401 - as below
    """Give what keys and values of one token take, in all layers.

    A 7B with 32 layers and 8 heads of width 128 in bfloat16 takes 131,072.
    """
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * num_heads * width * dtype.itemsize)


def depends_on_longest(config: Any) -> bool:  # noqa: ANN401 - transformers' untyped config
    """Say whether the model's rotary scaling follows the longest row it is shown.

    Beside a long row a short one would then be turned by other angles: such a model makes one
    reply at a time.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    kinds = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
