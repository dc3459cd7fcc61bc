"""A transport that answers from a script, for tests of everything that talks to the API server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

from agent.api import errors
from agent.api.meta import Status


class ScriptedTransport:
    """`answer(method, path, query, body)` gives a body (a JSON value) or raises; `streams` gives the lines of
    each
    watch in turn: values are events, exceptions are raised, and after the last one the watch stays silent."""

    def __init__(self, answer: Callable, streams: list[list] | None = None) -> None:
        self.answer = answer
        self.streams = streams or []
        self.requests: list[tuple[str, str, dict, object, str]] = []
        self.watched: list[dict[str, str]] = []

    async def request(
        self, method, path, *, query=None, body=None, content_type="application/json", timeout=30.0
    ) -> bytes:
        decoded = json.loads(body) if body else None
        self.requests.append((method, path, dict(query or {}), decoded, content_type))
        await asyncio.sleep(0)
        answer = self.answer(method, path, dict(query or {}), decoded)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    async def stream(self, path, *, query, idle_timeout) -> AsyncIterator[bytes]:
        self.watched.append(dict(query))
        for item in self.streams.pop(0) if self.streams else []:
            await asyncio.sleep(0)
            if isinstance(item, Exception):
                raise item
            yield json.dumps(item).encode()
        if not self.streams:
            await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def refusal(code: int, reason: str = "", message: str = "") -> errors.ApiError:
    """What the real transport raises for such an answer."""
    return errors.from_status(code, Status(reason=reason, message=message, code=code), what="test")


def item(name: str, version: str, **more) -> dict:
    """A small object in namespace default."""
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version, "uid": name},
        **more,
    }


def listing(*items: dict, version: str = "100", continue_: str = "") -> dict:
    """A list answer."""
    return {"metadata": {"resourceVersion": version, "continue": continue_}, "items": list(items)}


def event(change: str, obj: dict) -> dict:
    """A watch line."""
    return {"type": change, "object": obj}
