"""One request to a server and its reply, bounded in bytes and in time whatever the server does.

A reply is read as it arrives, never unpacked: packed, a few kilobytes may stand for gigabytes. The limit in seconds is
for the whole exchange, since a server that sends one byte a minute never runs into the time-out of a single read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from llm_wrapper.readers import MIB
from llm_wrapper.services import CallError

__all__ = ["Poster", "Reply"]

_MOST = 64 * MIB
"""Bytes of a reply. The longest good ones echo log-probabilities of 1,000 tokens for 20 candidates: 4 MB."""
_MOST_REFUSED = MIB // 16
"""Bytes that are read of an error page."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Poster:
    """Sends JSON to one server.

    Args:
        key: Sent as a bearer token, where there is one.
        seconds: The most that one exchange may take, from connecting to the last byte.
    """

    def __init__(self, key: str | None, *, seconds: float) -> None:
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._seconds = seconds
        self._ssl: ssl.SSLContext = httpx2.create_ssl_context()

    def post(self, url: str, body: Mapping[str, Any]) -> Reply:
        """Send a request and read its reply; for threads, each with its own connection.

        Raises:
            CallError: If there is no server, it takes too long, or its reply is too large or packed.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._posted(url, body), self._seconds))
        except asyncio.TimeoutError:
            raise CallError(
                f"no whole answer in {self._seconds:g} seconds (llm.server.request_seconds)", again=True
            ) from None
        except httpx2.TransportError as error:
            name = type(error).__name__
            raise CallError(f"no answer ({name}: {error}): is the server running there?", again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise CallError(f"{type(error).__name__}: {error}") from None

    async def _posted(self, url: str, body: Mapping[str, Any]) -> Reply:
        async with (
            httpx2.AsyncClient(headers=self._headers, timeout=self._seconds, verify=self._ssl) as client,
            client.stream("POST", url, json=body) as response,
        ):
            return Reply(response.status_code, response.headers, await _content(response))


async def _content(response: httpx2.Response) -> bytes:
    good = 200 <= response.status_code < 300
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        if not good:
            return f"a page packed by {packed}".encode()
        raise CallError(f"the reply is packed ({packed}), and it was asked for plain: switch that off on the server")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if not good and len(content) >= _MOST_REFUSED:
            break
        if len(content) > _MOST:
            raise CallError(f"the reply has more than {_MOST // MIB} MiB, which no answer needs")
    return bytes(content)
