"""Messages to prompt ids, by the renderer that training uses; and what ends a reply by itself.

Knows no model. Invariant: what the model reads here is the training text up to the reply, with the
token that begins every text exactly once.
"""

from collections.abc import Sequence
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
