"""The requests and answers of OpenAI's chat protocol, as far as this server honours them.

A parameter that is not here is refused by name; one that is here has an effect, or may only have
the value that has none. Knows nothing of models. The fields are those of OpenAI's API reference,
with ``top_k``, ``min_p``, ``repetition_penalty`` and ``stop_token_ids`` as other servers have them.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def check_unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read.

    Raises:
        ValueError: the text holds one.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(check_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextContent(_Strict):
    """A part of a message; this server reads text only."""

    type: Literal["text"]
    text: Text


def parts_of(content: object) -> object:
    """Read a plain text as a list of one part: a union would be reported twice when it is wrong.

    Raises:
        ValueError: it is neither a text nor a list.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise ValueError("should be a text, or a list of parts of text")


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextContent], BeforeValidator(parts_of)]

    @property
    def text(self) -> str:
        """The whole content as text."""
        return "".join(part.text for part in self.content)


def list_of(stop: object) -> object:
    """Read a single stop string as a list of one."""
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(_Strict):
    """What a stream holds beside the text."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: Annotated[list[StopString] | None, BeforeValidator(list_of), Field(max_length=16)] = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None

    # Clients send these with the value that changes nothing; any other value is refused.
    n: Literal[1] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None


class Usage(BaseModel):
    """Tokens that went in and came out; the stop token counts as one that came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The message that the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0] = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """Answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The one choice of a chunk."""

    index: Literal[0] = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class ChatChunk(BaseModel):
    """One event of a stream; the one with usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelEntry(BaseModel):
    """A model in the answer to GET /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["workbench"] = "workbench"
    context_length: int


class ModelList(BaseModel):
    """Answer to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorContent(BaseModel):
    """What went wrong; ``param`` names the parameter, ``code`` is for programs."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "server_error"]
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorContent
