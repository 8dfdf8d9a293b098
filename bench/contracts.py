"""Contracts broken on purpose, one at a time, on a small dataset that has come down the whole road before.

Each has to be stopped at its stage by its own check, and nothing of the stage may be published: not a version, not a
file. Some are broken in the data or the description, some only code can break.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from bench.leaks import leaking

NAME = "small"
NAMES = ("a", "b", "c", "d")
HOURS, START = 240, datetime(2024, 1, 1, tzinfo=UTC)
# What a stage cannot be computed from is refused before there is anything to check.
REFUSED = "refused"
Frames = dict[str, pl.DataFrame]


def tables() -> Frames:
    """Levels and counts at four places, edges between them, weather measured and shifts planned."""
    rng = np.random.default_rng(0)
    times = pl.Series([START + timedelta(hours=h) for h in range(HOURS)]).dt.cast_time_unit("us")
    who, when = np.tile(np.array(NAMES), HOURS), np.repeat(np.arange(HOURS), len(NAMES))
    rhythm = np.sin(when * 2 * np.pi / 24)
    long = pl.DataFrame({"entity": who, "time": times.gather(when)})
    return {
        "observations": long.with_columns(
            level=pl.Series(20 + 5 * rhythm + rng.normal(0, 1, len(who))),
            count=pl.Series(rng.poisson(3 + 2 * rhythm).astype(float)),
        ),
        "entities": pl.DataFrame(
            {"entity": NAMES, "lon": [8.0, 8.1, 8.2, 8.3], "lat": [47.0, 47.1, 47.3, 47.4], "text": ["Here."] * 4}
        ).with_columns(zone=pl.lit("Europe/Zurich")),
        "edges": pl.DataFrame({"source": ["a", "b", "c", "d"], "target": ["b", "c", "d", "a"], "weight": [1.0] * 4}),
        "weather": long.with_columns(temp_c=pl.Series(rng.normal(10, 3, len(who)))),
        "shifts": long.with_columns(planned=pl.Series(np.round(3 + rhythm))),
    }


def spec(**changes: Any) -> Any:
    from stfm_pipeline.datasets.spec import DatasetSpec

    stated: dict[str, Any] = {
        "name": NAME,
        "title": NAME,
        "kind": "graph",
        "licence": "none needed",
        "zone": "UTC",
        "channels": [
            {"name": "level", "unit": "m", "minimum": -100, "maximum": 100},
            {"name": "count", "unit": "events", "minimum": 0, "absent": 0},
        ],
        "harmonize": {"step": "1h"},
        "embed": {"eigenvectors": 2, "patch_size": 2},
        "joins": [
            {"table": "weather", "columns": ["temp_c"], "availability": "past", "tolerance": "3h"},
            {"table": "shifts", "columns": ["planned"], "availability": "ahead"},
        ],
        "task": {"look_back": 12, "horizon": 6},
        "facts": {"steps": HOURS, "entities": len(NAMES)},
    }
    return DatasetSpec.model_validate({**stated, **changes})


Change = Callable[[Frames], Frames]
Fault = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Break:
    """One contract broken: where it must be stopped, by which check, and how it is broken."""

    stage: str
    check: str
    what: str
    raw: Change = lambda frames: frames
    spec: dict[str, Any] = field(default_factory=dict)
    code: Fault = nullcontext


@dataclass(frozen=True)
class Row:
    """What stopped a break, what it said, and what was published all the same."""

    broken: Break
    stage: str
    checks: tuple[str, ...]
    said: str
    published: tuple[str, ...]

    @property
    def good(self) -> bool:
        return (self.stage, self.broken.check in self.checks, self.published) == (self.broken.stage, True, ())


def table(name: str, **columns: pl.Expr) -> Change:
    """A table with other columns."""
    return lambda frames: {**frames, name: frames[name].with_columns(**columns)}


def row(name: str, number: int, column: str, value: Any) -> Change:
    """A table with one other cell."""

    def change(frames: Frames) -> Frames:
        cells = frames[name][column].to_list()
        cells[number] = value
        changed = pl.Series(column, cells, dtype=frames[name].schema[column])
        return {**frames, name: frames[name].with_columns(changed)}

    return change


def faulty(*places: str, wrap: Callable[[Any], Any]) -> Fault:
    """Code at `module:name` wrapped by `wrap` within the block, wherever it is looked up."""

    @contextmanager
    def fault() -> Iterator[None]:
        with ExitStack() as stack:
            for place in places:
                module, _, name = place.partition(":")
                try:
                    found = importlib.import_module(f"stfm_pipeline.{module}")
                except ModuleNotFoundError:
                    continue
                if hasattr(found, name):
                    stack.enter_context(patch.object(found, name, wrap(getattr(found, name))))
            yield

    return fault


def _late(known: Any) -> Any:
    def clock_of(*arguments: Any) -> Any:
        times = known(*arguments)
        times[len(times) // 2 :] += np.timedelta64(1, "s")
        return times

    return clock_of


def _holding(value: float, observed: bool) -> Callable[[Any], Any]:
    """The first cell that is (or is not) observed holds this value."""

    def wrap(known: Any) -> Any:
        def fill_absent(found: Any, channels: Any) -> None:
            known(found, channels)
            found.values[tuple(np.argwhere(found.observed == observed)[0])] = value

        return fill_absent

    return wrap


def _no_range(known: Any) -> Any:
    return lambda values, channel, counts, inside: known(
        values, channel.model_copy(update={"minimum": None, "maximum": None}), counts, inside
    )


def _swapped(known: Any) -> Any:
    def draw(*arguments: Any) -> Any:
        found = known(*arguments)
        return found.with_columns(pl.col("start", "end").gather([0, 3, 2, 1]))

    return draw


def _raised(known: Any) -> Any:
    """Parts that are a little more than they sum to."""

    def components(*arguments: Any) -> Any:
        found = known(*arguments)
        return replace(found, values=np.where(found.observed, found.values + np.float32(0.5), 0).astype(np.float32))

    return components


def _everything(known: Any) -> Any:
    return lambda signal, train, *rest: known(signal, slice(None), *rest)


def _doubled(known: Any) -> Any:
    def universal(*arguments: Any) -> Any:
        found = known(*arguments)
        return replace(found, cell=np.zeros_like(found.cell))

    return universal


def _stale(known: Any) -> Any:
    """Vectors that another encoder gave, which nobody finds again."""
    asked: list[int] = []

    def encode(*arguments: Any) -> Any:
        asked.append(1)
        return known(*arguments) + (len(asked) == 1)

    return encode


SPACE = ("embed.spatial", "embed.places")
BREAKS = (
    *(
        Break("raw", "canonical_contract", what, change)
        for what, change in {
            "a table that the spec names is missing": lambda f: {k: v for k, v in f.items() if k != "weather"},
            "a channel's column is missing": lambda f: {**f, "observations": f["observations"].drop("level")},
            "a channel holds text": table("observations", level=pl.lit("high")),
            "a channel holds lists": table("observations", level=pl.concat_list("level")),
            "times carry no zone": table("observations", time=pl.col("time").dt.replace_time_zone(None)),
            "a time is missing": row("observations", 7, "time", None),
            "a row names nobody": row("observations", 7, "entity", None),
            "a row names a stranger": row("observations", 7, "entity", "z"),
            "an entity stands twice": row("entities", 1, "entity", "a"),
            "a latitude is none on Earth": row("entities", 1, "lat", 95.0),
            "a longitude is none on Earth": row("entities", 1, "lon", 400.0),
            "an entity's zone is none": row("entities", 1, "zone", "Mars/Olympus"),
            "an edge leads to a stranger": row("edges", 1, "target", "z"),
            "an edge weighs less than nothing": row("edges", 1, "weight", -1.0),
            "an edge weighs without end": row("edges", 1, "weight", float("inf")),
        }.items()
    ),
    Break(
        "raw",
        "canonical_contract",
        "an entity lies outside the region",
        spec={"region": [5.0, 45.0, 8.25, 48.0]},
    ),
    Break("raw", "canonical_contract", "entities are no cells of a grid", spec={"kind": "grid"}),
    Break(
        "raw",
        "canonical_contract",
        "two cells of a grid share a row and a column",
        table("entities", row=pl.lit(0, pl.Int32), col=pl.Series([0, 1, 1, 2], dtype=pl.Int32)),
        {"kind": "grid"},
    ),
    Break(
        "raw",
        "canonical_contract",
        "two cells of a grid lie at one place",
        table("entities", row=pl.lit(0, pl.Int32), col=pl.int_range(4, dtype=pl.Int32), lon=8.0, lat=47.0),  # type: ignore[arg-type]
        {"kind": "grid"},
    ),
    Break("harmonized", REFUSED, "two rows say different things of one hour", row("observations", 4, "entity", "b")),
    Break("harmonized", REFUSED, "a channel never has a value", table("observations", level=pl.lit(None, pl.Float64))),
    Break(
        "harmonized", REFUSED, "a time lies in another century", row("observations", 959, "time", START.replace(2224))
    ),
    Break("harmonized", REFUSED, "a part is shorter than a window", spec={"task": {"look_back": 12, "horizon": 48}}),
    Break("harmonized", "regular_clock", "a second is lost", code=faulty("harmonize.gather:clock_of", wrap=_late)),
    Break(
        "harmonized",
        "masked_values_are_finite",
        "an observed value is infinite",
        code=faulty("harmonize.run:fill_absent", wrap=_holding(np.inf, True)),
    ),
    Break(
        "harmonized",
        "masked_values_are_finite",
        "a gap holds a number",
        row("observations", 7, "level", None),
        code=faulty("harmonize.run:fill_absent", wrap=_holding(7.0, False)),
    ),
    Break(
        "harmonized",
        "ranges_kept",
        "a value beyond its range counts as observed",
        row("observations", 7, "level", 1e6),
        code=faulty("harmonize.gather:observed_values", wrap=_no_range),
    ),
    Break(
        "harmonized",
        "units_stated",
        "a channel has no unit",
        spec={"channels": [{"name": "level", "unit": " "}, {"name": "count", "unit": "events", "absent": 0}]},
    ),
    Break(
        "harmonized", "learned_from_training_part_alone", "a scaler knows everything", code=lambda: leaking("scaler")
    ),
    Break(
        "harmonized",
        "adjacency_as_declared",
        "edges lead one way, and nobody declared it",
        spec={"harmonize": {"step": "1h", "adjacency": {"kind": "given"}}},
    ),
    Break(
        "harmonized",
        "components_sum_and_look_back",
        "parts sum to more than the value",
        spec={"harmonize": {"step": "1h", "decompose": {"period": 24, "levels": 2}}},
        code=faulty("harmonize.decompose:components", wrap=_raised),
    ),
    Break(
        "harmonized",
        "every_part_is_observed",
        "the validation part is one gap",
        table(
            "observations",
            level=pl.when(~pl.col("time").is_between(START + timedelta(hours=143), START + timedelta(hours=168))).then(
                "level"
            ),
            count=pl.when(~pl.col("time").is_between(START + timedelta(hours=143), START + timedelta(hours=168))).then(
                "count"
            ),
        ),
    ),
    Break(
        "harmonized",
        "parts_in_order",
        "val and test change places",
        code=faulty("harmonize.split:draw", "harmonize.split:carry", wrap=_swapped),
    ),
    Break(
        "harmonized",
        "no_window_crosses_the_split",
        "windows go on beyond their part",
        code=faulty("origins:origins", wrap=lambda known: lambda s, *rest: known(slice(s.start, s.stop + 1), *rest)),
    ),
    Break("harmonized", "facts_match", "fewer entities than documented", spec={"facts": {"entities": 5}}),
    Break("harmonized", "facts_match", "fewer steps than documented", spec={"facts": {"steps": 241}}),
    Break("harmonized", "facts_match", "other edges than documented", spec={"facts": {"edges": 5}}),
    Break(
        "harmonized",
        "facts_match",
        "more gaps than documented",
        row("observations", 7, "level", None),
        {"facts": {"missing": {"level": 0.1}}},
    ),
    Break(
        "embedded",
        "calendar_is_complete",
        "an hour has no civil time",
        code=faulty("embed.temporal:calendar", wrap=lambda known: lambda *a: known(*a)[:-1]),
    ),
    Break(
        "embedded",
        "patches_are_partitions",
        "one entity stands for all",
        code=faulty("embed.patches:universal", wrap=_doubled),
    ),
    Break(
        "embedded",
        "encoders_have_the_weights_they_state",
        "vectors are not what the stated weights give",
        spec={"embed": {"eigenvectors": 2, "patch_size": 2, "spatial": ["coordinates", "geoclip-random"]}},
        code=faulty("embed.geoclip:encode", wrap=_stale),
    ),
    Break(
        "embedded",
        "patches_are_balanced",
        "all entities are one patch",
        code=faulty(
            *(f"{m}:balanced_patches" for m in SPACE), wrap=lambda _: lambda xy, size: np.zeros(len(xy), np.int32)
        ),
    ),
    Break(
        "embedded",
        "embeddings_are_finite",
        "a place is nowhere",
        code=faulty(*(f"{m}:normalized_coordinates" for m in SPACE), wrap=lambda known: lambda *a: known(*a) + np.inf),
    ),
    Break(
        "embedded",
        "embeddings_are_of_this_signal",
        "eigenvectors are those of another graph",
        code=faulty(*(f"{m}:laplacian_eigenvectors" for m in SPACE), wrap=lambda known: lambda *a: known(*a) + 0.1),
    ),
    Break(
        "embedded",
        "learned_from_training_part_alone",
        "periods are looked for in everything",
        code=faulty("embed.frequency:dominant_periods", wrap=_everything),
    ),
    Break(
        "enriched",
        "side_information_never_from_the_future",
        "a join looks one step ahead",
        code=lambda: leaking("join"),
    ),
    Break("enriched", "every_entity_has_a_text", "a text says nothing", row("entities", 1, "text", " ")),
    Break("enriched", REFUSED, "a joined column holds no value", table("weather", temp_c=pl.lit(None, pl.Float64))),
    Break("enriched", REFUSED, "a joined column holds text", table("weather", temp_c=pl.lit("mild"))),
)


def known(broken: Break, checks: dict[str, dict[str, str]]) -> bool:
    """Whether this contract is one of the road's."""
    return broken.check == REFUSED or broken.check in checks[broken.stage]


