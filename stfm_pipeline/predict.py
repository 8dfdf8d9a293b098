"""Frames in, frames out: a long frame of recent observations becomes a long frame of forecasts with intervals."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from stfm_pipeline.embed import temporal
from stfm_pipeline.errors import FrameError
from stfm_pipeline.forecaster import ROUNDING
from stfm_pipeline.tables import to_utc
from stfm_pipeline.windows import CALENDAR, Window, code_categories, standardize

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.windows import Arrays, Panel, Problem

log = logging.getLogger("stfm")
SHOWN = 20


def predict(
    forecaster: Forecaster, frame: Any, *, id_col: str = "unique_id", time_col: str = "ds", zone: str | None = None
) -> Any:
    """Forecast the `horizon` steps after the last observation of a polars or pandas frame; the same kind comes back.

    In: `id_col`, `time_col` and the model's channels, at least `look_back` steps of them; side columns optional.
    Rows after the last observation carry what is known ahead (a timetable) with empty channels. Out: the same ids and
    times, a column per channel and per interval bound (`<channel>_q0.1`), in data units. The input is not changed.

    Rules: times carry a zone or `zone` is given; a step without a row is unobserved, or the channel's stated value for
    one (0 for counts); a row with an empty channel, and an entity left out, are unobserved, and so is what the dataset
    masks: a missing code, a value beyond its range (a warning is logged), a series hardly observed in training. The
    dataset's outlier filters are not applied. Anything else raises `FrameError`.
    """
    problem = forecaster.problem
    pandas = not isinstance(frame, pl.DataFrame)
    rows = _to_polars(frame) if pandas else frame
    _check_columns(rows, problem, id_col, time_col)
    text_times = rows.schema[time_col] == pl.String
    side = [c for c in (*problem.past, *problem.ahead) if c in rows.columns]
    rows = rows.select(
        pl.col(id_col).cast(pl.String).alias("entity"),
        utc_times(rows, time_col, zone).alias("time"),
        *(_number(rows, c) for c in (*problem.channels, *side)),
    )
    asked = _check_entities(rows, problem)
    stated = rows.select(pl.any_horizontal(pl.col(problem.channels).is_not_null())).to_series()
    given = _Given.of(_accepted(rows, problem), stated, problem)
    _check_times(rows, given, problem)
    origin = _origin(given, problem)
    forecast = forecaster.forecast(_window(given, origin, forecaster.absent, problem))
    code = {e: i for i, e in enumerate(problem.entities)}
    nodes = sorted(code[e] for e in asked)
    asked = [problem.entities[i] for i in nodes]
    ahead = origin + np.arange(problem.horizon) * np.timedelta64(problem.step_us, "us")
    times = pl.Series(ahead).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    out = pl.DataFrame(
        {
            id_col: np.repeat(np.array(asked, dtype=object), problem.horizon).tolist(),
            time_col: pl.concat([times] * len(asked)),
        }
    )
    values = {c: forecast.values[0, :, nodes, k] for k, c in enumerate(problem.channels)}
    if forecast.bounds is not None:
        for q, level in enumerate(forecaster.levels):
            values |= {f"{c}_q{level:g}": forecast.bounds[q, 0, :, nodes, k] for k, c in enumerate(problem.channels)}
    ordered = [name for c in problem.channels for name in values if name == c or name.startswith(f"{c}_q")]
    out = out.with_columns(
        pl.Series(name, values[name].T.contiguous().numpy().ravel()).cast(pl.Float64) for name in ordered
    )
    if text_times:
        out = out.with_columns(pl.col(time_col).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return out.to_pandas() if pandas else out


def _to_polars(frame: Any) -> pl.DataFrame:
    try:
        converted = pl.from_pandas(frame)
    except (TypeError, ValueError, AttributeError) as error:
        raise FrameError("not a frame", expected="a polars or pandas DataFrame", found=type(frame).__name__) from error
    assert isinstance(converted, pl.DataFrame)
    return converted


def _check_columns(rows: pl.DataFrame, problem: Problem, id_col: str, time_col: str) -> None:
    wanted = [id_col, time_col, *problem.channels]
    missing = [c for c in wanted if c not in rows.columns]
    known = {*wanted, *problem.past, *problem.ahead}
    strangers = [c for c in rows.columns if c not in known]
    if missing or strangers:
        others = strangers or ([] if missing else sorted(known))
        near = {c: get_close_matches(c, others, n=1) for c in (missing or strangers)}
        hints = [f"'{n[0]}' for '{c}'" for c, n in near.items() if n]
        raise FrameError(
            f"columns are {'missing' if missing else 'not known to the model'}",
            expected=f"{', '.join(wanted)}; optional: {', '.join((*problem.past, *problem.ahead)) or 'none'}",
            found=_some(rows.columns),
            offenders=missing or strangers,
            fix=f"did you mean {'; '.join(hints)}?"
            if hints
            else f"{'add' if missing else 'drop'} or rename them (`id_col=`, `time_col=` set names)",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _number(rows: pl.DataFrame, column: str) -> pl.Expr:
    if not (rows.schema[column].is_numeric() or rows.schema[column] in (pl.Null, pl.Boolean)):
        raise FrameError(f"column '{column}' does not hold numbers", found=str(rows.schema[column]))
    value = pl.col(column).cast(pl.Float64)
    return pl.when(value.is_finite()).then(value).alias(column)


def _accepted(rows: pl.DataFrame, problem: Problem) -> pl.DataFrame:
    """Rows whose missing codes and values beyond their range are empty, as in the data that the model learned from."""
    beyond, coded = {}, {}
    for channel, (low, high, codes) in zip(problem.channels, problem.accepted, strict=False):
        value = pl.col(channel).cast(pl.Float32)
        least, most = (pl.lit(v, pl.Float32) for v in (low, high))
        coded[channel] = value.is_in(pl.Series(codes, dtype=pl.Float32).implode())
        beyond[channel] = pl.any_horizontal(value < least, value > most).fill_null(value=False) & ~coded[channel]
    counts = rows.select(pl.col(c).filter(out).count() for c, out in beyond.items())
    for channel in [c for c in counts.columns if counts[c].item()]:
        low, high, _ = problem.accepted[problem.channels.index(channel)]
        bounds = " or ".join(f"{w} {v:g}" for w, v in (("below", low), ("above", high)) if v is not None)
        text = "%d of %d values of '%s' are %s and count as unobserved"
        log.warning(text, counts[channel].item(), rows[channel].count(), channel, bounds)
    return rows.with_columns(pl.when(~(beyond[c] | coded[c])).then(c).alias(c) for c in beyond)


def utc_times(rows: pl.DataFrame, column: str, zone: str | None) -> pl.Expr:
    """A column of zoned datetimes or ISO 8601 text as UTC; naive ones need `zone`, anything else is a `FrameError`."""
    kind = rows.schema[column]
    times = pl.col(column)
    if kind == pl.String:
        sample = rows[column].drop_nulls().head(1).to_list()
        offset = bool(sample) and (sample[0].endswith("Z") or sample[0][-6:-5] in ("+", "-"))
        try:
            if offset:
                return pl.lit(rows[column].str.to_datetime(time_unit="us", time_zone="UTC"))
            parsed = rows[column].str.to_datetime(time_unit="us")
        except pl.exceptions.PolarsError as error:
            raise FrameError(
                f"'{column}' holds text that is not a time",
                expected="ISO 8601, e.g. 2013-12-01T05:00:00Z",
                found=str(error),
            ) from error
        return to_utc(pl.lit(parsed), _zone(column, zone))
    if not isinstance(kind, pl.Datetime):
        raise FrameError(f"'{column}' does not hold times", expected="datetimes or ISO 8601 text", found=str(kind))
    if kind.time_zone is None:
        return to_utc(times, _zone(column, zone))
    return times.dt.convert_time_zone("UTC").dt.cast_time_unit("us")


def _zone(column: str, zone: str | None) -> str:
    if not zone:
        raise FrameError(
            f"'{column}' carries no time zone",
            expected="times with a zone, or ISO 8601 text with an offset",
            found="naive times",
            fix="pass the zone they are in, e.g. zone='America/New_York' or zone='UTC'",
        )
    return zone


@dataclass(frozen=True)
class _Given:
    """Rows as arrays (r,): step of the epoch, entity, whether any channel was stated, and each column's numbers.

    What is stated may be a missing code: it says that the step is over, and nothing else.
    """

    step: NDArray[np.int64]
    node: NDArray[np.int64]
    stated: NDArray[np.bool_]
    numbers: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, rows: pl.DataFrame, stated: pl.Series, problem: Problem) -> _Given:
        names = rows.columns[2:]
        table = rows.select(
            pl.col("time").dt.epoch("us").floordiv(problem.step_us).alias("_step"),
            pl.col("entity").cast(_enum(problem.entities)).to_physical().cast(pl.Int64).alias("_node"),
            stated.alias("_stated"),
            *(pl.col(c).cast(pl.Float32).fill_null(np.nan) for c in names),
        )
        step, node, told, *numbers = (table[c].to_numpy() for c in table.columns)
        return cls(step, node, told, dict(zip(names, numbers, strict=True)))


@lru_cache(maxsize=8)
def _enum(entities: tuple[str, ...]) -> pl.Enum:
    return pl.Enum(entities)


def _check_entities(rows: pl.DataFrame, problem: Problem) -> list[str]:
    asked: list[str] = rows["entity"].unique(maintain_order=True).to_list()
    if None in asked or rows["time"].null_count():
        raise FrameError(
            "rows without an id or a time", found=f"{rows['entity'].null_count()} and {rows['time'].null_count()}"
        )
    known = set(problem.entities)
    strangers = [e for e in asked if e not in known]
    if strangers:
        near = get_close_matches(strangers[0], problem.entities, n=3)
        raise FrameError(
            "entities that the model never met",
            expected=f"some of its {problem.n} entities" + (f", e.g. {', '.join(near)}" if near else ""),
            offenders=strangers,
            fix="drop them, or retrain with them in the dataset",
        )
    return asked


def _check_times(rows: pl.DataFrame, given: _Given, problem: Problem) -> None:
    double = rows.select("entity", "time").is_duplicated()
    if double.any():
        bad = rows.filter(double).select("entity", "time").unique(maintain_order=True).to_dicts()
        raise FrameError(
            "several rows for one entity and time",
            expected="one row each",
            offenders=[f"{r['entity']} at {r['time']:%Y-%m-%dT%H:%MZ}" for r in bad],
        )
    times = rows["time"]
    off = times.filter(times.dt.epoch("us").to_numpy() != given.step * problem.step_us)
    if len(off):
        raise FrameError(
            "times off the model's clock",
            expected=f"multiples of {problem.step_us // 1_000_000} seconds in UTC",
            offenders=[f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in off.unique().sort()],
            fix="resample to the step the model was trained on",
        )


def _origin(given: _Given, problem: Problem) -> np.datetime64:
    if not any(np.isfinite(given.numbers[c]).any() for c in problem.channels):
        raise FrameError("no observation in the frame", expected=f"at least {problem.look_back} steps of history")
    # A row whose values are empty still says that its step is over.
    begin, end = int(given.step.min()), int(given.step[given.stated].max())
    first, last = (np.datetime64(s * problem.step_us, "us") for s in (begin, end))
    step = np.timedelta64(problem.step_us, "us")
    origin: np.datetime64 = last + step
    span = end - begin + 1
    if span < problem.look_back:
        raise FrameError(
            "too short a history",
            expected=f"at least {problem.look_back} steps up to the last observation",
            found=f"{span} steps, {first} to {last}",
            fix=f"start at {origin - problem.look_back * step} or earlier",
        )
    return origin


def _window(given: _Given, origin: np.datetime64, absent: dict[str, float | None], problem: Problem) -> Window:
    look_back, horizon, recent = problem.look_back, problem.horizon, problem.recent
    tensors = {k: v.numpy() for k, v in problem.tensors.items() if not k.startswith("adj")}
    index = given.step - (int(origin.astype(np.int64)) // problem.step_us - look_back)
    present = np.zeros(problem.n, np.bool_)
    present[given.node[given.stated]] = True
    length = look_back + horizon

    def dense(mine: Any, start: int, stop: int, columns: tuple[str, ...]) -> tuple[Any, Any]:
        at = mine & (index >= start) & (index < stop)
        step, node = index[at] - start, given.node[at]
        rowed = np.zeros((stop - start, problem.n), np.bool_)
        rowed[step, node] = True
        values = np.zeros((*rowed.shape, len(columns)), np.float32)
        observed = np.zeros(values.shape, np.bool_)
        for k, column in enumerate(columns):
            if column not in given.numbers:
                continue
            found = given.numbers[column][at]
            ok = np.isfinite(found)
            values[step[ok], node[ok], k] = found[ok]
            observed[step[ok], node[ok], k] = True
            fill = absent.get(column)
            if fill is not None and ok.any():
                gap = ~rowed & present
                values[..., k][gap], observed[..., k][gap] = fill, True
        return values, observed

    every = np.ones(len(index), np.bool_)
    values, observed = dense(every, 0, look_back, problem.channels)
    if "used" in tensors:
        observed &= tensors["used"]
    full = np.zeros((length, problem.n, problem.c), np.float32)
    seen = np.zeros(full.shape, np.bool_)
    full[:look_back] = standardize(values, observed, tensors["mean"], tensors["std"])
    seen[:look_back] = observed
    side = {}
    for name, start, stop in (("past", look_back - recent, look_back), ("ahead", look_back, length)):
        block, mask = dense(every, start, stop, getattr(problem, name))
        side[name] = standardize(block, mask, tensors[f"{name}_mean"], tensors[f"{name}_std"])
        side[f"{name}_observed"] = mask
    codes, offset = _calendar(origin, look_back, horizon, problem.zones, problem.step_us, problem.countries)
    arrays = {
        "values": full,
        "observed": seen,
        "calendar": code_categories(codes, [tensors[f"seen_{f}"] for f in CALENDAR]),
        "offset": offset.astype(np.int64),
        **side,
    }
    return Window(**{k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in arrays.items()})


# Half of a small forecast's time; those that are asked together mostly begin together.
@lru_cache(maxsize=64)
def _calendar(
    origin: np.datetime64,
    look_back: int,
    horizon: int,
    zones: tuple[str, ...],
    step_us: int,
    countries: tuple[str | None, ...],
) -> tuple[NDArray[Any], NDArray[Any]]:
    clock = origin + np.arange(-look_back, horizon) * np.timedelta64(step_us, "us")
    table = temporal.calendar(clock, zones, step_us, countries)
    shape = (len(clock), len(zones))
    return table.select(CALENDAR).to_numpy().reshape(*shape, len(CALENDAR)), table["offset"].to_numpy().reshape(shape)


def _told(arrays: Arrays, origin: int) -> Any:
    """Planned cells that were known at an origin."""
    if arrays.lead is None:
        return True
    return arrays.lead >= (torch.arange(len(arrays.lead)) - origin)[:, None, None]


def frame_of(panel: Panel, origin: int, entities: tuple[str, ...] | None = None) -> pl.DataFrame:
    """The frame a user would have had just before step `origin`: look-back, and rows ahead where a plan is known."""
    p = panel.problem
    chosen = entities or p.entities
    nodes = [p.entities.index(e) for e in chosen]
    tensors = p.tensors
    look_back = slice(origin - p.look_back, origin)
    ahead = slice(origin, min(origin + p.horizon, len(panel.times)) if p.ahead else origin)
    steps = [*range(look_back.start, look_back.stop), *range(ahead.start, ahead.stop)]
    columns: dict[str, Any] = {}

    def column(
        values: torch.Tensor, observed: torch.Tensor, mean: str, std: str, k: int, keep: np.ndarray[Any, Any]
    ) -> pl.Series:
        data = values[steps][:, nodes, k] * tensors[std][nodes, k] + tensors[mean][nodes, k]
        # What scaling there and back leaves of a 0 would be a count below 0.
        data = torch.where(data.abs() < ROUNDING * tensors[std][nodes, k], 0.0, data)
        seen = observed[steps][:, nodes, k].numpy() & keep[:, None]
        return pl.Series(np.where(seen, data.numpy(), np.nan).T.ravel().astype(np.float64)).fill_nan(None)

    a = panel.arrays
    past = np.array([s < origin for s in steps])
    every = np.ones(len(steps), np.bool_)
    for k, name in enumerate(p.channels):
        low, high, _ = p.accepted[k] if p.accepted else (None, None, ())
        columns[name] = column(a.values, a.observed, "mean", "std", k, past).clip(low, high)
    for k, name in enumerate(p.past):
        columns[name] = column(a.past, a.past_observed, "past_mean", "past_std", k, past)
    for k, name in enumerate(p.ahead):
        columns[name] = column(a.ahead, a.ahead_observed & _told(a, origin), "ahead_mean", "ahead_std", k, every)
    times = pl.Series(panel.times[steps]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.DataFrame(
        {
            "unique_id": np.repeat(np.array(chosen, dtype=object), len(steps)).tolist(),
            "ds": pl.concat([times] * len(chosen)),
            **columns,
        }
    )
