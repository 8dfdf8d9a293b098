"""What a dataset says about itself. One model for built-in datasets and for a user's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from stfm_pipeline import large
from stfm_pipeline.datasets.formats import Table
from stfm_pipeline.datasets.formats.base import Box, Model, Moment, Real, Scene, Whole, check_box
from stfm_pipeline.datasets.rules import (
    Adjacency,
    Coarsen,
    Correlation,
    Decompose,
    Filter,
    Finite,
    Lattice,
    Outliers,
    Phase,
)
from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.sources import Source
from stfm_pipeline.tables import DAY_US, is_zone, leaves_utc, step_us
from stfm_pipeline.truth import Truth

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
TABLE = re.compile(r"[a-z][a-z0-9_]{0,40}")
Kind = Literal["graph", "grid", "trajectory", "event", "video"]
Part = Literal["train", "val", "gate", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "gate", "test")
# Half of the way around: further away is nothing.
EARTH_KM = 20_038.0


def check_name(name: str) -> str:
    """Names become partitions, paths and SQL schemas, so they match `[a-z0-9][a-z0-9-]{0,62}` and nothing else."""
    if not NAME.fullmatch(name):
        raise UsageError(
            "not a valid dataset name",
            expected="lower-case letters, digits and hyphens, at most 63, starting with a letter or digit",
            found=repr(name[:80]),
            fix="choose a name such as 'my-sensors'",
        )
    return name


def _check_zone(zone: str) -> str:
    if not is_zone(zone):
        near = get_close_matches(zone, sorted(available_timezones()), n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else "name one such as Europe/Berlin or UTC"
        raise ValueError(f"no such time zone; {hint}")
    return zone


def _check_length(zero: bool) -> Callable[[str], str]:
    def check(length: str) -> str:
        try:
            step_us(length, zero)
        except StfmError as error:
            raise ValueError(f"{error.problem}, expected {error.expected}") from None
        return length

    return check


def _check_step(step: str) -> str:
    us = step_us(_check_length(zero=False)(step))
    if DAY_US % us and us % DAY_US:
        raise ValueError("a step divides a day or is several days, so that it has a time of day")
    return step


def _check_column(name: str) -> str:
    if name.startswith("_") or name in ("", "time", "entity"):
        raise ValueError("`time`, `entity`, and names that begin with _ are taken")
    return name


def _check_table(name: str) -> str:
    if not TABLE.fullmatch(name) or name in ("manifest", "landed"):
        raise ValueError("a table is called by lower-case letters, digits and _, at most 41; two names are taken")
    return name


def _check_seasons(seasons: tuple[int, ...]) -> tuple[int, ...]:
    if any(s <= before for before, s in pairwise((0, *seasons))):
        raise ValueError("seasons are whole numbers of steps above 0, the shortest first")
    return seasons


def _check_edge(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("the clock's edges carry a zone: 2024-01-01T00:00:00Z")
    return moment.astimezone(UTC)


Zone = Annotated[str, AfterValidator(_check_zone)]
Step = Annotated[str, AfterValidator(_check_step)]
Duration = Annotated[str, AfterValidator(_check_length(zero=True))]
Span = Annotated[str, AfterValidator(_check_length(zero=False))]
Column = Annotated[str, AfterValidator(_check_column)]
TableName = Annotated[str, AfterValidator(_check_table)]
Edge = Annotated[Moment, AfterValidator(_check_edge)]
Share = Annotated[Real, Field(ge=0, le=1)]
Count = Annotated[Whole, Field(ge=0)]


Place = Literal["coordinates", "fourier", "sphere", "eigenvectors", "h3", "geoclip", "geoclip-random"]


def _check_places(places: tuple[Place, ...]) -> tuple[Place, ...]:
    if double := sorted({p for p in places if places.count(p) > 1}):
        raise ValueError(f"'{double[0]}' stands twice")
    return places


class Channel(Model):
    """A measured quantity. Values outside [minimum, maximum] and values equal to a `missing` code become unobserved.

    `absent` is the value of a step without any row: 0 for a count of events, None (unobserved) for a measurement.
    `aggregate` makes one value of the rows that share a step, where at least `at_least` of them hold one; without it
    `duplicates` of `harmonize` rules.
    """

    name: Column
    unit: str
    description: str = ""
    minimum: Finite | None = None
    maximum: Finite | None = None
    missing: tuple[Real, ...] = ()
    absent: Finite | None = None
    aggregate: Literal["mean", "sum", "min", "max", "first", "last"] | None = None
    at_least: Annotated[Whole, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _sane(self) -> Channel:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if low > high:
            raise ValueError(f"minimum {low:g} is above maximum {high:g}")
        if self.absent is not None and not low <= self.absent <= high:
            raise ValueError(f"absent {self.absent:g} is outside [{low:g}, {high:g}]")
        if self.at_least > 1 and self.aggregate is None:
            raise ValueError("`at_least` counts the rows of a step: state `aggregate`, what becomes of them")
        return self


class Harmonize(Model):
    """How raw observations become a regular signal. `step` is a polars duration such as `1h` or `5m`.

    Rows are floored to the step that contains them. `start` (inclusive) and `end` (exclusive) bound the clock; without
    them it spans the observations. `filters` mask values in the order given; a series of which a smaller share than
    `min_observed` is then observed in training is masked whole. Without `adjacency`, edges are those given, if any.
    """

    step: Step
    start: Edge | None = None
    end: Edge | None = None
    duplicates: Literal["error", "first", "last", "mean"] = "error"
    outliers: Outliers | None = None
    filters: tuple[Filter, ...] = ()
    coarsen: Coarsen | None = None
    min_observed: Share = 0.0
    adjacency: Adjacency | None = None
    scale: Literal["zscore", "minmax", "robust"] = "zscore"
    scale_per: Literal["channel", "entity"] = "channel"
    climatology: tuple[Phase, ...] = ()
    decompose: Decompose | None = None

    @model_validator(mode="after")
    def _sane(self) -> Harmonize:
        if self.start and self.end and self.start >= self.end:
            raise ValueError("the clock's end is not after its start")
        if len(set(self.climatology)) < len(self.climatology):
            raise ValueError("a phase of the climatology stands twice")
        if "tod" in self.climatology and step_us(self.step) >= DAY_US:
            raise ValueError(f"steps of {self.step} have no time of day: take `climatology: [month]`")
        return self


class Split(Model):
    """Chronological train / val / gate / test, as shares or published step counts (gate 0 = use val).

    Shares are of the steps, or of the windows as DCRNN's and its successors' code counts them: the test part then
    starts with the first target of the first test window.
    """

    ratios: tuple[Share, Share, Share, Share] | None = (0.6, 0.1, 0.1, 0.2)
    counts: tuple[Count, Count, Count, Count] | None = None
    of: Literal["steps", "windows"] = "steps"

    @model_validator(mode="after")
    def _sane(self) -> Split:
        if self.counts is not None:
            return self
        if self.ratios is None:
            raise ValueError("a split has ratios or counts")
        if abs(sum(self.ratios) - 1) > 1e-9:
            raise ValueError(f"split ratios sum to {sum(self.ratios):g}, expected 1")
        return self


class Patches(Model):
    """Sizes of patches: `leaf` entities and `merge` leaves of a universal one, rows and columns of a grid's, steps.

    `rows` and `columns` are in cells of a grid; boxes over space and time have `steps` of them.
    """

    leaf: Whole = Field(default=4, ge=1)
    merge: Whole = Field(default=4, ge=1)
    rows: Whole = Field(default=4, ge=1)
    columns: Whole = Field(default=4, ge=1)
    steps: Whole = Field(default=12, ge=1)

    @model_validator(mode="after")
    def _sane(self) -> Patches:
        if self.merge & (self.merge - 1):
            raise ValueError(f"leaves come from halving, so that 1, 2, 4, 8 ... of them make a patch, not {self.merge}")
        return self


class Tokens(Model):
    """Tokens computed once: so many quantile `bins` per channel, and a `codebook` of so many patches of `steps`.

    0 is none. Bins cost a pass over the values; a codebook is searched for, which takes seconds to minutes, and has to
    be asked for.
    """

    bins: Whole = Field(default=64, ge=0, le=65536)
    codebook: Whole = Field(default=0, ge=0, le=8192)
    steps: Whole = Field(default=12, ge=1)


class Embed(Model):
    """Which embeddings are computed once per dataset, and how large.

    `spatial` names what is known of places: local `coordinates`, their `fourier` features up to 2^(octaves - 1) half
    turns, points on the unit `sphere`, Laplacian `eigenvectors`, the `h3` cell of a resolution, and what GeoCLIP's
    location encoder says, pretrained or with random weights. Patches are always cut. `bands` are those of the power
    spectral density.
    """

    spatial: Annotated[tuple[Place, ...], AfterValidator(_check_places)] = ("coordinates", "eigenvectors")
    octaves: Whole = Field(default=4, ge=1, le=16)
    resolution: Whole = Field(default=4, ge=0, le=15)
    eigenvectors: Whole = Field(default=8, ge=0, le=1024)
    patch_size: Whole = Field(default=16, ge=1)
    periods: Whole = Field(default=5, ge=1)
    patches: Patches = Patches()
    bands: Whole = Field(default=8, ge=1, le=64)
    tokens: Tokens = Tokens()


class Join(Model):
    """Side information joined as of the time it was known.

    `availability` past: a value stamped t is known at the end of step t (plus `lag`), and never used beyond the origin.
    `availability` ahead: known for the whole horizon, as a timetable is. A column `known_at` of the table says for each
    row when it was known, and then holds instead. `availability` static: a row per entity that never changes.

    `via` says whose value an entity gets: its own (`entity`), the mean over its neighbours in the training edges,
    weighted by edge weight (`edges`), or that of the `nearest` places `within_km` that have one, averaged by inverse
    distance (`place`). Places have `lon` and `lat` in the side table itself or in the raw table named by `places`.
    `tolerance` is how old an as-of value may be before it counts as missing: only who knows the source can say it.
    What is missing is masked, or holds `absent` where the table leaves rows out on purpose.
    """

    table: str
    columns: tuple[Column, ...] = Field(min_length=1)
    availability: Literal["past", "ahead", "static"]
    via: Literal["entity", "edges", "place"] = "entity"
    within_km: Real | None = Field(default=None, gt=0, le=EARTH_KM)
    nearest: Whole = Field(default=1, ge=1, le=64)
    places: TableName | None = None
    lag: Duration = "0h"
    tolerance: Duration | None = None
    absent: Finite | None = None

    @model_validator(mode="after")
    def _sane(self) -> Join:
        if self.availability == "past" and self.absent is not None:
            raise ValueError("`absent` is for what is planned or counted; a measurement that is not there is missing")
        if self.availability == "past" and self.tolerance is None:
            raise ValueError("state `tolerance`: how old a value may be, such as 3h, or 0h for its own step alone")
        if self.via == "place" and self.within_km is None:
            raise ValueError("state `within_km`: how far away a place may be")
        if self.via != "place" and (self.within_km is not None or self.nearest > 1 or self.places is not None):
            raise ValueError("`within_km`, `nearest` and `places` are for `via: place`")
        if self.availability == "static" and (self.tolerance is not None or self.lag != "0h"):
            raise ValueError("what never changes has neither `lag` nor `tolerance`")
        return self

    @property
    def timed(self) -> bool:
        return self.availability != "static"


class PointsNear(Model):
    """Points of interest around each entity: a raw table of `lon`, `lat` and a `category`, as static columns.

    Per category, the distance to the nearest (`<category>_nearest_m`) and how many lie within each radius
    (`<category>_within_<r>km`). Without `category` all points are of one, called like the table; `only` leaves the
    other categories out. A point that has an entity's name and lies there, to a kilometre, is
    the entity itself and not near it.
    """

    table: str
    category: Column | None = None
    only: tuple[str, ...] = ()
    radii_km: tuple[Annotated[Real, Field(gt=0, le=EARTH_KM)], ...] = ()

    @model_validator(mode="after")
    def _sane(self) -> PointsNear:
        if self.only and self.category is None:
            raise ValueError("`only` names categories: state the column `category`")
        return self


class Task(Model):
    """The forecasting protocol the dataset is judged by; lengths in steps.

    With `clip`, the clock is clips of so many steps that have nothing to do with one another: a window lies within one,
    and parts of the split begin and end with clips.
    """

    look_back: Whole = Field(gt=0)
    horizon: Whole = Field(gt=0)
    loss: Literal["mae", "mse"] = "mae"
    clip: Whole | None = None

    @model_validator(mode="after")
    def _sane(self) -> Task:
        if self.clip is not None and self.clip < self.look_back + self.horizon:
            raise ValueError(f"clips of {self.clip} steps hold no window of {self.look_back} + {self.horizon}")
        return self


class Facts(Model):
    """What the documentation promises about the data; `harmonized` refuses to publish anything else.

    `missing` is the share of cells without a value by channel, to three places; `edges` are those of the training part.
    """

    steps: Whole | None = None
    entities: Whole | None = None
    edges: Whole | None = None
    missing: dict[str, Share] = Field(default={})

    def unlike(self, found: dict[str, Any], goes_on: bool) -> dict[str, str]:
        """Where the facts of a harmonized stage are others.

        A dataset that stops early, or has gone on since, has another length and another training part.
        """
        counts = ("entities",) if goes_on else ("steps", "entities", "edges")
        stated = {k: getattr(self, k) for k in counts}
        odd = {k: f"expected {n}, found {found[k]}" for k, n in stated.items() if n is not None and n != found[k]}
        for channel, share in self.missing.items() if not goes_on else ():
            there = 1 - found["observed_share"][channel]
            if abs(share - there) > 0.0005:
                odd[f"missing {channel}"] = f"expected {share:.3f}, found {there:.3f}"
        return odd


class Published(Model):
    """A published result: scores by step of the horizon, or by horizon length, in the order of the benchmark's metrics.

    `system` names ours where we have the same model; `look_back` the length it was published with, if not the task's.
    """

    model: str
    source: str
    scores: dict[int | Literal["avg"], tuple[Real | None, ...]]
    system: str | None = None
    look_back: Whole | None = None


class Benchmark(Model):
    """How the field reports on this dataset, and what it has reported.

    `at` step: one task, scored at single steps and on average; `at` length: one task per horizon length, averaged.
    `channel` None is all channels together, which only standardised scores allow. MAPE is in percent.
    """

    metrics: tuple[Literal["mae", "rmse", "mape", "mse"], ...] = Field(min_length=1)
    scale: Literal["data", "standardised"] = "data"
    at: Literal["step", "length"] = "step"
    channel: str | None = None
    tolerance: Real = Field(default=0.02, gt=0)
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _sane(self) -> Benchmark:
        if wrong := [p.model for p in self.published for v in p.scores.values() if len(v) != len(self.metrics)]:
            raise ValueError(f"published scores of {wrong[0]} are not one per metric ({', '.join(self.metrics)})")
        if self.scale == "data" and self.channel is None:
            raise ValueError("scores in data units belong to one channel: name it")
        return self


class DatasetSpec(Model):
    """Everything about a dataset that is not code. `zone` and `country`, whose public holidays count, are those
    of entities that name none.

    `tables` says how each raw table is read; a dataset with a `read` function of its own has none. Without `seasons`,
    a day and a week are the candidates. With `end`, the archive counts only for what was known by then: what follows
    lands (docs/new-data.md), and the clock ends with it. `retrain_after` is how much more of it asks for a retraining;
    without it, the longest season. `region` (west, south, east, north in degrees) is where all entities must lie.
    """

    name: Annotated[str, AfterValidator(check_name)]
    title: str
    kind: Kind
    licence: str
    homepage: str = ""
    description: str = ""
    sources: tuple[Source, ...] = ()
    tables: dict[TableName, Table] = Field(default={})
    end: Edge | None = None
    retrain_after: Span | None = None
    channels: tuple[Channel, ...] = Field(min_length=1)
    zone: Zone
    country: str | None = None
    region: Annotated[Box, AfterValidator(check_box)] | None = None
    seasons: Annotated[tuple[Whole, ...], AfterValidator(_check_seasons)] = Field(
        default=(), description="candidate seasonal periods in steps, shortest first"
    )
    harmonize: Harmonize
    split: Split = Split()
    embed: Embed = Embed()
    joins: tuple[Join, ...] = ()
    poi: tuple[PointsNear, ...] = ()
    embed_text: str | None = Field(
        default=None, min_length=1, description="minilm, minilm-random, or a Hugging Face folder"
    )
    task: Task
    facts: Facts = Facts()
    benchmark: Benchmark | None = None

    @model_validator(mode="before")
    @classmethod
    def _seasons(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("seasons"):
            return values
        try:
            step = values["harmonize"]["step"] if isinstance(values["harmonize"], dict) else values["harmonize"].step
            us = step_us(step)
        except (KeyError, TypeError, ValueError, AttributeError, StfmError):
            return values
        day = DAY_US // us
        return {**values, "seasons": (day, 7 * day) if day > 1 else (7,) if day else ()}

    @model_validator(mode="after")
    def _names_agree(self) -> DatasetSpec:
        sides = [c for j in self.joins for c in j.columns]
        names = [*self.channel_names, *sides]
        if double := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two channels or side columns are called '{double[0]}'")
        if unknown := sorted(set(self.facts.missing) - set(self.channel_names)):
            raise ValueError(
                f"facts.missing names the channel '{unknown[0]}'; there are {', '.join(self.channel_names)}"
            )
        if not self.seasons:
            raise ValueError(f"steps of {self.harmonize.step} have no usual season: state `seasons`")
        if step_us(self.harmonize.step) >= DAY_US and leaves_utc(self.zone):
            raise ValueError(
                f"steps of {self.harmonize.step} are days of UTC, not of {self.zone}; "
                "if the times are dates, `zone: UTC` keeps them, their weekdays and holidays"
            )
        needed = ("observations", *self.side_tables) if self.tables else ()
        if lacking := [t for t in needed if t not in self.tables]:
            raise ValueError(f"tables lacks '{lacking[0]}'")
        named = {c for f in self.harmonize.filters for c in f.channels or ()}
        if unknown := sorted(named - set(self.channel_names)):
            raise ValueError(f"a filter names the channel '{unknown[0]}'; there are {', '.join(self.channel_names)}")
        if self.harmonize.coarsen and (self.kind != "grid" or self.joins):
            raise ValueError("`coarsen` makes blocks of a grid's cells, and side tables name cells: leave one out")
        if self.task.clip and (self.harmonize.filters or self.harmonize.decompose):
            raise ValueError("`filters` and `decompose` look back, and clips have nothing before them: leave them out")
        graph = self.harmonize.adjacency
        if self.task.clip and isinstance(graph, Correlation) and graph.lag:
            raise ValueError("a `lag` would correlate the end of a clip with the beginning of the next: leave it out")
        if self.task.clip and self.embed.tokens.codebook and self.task.clip % self.embed.tokens.steps:
            raise ValueError(
                f"patches of {self.embed.tokens.steps} steps would cross clips of {self.task.clip}: "
                "state `tokens: {steps: ...}` that divides them"
            )
        if isinstance(graph, Lattice) and self.kind != "grid":
            raise ValueError(
                "`adjacency: {kind: grid}` links the cells of a grid; `nearest` links entities that lie about"
            )
        if isinstance(graph, Correlation) and graph.channel not in (None, *self.channel_names):
            raise ValueError(
                f"`adjacency` names the channel '{graph.channel}'; there are {', '.join(self.channel_names)}"
            )
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.channels)

    def scene(self) -> Scene:
        """What readers of its tables need to know."""
        units = {c.name: c.unit for c in self.channels}
        return Scene(self.channel_names, self.zone, self.harmonize.step, units=units)

    @property
    def side_tables(self) -> tuple[str, ...]:
        """The raw tables that side information is read from, each once."""
        joined = [t for j in self.joins for t in (j.table, j.places) if t is not None]
        return tuple(dict.fromkeys([*joined, *(p.table for p in self.poi)]))


RawTables = dict[str, pl.DataFrame]
Reader = Callable[[dict[str, Path]], Mapping[str, large.Table]]
# The archive's files, what has landed by member, the time up to which the archive counts, and that from which rows
# are wanted.
Reviser = Callable[[dict[str, Path], dict[str, list[Path]], datetime | None, datetime | None], RawTables]


class Dataset(Model):
    """A spec with the function that turns its files into canonical raw tables (see `stfm_pipeline.tables`).

    Where a cell is made from several of the source's rows, `revise` makes the tables from the archive and what has
    landed of the members in `grows`: whole, or complete from the given time on. `truth` says what a
    generated dataset was made by.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    spec: DatasetSpec
    read: Reader
    module: str
    revise: Reviser | None = None
    grows: tuple[str, ...] = ()
    truth: Callable[[], Truth] | None = None
