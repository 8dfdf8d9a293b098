"""The protocol of uvicorn, with an end to requests that never say what they want."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def heads_within(seconds: float) -> type[asyncio.Protocol]:
    """HTTP that closes a connection whose next request's head is not whole after `seconds`; uvicorn has no such end.

    It begins with the connection, and with the first bytes after an answer: without any, uvicorn's keep-alive ends it.
    """

    class Heads(HttpToolsProtocol):
        due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.expect()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self.expect()
            super().data_received(data)

        def on_message_begin(self) -> None:
            self.expect()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.settle()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self.settle()
            super().connection_lost(exc)

        def expect(self) -> None:
            # Not later where some of it has come already.
            if self.due is None:
                self.due = self.loop.call_later(seconds, self.shutdown)

        def settle(self) -> None:
            if self.due is not None:
                self.due.cancel()
                self.due = None

    return Heads
