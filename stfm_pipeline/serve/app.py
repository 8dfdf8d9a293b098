"""The routes: forecasts of a frame that is sent and of the lake's latest data, health, readiness, version, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import polars as pl
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import stfm_pipeline
from stfm_pipeline.errors import FrameError, StfmError
from stfm_pipeline.serve import bodies
from stfm_pipeline.serve.bodies import TooLarge
from stfm_pipeline.serve.forms import Answer, Health, LatestAnswer, Model, Ready, Trouble, Version
from stfm_pipeline.serve.gate import Gate, refusal
from stfm_pipeline.serve.metrics import TYPE, Metrics
from stfm_pipeline.serve.page import page
from stfm_pipeline.serve.pool import Busy, Hold, Pool
from stfm_pipeline.serve.watch import Served, Watch

ABOUT = "The registered version under an alias. A frame of recent observations in, forecasts with intervals out."
FRAME = {
    "required": True,
    "content": {
        bodies.JSON: {
            "schema": {
                "oneOf": [
                    {"type": "array", "items": {"type": "object"}, "description": "Rows."},
                    {"type": "object", "additionalProperties": {"type": "array"}, "description": "Columns."},
                ]
            }
        },
        bodies.ARROW: {"schema": {"type": "string", "format": "binary", "description": "An Arrow IPC stream."}},
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Trouble, "description": "The token is missing or wrong."},
    408: {"model": Trouble, "description": "The body took too long to arrive."},
    413: {"model": Trouble, "description": "The body or the frame is too large."},
    415: {"model": Trouble, "description": "Neither JSON nor an Arrow IPC stream."},
    422: {"model": Trouble, "description": "The frame cannot be used."},
    503: {"model": Trouble, "description": "No model yet, or the queue is full: try again after `Retry-After`."},
    504: {"model": Trouble, "description": "The forecast took too long."},
}


@dataclass(frozen=True)
class Limits:
    """What a request may cost: bytes of its body, rows of its frame, seconds to arrive and seconds to be answered."""

    body: int
    rows: int
    seconds: float


def make_app(watch: Watch, pool: Pool, limits: Limits, metrics: Metrics, token: str | None) -> FastAPI:
    """The application; the watch is started and stopped, and the pool is closed, with it."""

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        watch.start()
        yield
        watch.stop()
        pool.close()

    app = FastAPI(
        title=f"{watch.name}@{watch.alias}",
        description=ABOUT,
        version=stfm_pipeline.__version__,
        lifespan=alive,
        docs_url=None,
        redoc_url=None,
    )
    metrics.follow(lambda: pool.waiting, lambda: watch.data_age)
    _answer_errors(app, limits)

    @app.post("/forecast", response_model=Answer, responses=ERRORS, openapi_extra={"requestBody": FRAME})
    async def forecast(
        request: Request, zone: Annotated[str | None, Query(description="Zone of naive times.")] = None
    ) -> Response:
        """Forecast the steps after the last observation of the frame in the body."""
        served = watch.served
        if served is None:
            return _not_ready(watch)
        form = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if form not in bodies.FORMS or "content-encoding" in request.headers:
            return refusal(415, "a body of this type is not read", expected=" or ".join(bodies.FORMS), found=form)
        fetch = partial(_body, request, limits)
        data, media = await pool.run(fetch, partial(answer, served, form, zone, limits.rows), limits.seconds)
        return Response(data, media_type=media)

    @app.get("/forecast", response_model=LatestAnswer, responses={k: v for k, v in ERRORS.items() if k in (401, 503)})
    async def latest(
        entity: Annotated[list[str] | None, Query(description="Only these; may be given several times.")] = None,
    ) -> Response:
        """The forecast from the end of the data that the lake holds, for every entity."""
        if watch.latest is None:
            return _not_ready(watch)
        served, scored = watch.latest
        rows = scored.forecast
        if entity:
            known = set(rows["unique_id"].unique())
            if strangers := [e for e in entity if e not in known]:
                raise FrameError("entities that the model never met", offenders=strangers, fix="leave `entity` out")
            rows = rows.filter(pl.col("unique_id").is_in(entity))
        facts = {**served.facts, "origin": f"{scored.origin:%Y-%m-%dT%H:%M:%SZ}", "data": scored.tables}
        data, media = bodies.write(rows, "rows", facts)
        return Response(data, media_type=media)

    @app.get("/health")
    async def health() -> Health:
        """The process lives. Needs no token."""
        return Health()

    @app.get("/ready", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        """Whether a version is loaded and has forecast once, and what went wrong since."""
        served, found = watch.served, watch.latest
        response.status_code = 503 if served is None else 200
        return Ready(
            ready=served is not None,
            model=Model(**served.facts) if served else None,
            latest=found[1].origin if found else None,
            troubles=dict(watch.troubles),
        )

    @app.get("/version", response_model=Version, responses={503: {"model": Trouble}})
    async def version() -> Version | Response:
        """The version that answers, what a frame for it holds, and its full lineage."""
        return _version(watch.served, watch.alias) if watch.served else _not_ready(watch)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page(app.openapi(), watch.served), media_type="text/html")

    app.add_middleware(Gate, token=token, metrics=metrics)
    return app


def answer(served: Served, form: str, zone: str | None, most: int, body: bytes) -> tuple[bytes, str]:
    """The body of the answer to `body`, and its content type."""
    frame, kind = bodies.read(body, form, most)
    try:
        forecast = served.forecaster.predict(frame, zone=zone)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OverflowError) as error:
        # A zone nobody knows, times beyond any calendar, columns that are lists.
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise FrameError("the frame cannot be read", found=found) from None
    first = forecast["ds"].min()
    origin = first if isinstance(first, str) else f"{first:%Y-%m-%dT%H:%M:%SZ}"
    return bodies.write(forecast, kind, {**served.facts, "origin": origin})


async def _body(request: Request, limits: Limits, hold: Hold) -> bytes:
    most = f"at most {limits.body} bytes"
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limits.body:
        raise TooLarge(f"{stated} bytes", most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise TooLarge(f"more than {limits.body} bytes", most)
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {limits.seconds:g} seconds") from None
    return b"".join(parts)


def _version(served: Served, alias: str) -> Version:
    p = served.forecaster.problem
    return Version(
        **served.facts,
        alias=alias,
        look_back=p.look_back,
        horizon=p.horizon,
        step_seconds=p.step_us / 1e6,
        channels=list(p.channels),
        optional=[*p.past, *p.ahead],
        intervals=list(served.forecaster.levels),
        entities=p.n,
        lineage=served.forecaster.lineage,
    )


def _not_ready(watch: Watch) -> Response:
    reasons = "; ".join(watch.troubles.values()) or "still loading"
    return refusal(503, "nothing to answer with yet", {"Retry-After": "5"}, found=reasons, fix="ask /ready")


def _answer_errors(app: FastAPI, limits: Limits) -> None:
    def on(kind: type[Exception], show: Callable[[Any], Response]) -> None:
        async def handle(_: Request, error: Exception) -> Response:
            return show(error)

        app.add_exception_handler(kind, handle)

    def stfm(error: StfmError) -> Response:
        fields: dict[str, Any] = {
            "expected": error.expected,
            "found": error.found,
            "offenders": error.offenders,
            "fix": error.fix,
        }
        return refusal(422 if isinstance(error, FrameError) else 500, error.problem, None, **fields)

    def too_large(error: TooLarge) -> Response:
        found, expected = error.args
        # What is left of the body is not read.
        return refusal(413, "too large", {"Connection": "close"}, expected=expected, found=found)

    def http(error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return refusal(
            error.status_code,
            str(error.detail),
            headers | ({"Connection": "close"} if error.status_code == 408 else {}),
        )

    def invalid(error: RequestValidationError) -> Response:
        return refusal(422, "the request is not valid", offenders=[json.dumps(e["loc"]) for e in error.errors()[:5]])

    busy = "the queue is full"
    on(StfmError, stfm)
    on(TooLarge, too_large)
    on(HTTPException, http)
    on(RequestValidationError, invalid)
    on(Busy, lambda _: refusal(503, busy, {"Retry-After": "1"}, fix="send it again after `Retry-After` seconds"))
    on(TimeoutError, lambda _: refusal(504, "the forecast took too long", expected=f"{limits.seconds:g} seconds"))
    on(ClientDisconnect, lambda _: refusal(400, "the client went away"))
