"""The leak audit: a dataset's later data are changed or cut off, and what was there before must come out the same.

Three promises, each proven on the dataset itself by computing its stages again from altered raw tables:

- noise after the training part changes nothing that is fitted on it, and no earlier row;
- side information that was not yet known at a moment changes no earlier row of what is joined;
- with everything after a moment cut off, all rows before it are the same.

What is fitted is what a step declares so; every other table has a column `time`, and its rows only look back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Channel, Dataset, Facts, Split
from stfm_pipeline.lake import Lake, Stage, Tables
from stfm_pipeline.large import Chunks, Table, whole
from stfm_pipeline.settings import Settings
from stfm_pipeline.stage import Tail
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import Signal, dense_observations, dense_rows, dense_values, is_dense, step_us

Frames = dict[str, pl.DataFrame]
ROWS_OF_A_COMPARISON = 4096
# Where in what follows the training part the data are cut off.
CUTS = (0.1, 0.5, 0.9)
LOST, BLANK = 0.1, 0.3


@dataclass
class Promise:
    """One promise: what was compared, and where it is broken."""

    check: str
    description: str
    compared: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As `check_dataset` lists checks."""
        tables = ", ".join(f"{table} {rows}" for table, rows in sorted(self.compared.items()))
        return {
            "stage": "leaks",
            "check": self.check,
            "passed": not self.broken,
            "description": self.description,
            "details": {"compared rows": tables or "nothing: it does not apply", **self.broken},
        }


def audit(name: str, lake: Lake, settings: Settings) -> list[dict[str, Any]]:
    """A row per promise, for the published raw tables of a dataset and its split; nothing is published."""
    dataset, raw = get_dataset(name), lake.require(name, "raw")
    facts = lake.require(name, "harmonized").facts
    tables = {t: lake.read(raw, t) for t in raw.tables}
    study = Study(dataset, tables, facts, settings)
    return [promise.row() for promise in (study.noise(), study.side_information(), study.cut_off())]