class House:
    """A home with the sound dataset at the end of the road, and copies of it for each break."""

    def __init__(self, folder: Path) -> None:
        from stfm_pipeline.lake import Lake
        from stfm_pipeline.settings import Settings

        self.settings = Settings(home=folder)
        self.lake, self.sound = Lake(self.settings.lake_uri), folder / "sound"
        stopped = self._down(spec(), tables())
        if stopped is not None:
            raise RuntimeError(f"the sound dataset is stopped at {stopped}")
        shutil.copytree(self.lake.uri, self.sound)

    def _down(self, stated: Any, frames: Frames) -> tuple[str, tuple[str, ...], str] | None:
        """Where the road stops, by which checks and with what words; None at its end."""
        from stfm_pipeline.datasets import catalog
        from stfm_pipeline.datasets.spec import Dataset
        from stfm_pipeline.errors import ContractError
        from stfm_pipeline.road import materialize
        from stfm_pipeline.steps import STEPS

        catalog.register(Dataset(spec=stated, read=lambda files: frames, module="bench.contracts"))
        try:
            for stage in STEPS:
                try:
                    outcome = materialize(NAME, stage, self.lake, self.settings, force=True)
                except ContractError as error:
                    return stage, (REFUSED,), error.problem
                if outcome.stage is None:
                    failed = [c for c in outcome.checks if not c.passed]
                    said = "; ".join(str(v).splitlines()[0] for c in failed for v in c.details.values())
                    return stage, tuple(c.name for c in failed), said or failed[0].description
        finally:
            catalog._registered.pop(NAME, None)
        return None

    def take(self, broken: Break) -> Row:
        """Take the broken dataset down the road on which the sound one was."""
        from stfm_pipeline.steps import STEPS

        shutil.rmtree(self.lake.uri)
        shutil.copytree(self.sound, self.lake.uri)
        with broken.code(), np.errstate(invalid="ignore"):
            stopped = self._down(spec(**broken.spec), broken.raw(tables()))
        if stopped is None:
            return Row(broken, "nowhere", (), "", ())
        stage, checks, said = stopped
        later = list(STEPS)[list(STEPS).index(stage) :]
        return Row(broken, stage, checks, said, tuple(s for s in later if self._changed(s)))

    def _changed(self, stage: str) -> bool:
        now, before = (
            {p.relative_to(root): p.read_bytes() for p in Path(root, NAME, stage).rglob("*") if p.is_file()}
            for root in (self.lake.uri, self.sound)
        )
        return now != before


def main(quick: bool) -> None:
    import logging

    from assets.data import CHECKS

    logging.getLogger("stfm").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(prefix="stfm-contracts-") as home:
        os.environ["STFM_HOME"] = home
        house = House(Path(home))
        rows = [house.take(broken) for broken in BREAKS if known(broken, CHECKS)]
    for found in rows:
        b = found.broken
        print(f"{'ok  ' if found.good else 'MISS'} {b.stage:10} {b.check:40} {b.what}")
        print(f"       stopped at {found.stage} by {', '.join(found.checks) or 'nothing'}: {found.said[:160]}")
        if found.published:
            print(f"       published all the same: {', '.join(found.published)}")
    print(f"{sum(r.good for r in rows)} of {len(rows)} broken contracts stopped, nothing of their stages published")
    if not all(r.good for r in rows):
        sys.exit(1)
