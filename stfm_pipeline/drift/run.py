"""The stage `drift`: what has drifted by now, since when and how much, beside every series it was read from."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.decision import CHAMPION
from stfm_pipeline.drift.blocks import FEWEST, Record, Track, tracks
from stfm_pipeline.drift.judge import RATE, Verdict, judge
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.pages.axis import DAY_US, duration
from stfm_pipeline.pages.dataset.loaded import Loaded, load
from stfm_pipeline.road import ROAD, Outcome
from stfm_pipeline.settings import Settings
from stfm_pipeline.tables import Check, Signal

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.windows import Panel

log = logging.getLogger("stfm")
DRIFT = "drift"
ALL = "all"
INPUTS = ("harmonized", "embedded", "enriched")
CODE = (
    "stfm_pipeline.drift.blocks",
    "stfm_pipeline.drift.judge",
    "stfm_pipeline.drift.residuals",
    "stfm_pipeline.drift.run",
)
YEAR_US = 365.25 * DAY_US
FINDINGS: dict[str, Any] = {
    "kind": pl.String,
    "channel": pl.String,
    "group": pl.String,
    "since": pl.Datetime("us", "UTC"),
    "alarmed_at": pl.Datetime("us", "UTC"),
    "usual": pl.Float64,
    "now": pl.Float64,
    "change": pl.Float64,
    "unit": pl.String,
    "p": pl.Float64,
    "days": pl.Float64,
}
SERIES: dict[str, Any] = {
    "kind": pl.String,
    "channel": pl.String,
    "group": pl.String,
    "time": pl.Datetime("us", "UTC"),
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "part": pl.String,
    "alarm": pl.Boolean,
}


def measure_drift(name: str, lake: Lake, settings: Settings) -> Outcome:
    """Compare a dataset's tables, and its champion's errors, with their reference and publish what was found.

    An unchanged stage is reused. Data that are too short to compare are published as such, with no finding.
    """
    with alone(settings.lock(name, DRIFT), f"measuring the drift of {name}"):
        return _measure_drift(name, lake, settings)


def _measure_drift(name: str, lake: Lake, settings: Settings) -> Outcome:
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    spec = get_dataset(name).spec
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        stages = {s: lake.require(name, s) for s in INPUTS}
        crowned = _crowned(name, lake, settings)
        inputs = {s: stage.data_version for s, stage in stages.items()}
        inputs |= {CHAMPION: crowned.run_id} if crowned is not None else {}
        mark = fingerprint({"seasons": spec.seasons, "title": spec.title}, code_version(*CODE), inputs)
        found = lake.stage(name, DRIFT)
        if found is not None and found.fingerprint == mark:
            log.info("%s drift: unchanged, not measured again", name)
            return Outcome(found, reused=True)
        loaded = load(spec, lake, stages)
        assert loaded is not None
        record = record_of(loaded, lake.read(stages["embedded"], "spatial")["patch"].cast(pl.String).to_list())
        panel = load_panel(lake, name, settings.cache) if crowned is not None else None
    champion = None
    if crowned is not None:
        from stfm_pipeline.registry import load_model

        champion = load_model(f"models:/{name}/{crowned.version}", settings)
    verdicts, notes = measure(record, panel, champion)
    past = _from_the_past_alone(record, verdicts)
    tables = {"findings": findings(record, verdicts, spec), "series": series(record, verdicts)}
    facts: dict[str, Any] = {
        "licence": spec.licence,
        "until": str(record.start(record.blocks)),
        "reference": [str(record.start(0)), str(record.start(record.known))],
        "block": duration(record.block * record.signal.step_us),
        "rate": RATE,
        "blocks": record.blocks,
        "compared": bool(verdicts),
        "groups": {g: [record.signal.entities[i] for i in np.flatnonzero(m)] for g, m in _members(record)},
        "champion": int(crowned.version) if crowned is not None else None,
        "alarms": alarms(record, verdicts),
        "notes": notes,
    }
    seconds = time.perf_counter() - began
    if not past.passed:
        log.error("%s drift: not published, failed check: %s", name, past.name)
        return Outcome(None, False, [past], seconds)
    published = lake.publish(name, DRIFT, tables, fingerprint=mark, facts=facts, inputs=inputs)
    log.info("%s drift: %d finding(s) by %s, in %.1f s", name, len(tables["findings"]), facts["until"][:10], seconds)
    return Outcome(published, False, [past], seconds)


def _crowned(name: str, lake: Lake, settings: Settings) -> Any | None:
    """The champion's version; a dataset that never had a decision is not asked about."""
    from stfm_pipeline.registry import champion_version

    return champion_version(settings, name) if lake.stage(name, CHAMPION) is not None else None


def record_of(loaded: Loaded, patch: Sequence[str]) -> Record:
    """The signal with the longest declared season that the training part repeats often enough."""
    signal: Signal = loaded.signal
    train = loaded.parts["train"]
    often = [s for s in loaded.seasons if (train.stop - train.start) // s.steps >= FEWEST]
    season = max(often, key=lambda s: s.steps, default=None)
    t, n = signal.values.shape[:2]
    phase = np.zeros((t, 1), np.int64) if season is None else season.phase
    zone = loaded.zone if season is not None and season.civil else np.zeros(n, np.int64)
    kinds = sorted(set(patch), key=int)
    groups = {ALL: np.ones(n, np.bool_)}
    if len(kinds) > 1:
        groups |= {p: np.array([q == p for q in patch]) for p in kinds}
    steps = season.steps if season is not None else 1
    return Record(signal, phase, zone, steps, tuple(groups), np.stack(list(groups.values())), train.stop)


def measure(
    record: Record, panel: Panel | None = None, champion: Forecaster | None = None
) -> tuple[list[Verdict], list[str]]:
    """Every track judged, and what has to be said about those that are not there."""
    found: list[Track] = []
    notes = []
    size = duration(record.block * record.signal.step_us)
    if record.known < FEWEST:
        notes.append(
            f"too little data: the training part holds {record.known} whole blocks of {size}, {FEWEST} are needed"
        )
    elif -(-record.reference // record.block) >= record.blocks:
        notes.append(f"too little data: no whole block of {size} has ended since the training part")
    else:
        found += tracks(record)
    if champion is None or panel is None:
        notes.append("no champion: its errors are not compared")
    else:
        errors, said = _errors(record, panel, champion, size)
        found += errors
        notes += said
    return (judge(found, YEAR_US / (record.block * record.signal.step_us)) if found else []), notes


def _errors(record: Record, panel: Panel, champion: Forecaster, size: str) -> tuple[list[Track], list[str]]:
    from stfm_pipeline.drift.residuals import residual_tracks

    if champion.problem.to_config() != panel.problem.to_config():
        return [], ["the champion answers another problem than these data ask: its errors are not compared"]
    errors = residual_tracks(record, panel, champion)
    there = errors[0].reference.stop - errors[0].reference.start
    if there < FEWEST:
        return [], [
            f"too little data: val and gate hold {there} whole blocks of {size}, {FEWEST} are needed for errors"
        ]
    return errors, []


def _from_the_past_alone(record: Record, verdicts: Sequence[Verdict]) -> Check:
    """Without the last block, all before it must come out the same."""
    promise = "without the last block, every earlier number is the same"
    if not any(v.track.kind == "level" for v in verdicts) or record.blocks - 1 <= -(-record.reference // record.block):
        return Check("measured_from_the_past_alone", True, promise, {})
    now = {v.track.kind: v.track.values for v in verdicts}
    off = [
        t.kind
        for t in tracks(record.until(record.blocks - 1))
        if not np.array_equal(t.values, now[t.kind][:-1], equal_nan=True)
    ]
    return Check("measured_from_the_past_alone", not off, promise, dict.fromkeys(off, "differs"))


def _members(record: Record) -> list[tuple[str, Any]]:
    return list(zip(record.groups, record.member, strict=True))


def findings(record: Record, verdicts: Sequence[Verdict], spec: DatasetSpec) -> pl.DataFrame:
    """What is an alarm now, the surest first."""
    units = {c.name: c.unit for c in spec.channels}
    last, rows = record.blocks - 1, []
    for v in verdicts:
        for g, k in zip(*np.nonzero(v.alarm[last]), strict=True):
            window, began = int(v.window[last, g, k]), _began(v.alarm[:, g, k])
            usual, now = (float(v.track.plain(a)[g, k]) for a in (v.centre, v.change(last, window)))
            channel = record.signal.channels[k]
            rows.append(
                {
                    "kind": v.track.kind,
                    "channel": channel,
                    "group": record.groups[g],
                    "since": _utc(record.start(min(v.since(last, g, k), began))),
                    "alarmed_at": _utc(record.start(began + 1)),
                    "usual": usual,
                    "now": now,
                    "change": now / usual if v.track.ratio else now - usual,
                    "unit": unit(v.track.kind, units[channel]),
                    "p": float(v.p[last, g, k]),
                    "days": window * record.block * record.signal.step_us / DAY_US,
                }
            )
    return pl.DataFrame(rows, FINDINGS).sort("p", "kind", "channel", "group")


def unit(kind: str, channel: str) -> str:
    """What a change of this kind is counted in."""
    return {"level": channel, "phase": "h", "missing": "share", "distribution": "share"}.get(kind, "times")


def _began(alarm: Any) -> int:
    """The first block of the alarm that still lasts."""
    quiet = np.flatnonzero(~alarm)
    return int(quiet[-1]) + 1 if len(quiet) else 0


def alarms(record: Record, verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """One per kind and channel that is an alarm somewhere: since when without a pause, and against which reference."""
    return [
        {
            "kind": v.track.kind,
            "channel": channel,
            "alarmed_at": str(record.start(_began(v.alarm[:, :, k].any(axis=1)) + 1)),
            "reference": str(record.start(v.track.reference.stop)),
        }
        for v in verdicts
        for k, channel in enumerate(record.signal.channels)
        if v.alarm[-1, :, k].any()
    ]


def series(record: Record, verdicts: Sequence[Verdict]) -> pl.DataFrame:
    """Every statistic of every block in plain units, with the range of the reference around it."""
    g, c = len(record.groups), len(record.signal.channels)
    frames = []
    for v in verdicts:
        b = np.arange(record.blocks)
        known = (b >= v.track.reference.start) & (b < v.track.reference.stop)
        part = np.where(known, "reference", np.where(b >= v.track.first, "judged", "between"))
        shape = (record.blocks, g, c)
        times = np.array([record.start(i) for i in range(record.blocks)])
        columns = {
            "kind": np.full(shape, v.track.kind),
            "channel": np.broadcast_to(np.array(record.signal.channels), shape),
            "group": np.broadcast_to(np.array(record.groups)[:, None], shape),
            "time": np.broadcast_to(times[:, None, None], shape),
            "value": v.track.plain(v.track.values),
            "low": np.broadcast_to(v.track.plain(v.centre - v.band), shape),
            "high": np.broadcast_to(v.track.plain(v.centre + v.band), shape),
            "p": v.p,
            "part": np.broadcast_to(part[:, None, None], shape),
            "alarm": v.alarm,
        }
        frame = pl.DataFrame({k: a.ravel() for k, a in columns.items()})
        frames.append(frame.with_columns(pl.col("time").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")))
    if not frames:
        return pl.DataFrame(schema=SERIES)
    return pl.concat(frames).cast(pl.Schema(SERIES)).with_columns(pl.selectors.float().fill_nan(None))


def _utc(moment: np.datetime64) -> datetime:
    found: datetime = moment.astype("datetime64[us]").item()
    return found.replace(tzinfo=UTC)


def write_page(stage: Stage, lake: Lake, settings: Settings) -> Path:
    """Write the page of a published drift stage; returns its path."""
    from stfm_pipeline.drift.page import drift_page
    from stfm_pipeline.pages.base import write

    return write(drift_page(stage, lake), settings.root / "reports" / stage.dataset / "drift.html")
