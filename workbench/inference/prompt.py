"""Messages to prompt ids, by the renderer that training uses; and what ends a reply by itself.

Knows no model. Invariant: what the model reads here is the training text up to the reply, with the
token that begins every text exactly once.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import end_ids_of, stops_of
from workbench.data.tokenizer import Tokenizer


class PromptWriter:
    """Writes conversations as the model has learned to read them, and knows what ends a reply.

    Args:
        template: the compiled chat template.
        tokenizer: the model's.
        end_ids: tokens that end a text, as the model's files say.
        stop: further texts that end every reply.

    Attributes:
        stop_ids: tokens that end a reply: ``end_ids``, and the template's own if it is a token.
        stop_strings: texts that end a reply: ``stop``, and the template's own if it is none.
        end_ids: tokens that end any text, also one that follows no template.
        added_stops: ``stop``.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        end_ids: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self.end_ids = end_ids
        self.added_stops = tuple(stop)
        ids, strings = stops_of(template, tokenizer)
        self.stop_ids = ids | end_ids
        self.stop_strings = (*strings, *(text for text in stop if text not in strings))

    @property
    def stop_texts(self) -> list[str]:
        """Everything that ends a reply, as text."""
        tokens = (self._tokenizer.token_text(number) for number in sorted(self.stop_ids))
        return [*(text for text in tokens if text is not None), *self.stop_strings]

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Write the conversation up to where the reply begins.

        Args:
            messages: role and content of each turn, in order.

        Raises:
            DataError: the template refuses these turns.
        """
        turns = [{"role": role, "content": content} for role, content in messages]
        return [int(number) for number in self._template.encode_prompt(turns, self._tokenizer)]

    def text_ids(self, text: str) -> list[int]:
        """Write a text that is to be continued: as it stands, no template around it.

        What the tokenizer begins every text with stands before it exactly once.
        """
        ids = [int(number) for number in self._tokenizer.encode([text])[0].ids]
        if self.begin_id is not None and ids[:1] != [self.begin_id]:
            ids.insert(0, self.begin_id)
        return ids

    @property
    def begin_id(self) -> int | None:
        """The token that begins every text, where the tokenizer puts one."""
        return self._tokenizer.bos_id if self._tokenizer.adds_bos else None

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """Give the text of each token by itself; half a character is shown as U+FFFD."""
        # Behind another token, since a tokenizer may drop the space that a text begins with.
        anchor = self._anchor_ids
        start = len(self._tokenizer.decode(anchor))
        return [self._tokenizer.decode([*anchor, number])[start:] for number in ids]

    @cached_property
    def _anchor_ids(self) -> list[int]:
        return [int(number) for number in self._tokenizer.encode(["a"])[0].ids]

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return self._tokenizer.vocabulary_size

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def read_prompt_writer(
    folder: Path, tokenizer: Tokenizer, template: str | None, stop: Sequence[str]
) -> PromptWriter:
    """Read template and stop tokens of a model folder.

    Args:
        folder: in Hugging Face layout; a checkpoint has its run's template.
        tokenizer: the folder's.
        template: name or file of another template; None takes the folder's own.
        stop: further texts that end every reply.

    Raises:
        DataError: the template is missing or wrong, or a file cannot be read.
    """
    source = template_source(template or "auto", folder)
    return PromptWriter(
        ChatTemplate(source, tokenizer.special_tokens),
        tokenizer,
        end_ids_of(folder, tokenizer),
        stop,
    )
