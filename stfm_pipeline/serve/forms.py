"""What goes over the wire, as types: the page at /docs and the OpenAPI document are made from these."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

LONGEST = 500


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


# What was sent comes back in errors, but not all of it.
Text = Annotated[str, AfterValidator(_cut)]


class Model(BaseModel):
    """Which version answered, and the data versions of the tables it was trained on."""

    model: str
    version: int
    run_id: str
    system: str
    fingerprint: str
    tables: dict[str, str]


class Answer(Model):
    """Forecasts of the `horizon` steps from `origin` on, in data units."""

    origin: datetime = Field(description="First step that is forecast, UTC.")
    forecast: list[dict[str, Any]] | dict[str, list[Any]] = Field(
        description="Rows or columns, as they were sent: unique_id, ds, each channel, each interval bound "
        "(`<channel>_q0.1`)."
    )


class LatestAnswer(Answer):
    """The same from the end of the data in the lake."""

    data: dict[str, str] = Field(description="Data versions of the tables it goes on from.")


class Version(Model):
    """The version that answers, what a frame for it holds, and everything it was made from."""

    alias: str
    look_back: int
    horizon: int
    step_seconds: float
    channels: list[str]
    optional: list[str] = Field(description="Side columns that a frame may hold.")
    intervals: list[float]
    entities: int
    lineage: dict[str, Any]


class Ready(BaseModel):
    """`ready` once a version has been loaded and has forecast; `troubles` are what went wrong since."""

    ready: bool
    model: Model | None
    latest: datetime | None = Field(description="First step of the forecast of the data in the lake.")
    troubles: dict[str, str]


class Health(BaseModel):
    status: str = "ok"


class Trouble(BaseModel):
    """What is wrong: what was expected, what was found, the first offenders, and what mends it."""

    problem: Text
    expected: Text | None = None
    found: Text | None = None
    offenders: list[Text] = []
    fix: Text | None = None
