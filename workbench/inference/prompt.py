"""Messages to prompt ids, by the renderer that training uses; and what ends a reply by itself.

Knows no model. Invariant: what the model reads here is the training text up to the reply, with the
token that begins every text exactly once.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate
from workbench.data.tokenizer import Tokenizer, read_json


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


def stops_of(
    template: ChatTemplate, tokenizer: Tokenizer
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Find what the template puts behind a reply: a token where the vocabulary has it, else text.

    ``<|im_end|>`` is one token for a model that was made for ChatML, and some ordinary pieces for
    one that has learned ChatML with an older vocabulary; either ends the reply. Pieces end it
    before the first special token: generation stops there, and the token is no text to look for.
    """
    text = template.stop_text
    if not text:
        return frozenset(), ()
    first, *others = template.stop_ids(tokenizer)
    is_token = not others or tokenizer.token_text(first) in tokenizer.texts_of_special_tokens
    if is_token:
        return frozenset({first}), ()
    found = [at for sign in tokenizer.texts_of_special_tokens if (at := text.find(sign)) > 0]
    return frozenset(), (text[: min(found, default=len(text))].rstrip(),)


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


def end_ids_of(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Collect the tokens that end a text: of generation_config.json, config.json, the tokenizer.

    Raises:
        DataError: a file is there and cannot be read.
    """
    found: set[object] = {tokenizer.eos_id}
    for name in ("generation_config.json", "config.json"):
        stated = read_json(folder / name).get("eos_token_id")
        found.update(stated if isinstance(stated, list) else [stated])
    return frozenset(number for number in found if isinstance(number, int))