class Held(Lake):
    """Stages in memory, as far as computing the next one asks for them."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.held: dict[str, tuple[Stage, Tables]] = {}

    def put(self, dataset: str, name: str, tables: Tables, facts: dict[str, Any]) -> None:
        unsaid: dict[str, Any] = dict.fromkeys(("fingerprint", "data_version", "published_at"), "")
        unsaid |= {"inputs": {}, "blocks": {}, "since": None, "cost": {}, "version": 0}
        self.held[name] = Stage(dataset, name, tables=dict.fromkeys(tables, 0), facts=facts, **unsaid), tables

    def stage(self, dataset: str, stage: str) -> Stage | None:
        return self.held[stage][0] if stage in self.held else None

    def table(self, stage: Stage, table: str) -> Table:
        found = self.held[stage.name][1][table]
        assert not isinstance(found, Tail)
        return found

    def read(self, stage: Stage, table: str) -> pl.DataFrame:
        return whole(self.table(stage, table))

    def pages(self, stage: str, table: str) -> Iterator[pl.DataFrame]:
        """A table some rows at a time."""
        found = self.held[stage][1][table]
        if isinstance(found, Chunks):
            yield from found.frames()
        else:
            yield from cast(pl.DataFrame, found).iter_slices(ROWS_OF_A_COMPARISON)


class Study:
    """A dataset's stages as they are, beside those of other data."""

    def __init__(self, dataset: Dataset, raw: Frames, facts: dict[str, Any], settings: Settings) -> None:
        self.dataset, self.raw, self.settings = dataset, raw, settings
        self.step = timedelta(microseconds=step_us(dataset.spec.harmonize.step))
        self.start, self.end = (datetime.fromisoformat(facts[k]).replace(tzinfo=UTC) for k in ("start", "end"))
        train, val, gate, test = (facts["parts"][p] for p in ("train", "val", "gate", "test"))
        self.train_steps, self.trained = train[1], self.start + train[1] * self.step
        widths = [train[1], val[1] - val[0], 0 if gate == val else gate[1] - gate[0], test[1] - test[0]]
        self.widths = widths
        self.whole = self._made(raw, self.end)

    def noise(self) -> Promise:
        """Other values, other gaps and other edges after the training part."""
        promise = Promise("nothing_after_training_is_fitted", "noise after the training part changes nothing before")
        # An edge is dated by when it was known, a row by when its step starts.
        late = {"edges": pl.col("time") > self.trained}
        other = {t: self._noisy(t, f, late.get(t, pl.col("time") >= self.trained)) for t, f in self.raw.items()}
        self._compare(promise, self._made(other, self.end), self.trained, fitted=True)
        return promise

    def side_information(self) -> Promise:
        """Other side information of which nobody knew yet: some in the training part, and some after it."""
        promise = Promise("side_information_as_of_its_time", "what was not yet known of side tables changes nothing")
        joins = self.dataset.spec.joins
        for moment in (self._step(self.train_steps // 2), self._after(0.5)) if joins else ():
            other = dict(self.raw)
            for join in joins:
                lag = timedelta(microseconds=step_us(join.lag, zero=True))
                late = self.step + lag if join.availability == "past" else timedelta()
                table = join.table
                if table in other and other[table] is self.raw[table]:
                    known = _known(self.raw[table], late)
                    if table in self._told():
                        # A plan that does not say when it was known always was.
                        known = pl.col("known_at")
                    other[table] = self._noisy(table, self.raw[table], known > moment)
            found = self._made(other, self.end, only=("enriched",))
            self._compare(promise, found, moment, fitted=moment >= self.trained, only=("enriched",))
            self._compare_plans(promise, found, moment)
        return promise

    def cut_off(self) -> Promise:
        """Everything after a moment is not there: the clock ends with it."""
        promise = Promise("the_past_stays", "with all that follows a moment cut off, every row before it is the same")
        for moment in dict.fromkeys(self._after(share) for share in CUTS):
            before = pl.col("time").is_null() | (pl.col("time") < moment)
            other = {t: f.filter(before) if "time" in f.columns else f for t, f in self.raw.items()}
            rest = (moment - self.start) // self.step - self.train_steps
            first = self.dataset.spec.task.clip or self.dataset.spec.task.horizon
            widths = [self.train_steps, first, 0, rest - first]
            self._compare(promise, self._made(other, moment, widths), moment, fitted=True, but=("split",))
        return promise

    def _step(self, steps: int) -> datetime:
        return self.start + steps * self.step

    def _after(self, share: float) -> datetime:
        """A moment in what follows the training part, far enough in for two parts of one window each."""
        rest, clip = (self.end - self.trained) // self.step, self.dataset.spec.task.clip
        later = max(2 * (clip or self.dataset.spec.task.horizon), round(share * rest))
        return self._step(self.train_steps + later // (clip or 1) * (clip or 1))

    def _made(self, raw: Frames, end: datetime, widths: list[int] | None = None, only: tuple[str, ...] = ()) -> Held:
        """The stages of these raw tables on a clock up to `end`; those not in `only` are the dataset's own."""
        spec = self.dataset.spec
        rule = spec.harmonize.model_copy(update={"start": self.start, "end": end})
        split = Split(ratios=None, counts=cast(Any, tuple(widths or self.widths)))
        changed = {"harmonize": rule, "split": split, "end": None, "facts": Facts()}
        dataset = self.dataset.model_copy(update={"spec": spec.model_copy(update=changed)})
        made = Held()
        made.put(spec.name, "raw", raw, {})
        for stage in list(STEPS)[1:]:
            if only and stage not in only:
                made.held[stage] = self.whole.held[stage]
            else:
                found = STEPS[stage].compute(dataset, made, self.settings)
                made.put(spec.name, stage, found.tables, found.facts)
        return made

    def _compare(
        self,
        promise: Promise,
        other: Held,
        moment: datetime,
        fitted: bool,
        only: tuple[str, ...] = (),
        but: tuple[str, ...] = (),
    ) -> None:
        for step in list(STEPS.values())[1:]:
            if only and step.name not in only:
                continue
            one, two = (lake.held[step.name][1] for lake in (self.whole, other))
            for table in sorted({*one, *two} - {*but}):
                key = f"{step.name}.{table}"
                if table not in one or table not in two:
                    promise.broken[key] = f"is there with only one of both, {moment:%Y-%m-%dT%H:%MZ}"
                    continue
                dated = "time" in next(self.whole.pages(step.name, table), pl.DataFrame()).columns
                if table not in step.fitted and not dated:
                    promise.broken[key] = "is neither declared fitted nor has a column `time`"
                elif dated or fitted:
                    until = None if table in step.fitted else moment
                    rows, differs = _same(self.whole.pages(step.name, table), other.pages(step.name, table), until)
                    promise.compared[key] = promise.compared.get(key, 0) + rows
                    if differs:
                        when = "" if until is None else f" before {until:%Y-%m-%dT%H:%MZ}"
                        promise.broken.setdefault(key, f"{differs}{when}")

    def _told(self) -> set[str]:
        """Tables of plans that say when they were known."""
        plans = {j.table for j in self.dataset.spec.joins if j.availability == "ahead"}
        return {t for t in plans if t in self.raw and "known_at" in self.raw[t].columns}

    def _compare_plans(self, promise: Promise, other: Held, moment: datetime) -> None:
        """What a window that begins at a moment is shown of plans that are made bit by bit."""
        if not all("ahead_lead" in lake.held["enriched"][1] for lake in (self.whole, other)):
            return
        one, two = (self._planned(lake, moment) for lake in (self.whole, other))
        key = "enriched.ahead as a window sees it"
        promise.compared[key] = promise.compared.get(key, 0) + len(one)
        if not np.array_equal(one, two, equal_nan=True):
            step = int(np.argwhere(~((one == two) | (np.isnan(one) & np.isnan(two))))[0][0])
            promise.broken.setdefault(key, f"differs in step {step + 1} after {moment:%Y-%m-%dT%H:%MZ}")

    def _planned(self, lake: Held, moment: datetime) -> NDArray[np.float64]:
        """Planned values (horizon, n, k) that were known at a moment, NaN where they were not."""
        stage = lake.held["enriched"][0]
        names = lake.read(lake.held["harmonized"][0], "entities")["entity"].to_list()
        columns, coming = stage.facts["dense"]["ahead"], pl.col("time") >= moment
        horizon = self.dataset.spec.task.horizon
        plan, leads = (lake.read(stage, t).filter(coming).head(horizon) for t in ("ahead", "ahead_lead"))
        signal = Signal.from_frame(plan, names, columns)
        lead = leads["lead"].list.to_array(len(names) * len(columns)).to_numpy().reshape(signal.values.shape)
        seen = signal.observed & (lead >= np.arange(len(lead))[:, None, None])
        told = {c for j in self.dataset.spec.joins if j.table in self._told() for c in j.columns}
        some = [c in told for c in columns]
        return np.where(seen, signal.values.astype(np.float64), np.nan)[..., some]

    def _noisy(self, table: str, frame: pl.DataFrame, late: pl.Expr) -> pl.DataFrame:
        """A raw table whose `late` rows hold other values in the same range, and others of them none."""
        if "time" not in frame.columns or not frame.schema["time"].is_temporal():
            return frame
        rng = np.random.default_rng(0)
        rows = frame.select(late.fill_null(False)).to_series().to_numpy()
        channels = {c.name: c for c in self.dataset.spec.channels} if table == "observations" else {}
        if table == "observations" and is_dense(frame):
            blocks = {}
            for name in (c for c in frame.columns if c != "time"):
                cells = np.array(dense_values(frame, name), np.float64)
                cells[rows] = _other(cells[~rows], cells[rows].shape, channels.get(name), rng)
                blocks[name] = cells
            there = dense_rows(frame)
            return dense_observations(frame["time"], blocks, None if there is None else there | rows[:, None])
        # Places do not move.
        numbers = [c for c in frame.columns if frame.schema[c].is_float() and c not in ("lon", "lat")]
        changed = []
        for name in numbers:
            cells = frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
            cells[rows] = _other(cells[~rows], (int(rows.sum()),), channels.get(name), rng)
            if table == "edges":
                cells[rows] = np.nan_to_num(cells[rows], nan=1.0)
            changed.append(pl.Series(name, cells).fill_nan(None).cast(frame.schema[name]))
        return frame.with_columns(changed).filter(pl.Series(~rows | (rng.random(len(rows)) >= LOST)))


def _known(table: pl.DataFrame, late: timedelta) -> pl.Expr:
    """When each row of a side table was known: when it says so, else so much after its time."""
    usual = pl.col("time") + late
    return pl.coalesce("known_at", usual) if "known_at" in table.columns else usual


def _other(known: NDArray[np.float64], shape: tuple[int, ...], channel: Channel | None, rng: Any) -> Any:
    """Noise over three times the range of what is known, inside the channel's limits, and nothing in some cells."""
    seen = known[np.isfinite(known)]
    low, high = np.quantile(seen, (0.01, 0.99)) if len(seen) else (0.0, 1.0)
    low, high = max(low - (high - low), 0.0 if len(seen) and seen.min() >= 0 else -np.inf), high + (high - low)
    if channel is not None:
        low = low if channel.minimum is None else max(low, channel.minimum)
        high = high if channel.maximum is None else min(high, channel.maximum)
    out = rng.uniform(low, max(low, high), shape)
    if len(seen) and (seen == np.round(seen)).all():
        out = np.round(out)
    out[rng.random(shape) < BLANK] = np.nan
    return out


def _same(ones: Iterator[pl.DataFrame], twos: Iterator[pl.DataFrame], until: datetime | None) -> tuple[int, str]:
    """Rows compared (those before `until`), and where two tables begin to differ."""
    compared = 0
    for one, two in zip_longest(ones, twos):
        if one is None or two is None:
            more = one if two is None else two
            more = more if until is None else more.filter(pl.col("time") < until)
            return compared, f"has {len(more)} rows too many or too few" if len(more) else ""
        if until is not None:
            one, two = (page.filter(pl.col("time") < until) for page in (one, two))
        if one.schema != two.schema:
            return compared, "has other columns"
        if not one.equals(two):
            return compared + len(one), _first(one, two)
        compared += len(one)
    return compared, ""


def _first(one: pl.DataFrame, two: pl.DataFrame) -> str:
    if len(one) != len(two):
        return f"has {len(one)} or {len(two)} rows"
    differs: Callable[[str], pl.Series] = lambda c: one[c].ne_missing(two[c])  # noqa: E731
    columns = [c for c in one.columns if differs(c).any()]
    if not columns:
        return "differs"
    row = int(cast(int, differs(columns[0]).arg_max()))
    where = one[row].select(c for c in one.columns if c in ("time", "entity", "channel", "source", "target", "feature"))
    return f"differs in {', '.join(columns[:3])}, first at {', '.join(map(str, where.rows()[0])) or f'row {row}'}"
