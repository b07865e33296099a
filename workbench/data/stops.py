"""What ends a reply by itself: tokens by id, and texts where the vocabulary has no such token.

Training and serving ask here, so that a reply ends at the same place in both. Knows no model.
"""

from pathlib import Path

from workbench.config.end_ids import stated_end_ids
from workbench.data.chat_template import ChatTemplate
from workbench.data.tokenizer import Tokenizer


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


def end_ids_of(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Collect the tokens that end a text: of generation_config.json, config.json, the tokenizer.

    Raises:
        DataError: a file is there and cannot be read, or names an end that is no id.
    """
    own = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return stated_end_ids(folder).union(own)
