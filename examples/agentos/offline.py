"""The parts that make the example AgentOS run without any network: a model, an embedder and a vector database.

Every answer is a pure function of the conversation, so a test can state the exact text it expects. Does not define
agents (`app.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lancedb
from agno.exceptions import ModelProviderError
from agno.knowledge.document import Document
from agno.knowledge.embedder.base import Embedder
from agno.metrics import MessageMetrics
from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.vectordb.lancedb import LanceDb
from agno.vectordb.search import SearchType

FAILURE_WORD = "provoke-failure"
"""A message that contains this word makes the model fail as a provider outage would."""

DIMENSIONS = 256


@dataclass(frozen=True)
class ToolUse:
    """A tool that a model always calls once before it answers."""

    name: str
    arguments: Callable[[str], dict[str, Any]]
    """Builds the arguments from the user's message."""


@dataclass(frozen=True)
class Turn:
    """What the model says in one turn: either a tool call or chunks of text."""

    chunks: tuple[str, ...]
    tool_call: dict[str, Any] | None
    usage: MessageMetrics


@dataclass
class OfflineModel(Model):
    """Echoes the user's message, word by word; counts one token per word.

    With `tool`, it first calls that tool and then answers with what the tool returned; with `then`, it calls that one
    in between. With `ticks`, it ignores the message and says `tick 1 … tick n`, one chunk every `delay_s`: a long run
    whose length a test can choose.
    """

    id: str = "offline-echo"
    name: str | None = "Offline"
    provider: str | None = "Offline"
    tool: ToolUse | None = None
    then: ToolUse | None = None
    ticks: int = 0
    delay_s: float = 0.0

    def invoke(self, messages: list[Message], *args: Any, **kwargs: Any) -> ModelResponse:
        turn = self._turn(messages, kwargs.get("tools"))
        time.sleep(self.delay_s * len(turn.chunks))
        return _whole(turn)

    async def ainvoke(self, messages: list[Message], *args: Any, **kwargs: Any) -> ModelResponse:
        turn = self._turn(messages, kwargs.get("tools"))
        await asyncio.sleep(self.delay_s * len(turn.chunks))
        return _whole(turn)

    def invoke_stream(self, messages: list[Message], *args: Any, **kwargs: Any) -> Iterator[ModelResponse]:
        turn = self._turn(messages, kwargs.get("tools"))
        for index, piece in enumerate(_pieces(turn)):
            if index:
                time.sleep(self.delay_s)
            yield piece

    async def ainvoke_stream(self, messages: list[Message], *args: Any, **kwargs: Any) -> AsyncIterator[ModelResponse]:
        turn = self._turn(messages, kwargs.get("tools"))
        for index, piece in enumerate(_pieces(turn)):
            if index:
                await asyncio.sleep(self.delay_s)
            yield piece

    def _parse_provider_response(self, response: ModelResponse, **kwargs: Any) -> ModelResponse:
        return response

    def _parse_provider_response_delta(self, response: ModelResponse) -> ModelResponse:
        return response

    def _turn(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> Turn:
        """Decides what to say from the last user message and the tool results after it."""
        asked, results = _last_exchange(messages)
        if FAILURE_WORD in asked:
            raise ModelProviderError(
                message=f"the message contains `{FAILURE_WORD}`",
                status_code=503,
                model_name=self.name,
                model_id=self.id,
            )
        use = [self.tool, self.then][len(results)] if len(results) < 2 else None
        if use and _offers(tools, use.name):
            call = _tool_call(use, asked)
            return Turn((), call, _usage(messages, output_tokens=_words(call["function"]["arguments"])))
        chunks = self._answer(asked, results)
        return Turn(chunks, None, _usage(messages, output_tokens=len(chunks)))

    def _answer(self, asked: str, results: list[str]) -> tuple[str, ...]:
        if self.ticks:
            return tuple(f"tick {number} " for number in range(1, self.ticks + 1))
        text = f"echo: {asked}"
        if results:
            text += " | tool: " + "; ".join(results)
        return tuple(re.findall(r"\S+\s*", text))


def _last_exchange(messages: list[Message]) -> tuple[str, list[str]]:
    """The last user message and the tool results that follow it."""
    asked, results = "", []
    for message in messages:
        if message.role == "user":
            asked, results = str(message.content or ""), []
        elif message.role == "tool":
            results.append(str(message.content or ""))
    return asked, results


def _offers(tools: list[dict[str, Any]] | None, name: str) -> bool:
    return any((tool.get("function") or tool).get("name") == name for tool in tools or [])


def _tool_call(use: ToolUse, asked: str) -> dict[str, Any]:
    digest = hashlib.sha256(f"{use.name}\n{asked}".encode()).hexdigest()[:12]
    function = {"name": use.name, "arguments": json.dumps(use.arguments(asked))}
    return {"id": f"call_{digest}", "type": "function", "function": function}


def _usage(messages: list[Message], output_tokens: int) -> MessageMetrics:
    input_tokens = sum(_words(message.content) for message in messages)
    return MessageMetrics(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=input_tokens + output_tokens,
    )


def _words(content: Any) -> int:
    return len(str(content or "").split())


def _whole(turn: Turn) -> ModelResponse:
    response = ModelResponse(role="assistant", response_usage=turn.usage)
    if turn.tool_call:
        response.tool_calls = [turn.tool_call]
    else:
        response.content = "".join(turn.chunks)
    return response


def _pieces(turn: Turn) -> Iterator[ModelResponse]:
    """The chunks of a streamed turn; the usage comes last, as providers send it."""
    if turn.tool_call:
        yield ModelResponse(role="assistant", tool_calls=[turn.tool_call])
    for chunk in turn.chunks:
        yield ModelResponse(role="assistant", content=chunk)
    yield ModelResponse(response_usage=turn.usage)


@dataclass
class HashEmbedder(Embedder):
    """A bag of words: each word counts in the dimension that its hash names, then the vector has length one."""

    id: str = "hash-256"
    dimensions: int | None = DIMENSIONS

    def get_embedding(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in re.findall(r"\w+", text.lower()):
            counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % DIMENSIONS] += 1.0
        length = math.sqrt(sum(count * count for count in counts))
        if length == 0.0:
            return [1.0 / math.sqrt(DIMENSIONS)] * DIMENSIONS
        return [count / length for count in counts]

    def get_embedding_and_usage(self, text: str) -> tuple[list[float], dict[str, Any] | None]:
        return self.get_embedding(text), {"total_tokens": _words(text)}

    async def async_get_embedding(self, text: str) -> list[float]:
        return self.get_embedding(text)

    async def async_get_embedding_and_usage(self, text: str) -> tuple[list[float], dict[str, Any] | None]:
        return self.get_embedding_and_usage(text)


class SharedLanceDb(LanceDb):
    """LanceDB for several replicas over one folder.

    Reads see what another process wrote, and every hit has an id: agno 2.5.6 leaves the ids out and then fails to
    build its own search answer.
    """

    def __init__(self, folder: str, table_name: str) -> None:
        super().__init__(
            uri=folder,
            table_name=table_name,
            connection=lancedb.connect(folder, read_consistency_interval=timedelta(0)),
            embedder=HashEmbedder(),
            search_type=SearchType.vector,
        )

    def search(self, *args: Any, **kwargs: Any) -> list[Document]:
        # The replica that created the table keeps to its own version of it, whatever the interval says.
        if self.table is not None:
            self.table.checkout_latest()
        hits = super().search(*args, **kwargs) or []
        for hit in hits:
            hit.id = hit.id or hashlib.sha256(hit.content.encode()).hexdigest()[:32]
        return hits
