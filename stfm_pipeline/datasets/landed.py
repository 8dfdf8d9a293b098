"""Raw tables from an archive and what has landed since: read whole, or from the first row that is new.

A later file's value replaces an earlier one's for the same entity and time; an empty cell says nothing. Rows that come
late are put where they belong. Tables are then in the order of time, and new entities come after those known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from stfm_pipeline import large
from stfm_pipeline.datasets.formats import FirstOf, read_tables
from stfm_pipeline.datasets.spec import Dataset, RawTables
from stfm_pipeline.errors import ContractError, UsageError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.parts import LANDED, Part
from stfm_pipeline.stage import NEVER, Tail
from stfm_pipeline.tables import dense_observations, dense_rows, dense_values, is_dense, long_observations

# A reader that makes cells from several rows is asked for this much more than what is new.
REACH = timedelta(days=2)


Changes = tuple[dict[str, Tail], datetime]


def raw_tables(
    dataset: Dataset, files: dict[str, Path], parts: Sequence[Part], end: datetime | None
) -> Mapping[str, large.Table]:
    """All raw tables. With `end`, the archive counts only for what was known by then."""
    if not parts and end is None:
        return dataset.read(files)
    if dataset.revise is not None:
        return {t: _settled(f) for t, f in dataset.revise(files, _by_member(parts), end, None).items()}
    tables = {t: _settled(_known_by(t, large.whole(f), end)) for t, f in dataset.read(files).items()}
    for part in parts:
        tables = _with(tables, piece(dataset, files, part, _names(tables)))
    return tables


def piece(dataset: Dataset, files: dict[str, Path], part: Part, known: list[str]) -> RawTables:
    """The raw tables that one landed file brings, alone. `known` are the entities so far, in their order."""
    if dataset.grows and part.member not in dataset.grows:
        raise UsageError(
            f"'{dataset.spec.name}' takes no more files of '{part.member}'",
            expected=f"files of: {', '.join(dataset.grows)}",
        )
    if dataset.revise is not None:
        still = {name: path for name, path in files.items() if name not in dataset.grows}
        return dataset.revise(still, {part.member: [part.path]}, None, None)
    spec = dataset.spec
    own = {t: form for t, form in spec.tables.items() if part.member in form.names()}
    if not own:
        found = {t: large.whole(f) for t, f in dataset.read(files | {part.member: part.path}).items()}
        return {t: long_observations(f, _names(found)) if t == "observations" else f for t, f in found.items()}
    if dated := [t for t, form in own.items() if getattr(form, "start", None) is not None]:
        raise ContractError(
            f"{dated[0]}: rows without times of their own cannot land: nothing says when they were measured",
            fix="bring a new archive, or a format with a column of times",
        )
    whole = {t: form for t, form in own.items() if not isinstance(form, FirstOf)}
    several = [t for t, form in whole.items() if set(form.names()) - {part.member, getattr(form, "ids", None)}]
    if several:
        raise ContractError(
            f"{several[0]}: a table that is made of several files cannot go on by one of them",
            fix="bring a new archive, or keep the table in one file",
        )
    beside = {
        n: files[n] for form in own.values() for n in form.names() if n in files and n == getattr(form, "ids", "")
    }
    scene = spec.scene()
    if "observations" not in own:
        scene.entities.extend(known)
    found = {t: large.whole(f) for t, f in read_tables(own, beside | {part.member: part.path}, scene).items()}
    if "observations" in found:
        found["observations"] = long_observations(found["observations"], _names(found))
    # Where a table lists the entities, rows of others do not make new ones.
    return {t: f for t, f in found.items() if t in own or t not in spec.tables}


def extend(
    dataset: Dataset, files: dict[str, Path], parts: Sequence[Part], fresh: int, lake: Lake, old: Stage
) -> Changes | None:
    """The tables that the last `fresh` parts change, and since when; None where everything has to be read."""
    # Tables without times, such as entities, are small.
    own = [t for t in old.tables if t != LANDED]
    held = {t: lake.read(old, t) for t in own if "time" not in lake.read_rows(old, t, 0, 0).columns}
    pieces = [piece(dataset, files, part, _names(held)) for part in parts[len(parts) - fresh :]]
    moments = [f["time"].min() for found in pieces for f in found.values() if "time" in f.columns and len(f)]
    first = min((cast(datetime, m) for m in moments if m is not None), default=None)
    if first is None:
        return None
    end = dataset.spec.end
    anew: RawTables | None = None
    if dataset.revise is not None:
        first -= REACH
        anew = dataset.revise(files, _by_member(parts), end, first)
    before: dict[str, Tail] = {}
    for table in own:
        tail = Tail(0, held[table]) if table in held else lake.tail(old, table, first)
        if tail is None:
            return None
        before[table] = tail
    after = {t: tail.frame for t, tail in before.items()}
    if anew is not None:
        dated = {t: f.filter(pl.col("time") >= first) if "time" in f.columns else f for t, f in anew.items()}
        after = {t: _settled(f) for t, f in dated.items()}
    dense = is_dense(before["observations"].frame)
    # What is left of a table from `first` on may be no row, and say nothing of how wide it is.
    width = len(lake.read_rows(old, "observations", 0, 1).to_series(1)[0]) if dense else 0
    for found in pieces if anew is None else ():
        after = _with(after, found, width)
    if dense and (after["observations"].to_series(1).list.len() != width).any():
        return None
    return _changes(before, after)


def _changes(before: dict[str, Tail], after: RawTables) -> Changes | None:
    tables: dict[str, Tail] = {}
    since = NEVER
    for table, tail in before.items():
        old, new = tail.frame, after[table]
        if new.schema != old.schema:
            wider = [k == old.schema[c] or old.schema[c] == pl.List(pl.Float64) for c, k in new.schema.items()]
            if new.columns != old.columns or not all(wider):
                return None
            new = new.cast(dict(old.schema))  # type: ignore[arg-type]
        start = first_difference(old, new)
        if start == max(len(old), len(new)):
            continue
        tables[table] = Tail(tail.first + start, new[start:])
        changed = [f["time"][start] for f in (old, new) if start < len(f) and "time" in f.columns]
        if not changed or None in changed:
            return None
        since = min(since, *(cast(datetime, c) for c in changed))
    return tables, since


def _with(tables: RawTables, found: RawTables, width: int = 0) -> RawTables:
    """Raw tables with what one landed file brings; dense rows are at least `width` entities wide."""
    out = dict(tables)
    for table in sorted(tables, key=lambda t: t != "entities"):
        out[table] = merge(table, tables[table], found.get(table), _names(out), width)
    return out


def _names(tables: RawTables) -> list[str]:
    return tables["entities"]["entity"].to_list() if "entities" in tables else []


def merge(table: str, old: pl.DataFrame, new: pl.DataFrame | None, names: list[str], width: int = 0) -> pl.DataFrame:
    """A table with the rows of a landed one, which are long; `names` are all entities in their order."""
    if new is None or new.is_empty():
        return old
    if table == "observations" and is_dense(old):
        return _merge_dense(old, new, names, width)
    # A plan that was made anew replaces none that was known before.
    keys = [k for k in ("entity", "source", "target", "time", "known_at") if k in old.columns]
    if not keys:
        return _settled(pl.concat([old, new.select(old.columns).cast(dict(old.schema))]).unique(maintain_order=True))  # type: ignore[arg-type]
    for column in (c for c in old.columns if c not in new.columns):
        new = new.with_columns(pl.lit(None, old.schema[column]).alias(column))
    new = new.select(old.columns).cast(dict(old.schema))  # type: ignore[arg-type]
    rest = [c for c in old.columns if c not in keys]
    last = _one_each(table, new, list(keys))
    known = old.join(last, on=keys, how="left", suffix="_later", nulls_equal=True, maintain_order="left")
    speaks = {c: pl.col(f"{c}_later") for c in rest}
    speaks |= {c: pl.col(f"{c}_later").fill_nan(None) for c in rest if old.schema[c].is_float()}
    known = known.with_columns(pl.coalesce(speaks[c], c).alias(c) for c in rest).select(old.columns)
    fresh = new.join(old.select(keys).unique(), on=keys, how="anti", nulls_equal=True, maintain_order="left")
    return _settled(pl.concat([known, fresh]))


def _one_each(table: str, new: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """A landed table without rows that stand twice; a file that contradicts itself has no later value."""
    new = new.unique(maintain_order=True)
    double = new.filter(pl.struct(keys).is_duplicated()).unique(keys, keep="first", maintain_order=True)
    if len(double):
        named = double.select(pl.concat_str(pl.col(keys).cast(pl.String), separator=" at ", ignore_nulls=True))
        raise ContractError(
            f"{table}: a file says different things of the same",
            expected=f"one row for each {' and '.join(keys)}",
            found=f"{len(double)} with several",
            offenders=named.to_series().head(5).to_list(),
            fix="leave the one that holds",
        )
    return new


def _merge_dense(old: pl.DataFrame, new: pl.DataFrame, names: list[str], width: int) -> pl.DataFrame:
    """Long rows into dense ones; entities that come new widen every row by cells of which there is no row."""
    place = {e: i for i, e in enumerate(names)}
    if strangers := sorted(set(new["entity"]) - set(names)):
        raise ContractError("observations name entities that nothing lists", offenders=strangers)
    channels = [c for c in old.columns if c != "time"]
    narrow = int(old[channels[0]].list.len()[0]) if len(old) else 0
    width = max([width, narrow, *(place[e] + 1 for e in new["entity"].unique())])
    times = pl.concat([old["time"], new["time"].cast(old.schema["time"])]).unique().sort()
    if old["time"].is_duplicated().any():
        raise ContractError(
            "a source with several rows of one time cannot be continued", fix="bring a new archive, or long rows"
        )
    at = times.search_sorted(old["time"]).to_numpy()
    seen = np.zeros((len(times), width), np.bool_)
    there = dense_rows(old)
    seen[at, :narrow] = True if there is None else there
    new = _one_each("observations", new, ["entity", "time"])
    rows = times.search_sorted(new["time"].cast(old.schema["time"])).to_numpy()
    columns = new["entity"].replace_strict(place, return_dtype=pl.Int64).to_numpy()
    seen[rows, columns] = True
    out = {}
    for channel in channels:
        values = np.full((len(times), width), np.nan)
        values[at, :narrow] = dense_values(old, channel)
        later = new[channel].cast(pl.Float64).fill_null(np.nan).to_numpy()
        speaks = ~np.isnan(later)
        values[rows[speaks], columns[speaks]] = later[speaks]
        out[channel] = values
    return dense_observations(times, out, seen)


def first_difference(old: pl.DataFrame, new: pl.DataFrame) -> int:
    """The first row at which two tables of one schema differ; their length where they do not."""
    common = min(len(old), len(new))
    differs = pl.Series([False]).new_from_index(0, common)
    for a, b in zip(old[:common].iter_columns(), new[:common].iter_columns(), strict=True):
        differs = differs | a.ne_missing(b)
    return int(cast(int, differs.arg_max())) if differs.any() else common


def _known_by(table: str, frame: pl.DataFrame, end: datetime | None) -> pl.DataFrame:
    """Rows of steps that had ended by `end`; a dated edge is dated by when it was known."""
    if end is None or "time" not in frame.columns:
        return frame
    known = pl.col("time") <= end if table == "edges" else pl.col("time") < end
    return frame.filter(pl.col("time").is_null() | known)


def _settled(frame: pl.DataFrame) -> pl.DataFrame:
    """In the order of time, and as it will be read back."""
    # Delta has no unsigned numbers.
    frame = frame.with_columns(pl.selectors.unsigned_integer().cast(pl.Int64))
    return frame.sort("time", maintain_order=True) if "time" in frame.columns else frame


def _by_member(parts: Sequence[Part]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for part in parts:
        found.setdefault(part.member, []).append(part.path)
    return found
