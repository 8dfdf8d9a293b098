"""What every request passes: the token, the metrics, and an end to errors that nobody foresaw."""

from __future__ import annotations

import hmac
import logging
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stfm_pipeline.serve.forms import Trouble
from stfm_pipeline.serve.metrics import Metrics

log = logging.getLogger("stfm")
OPEN = ("/health",)


def refusal(status: int, problem: str, headers: dict[str, str] | None = None, **fields: Any) -> JSONResponse:
    """An error as JSON."""
    return JSONResponse(Trouble(problem=problem, **fields).model_dump(), status, headers)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            if not self._allowed(scope):
                answer = refusal(
                    401,
                    "the token is missing or wrong",
                    {"WWW-Authenticate": "Bearer"},
                    fix="send the header `Authorization: Bearer TOKEN`",
                )
                await answer(scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status != 500:
                raise
            await refusal(500, "the server failed on this request; its log says why")(scope, receive, sent)
        finally:
            self.metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, _method(scope["method"]), str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _allowed(self, scope: Scope) -> bool:
        if self.expected is None or scope["path"] in OPEN:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected)


def _method(name: str) -> str:
    return name if name in ("GET", "POST", "HEAD") else "other"
