"""The harmonized stage of a signal: raw contract, clock, mask, split, filters, blocks, scaler, edges, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.formats.base import Box, in_box
from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize import adjacency, coarsen, decompose, filters, split, thin
from stfm_pipeline.harmonize.contract import contract, same_again
from stfm_pipeline.harmonize.gather import Gathered, gather
from stfm_pipeline.harmonize.learn import learn, until
from stfm_pipeline.harmonize.mask import mask_outliers
from stfm_pipeline.large import Chunks, Table, frames_of, times_in, total
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import (
    DAY_US,
    Cells,
    Edges,
    Entities,
    Signal,
    entity_hash,
    grid_of,
    is_dense,
    is_zone,
    leaves_utc,
    observations,
    step_us,
    validate,
    validate_dense,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_raw(spec: DatasetSpec, raw: Mapping[str, Table]) -> dict[str, pl.DataFrame]:
    """Raw tables that keep their contracts; the entity order is that of `entities`, or sorted where there is none.

    Of observations that come in chunks it is the first one: whoever goes through them checks each.
    """
    fix = f"mend the source or the reader of '{spec.name}'"
    if missing := [t for t in ("observations", *spec.side_tables) if t not in raw]:
        raise ContractError("the reader gives no such tables", found=", ".join(raw), offenders=missing, fix=fix)
    tables = {name: next(frames_of(table)) for name, table in raw.items()}
    dense = is_dense(tables["observations"])
    if dense:
        wide = len(raw["entities"]) if "entities" in raw else 0
        tables["observations"] = validate_dense(tables["observations"], spec.channel_names, wide, fix)
    else:
        schema = observations(spec.channel_names)
        tables["observations"] = validate("observations", tables["observations"], schema, fix)
    if "entities" not in raw:
        tables["entities"] = tables["observations"].select(pl.col("entity").unique().sort())
    for column in ("lon", "lat"):
        if column not in tables["entities"].columns:
            tables["entities"] = tables["entities"].with_columns(pl.lit(None, pl.Float64).alias(column))
    for column in ("zone", "country", "text"):
        if column not in tables["entities"].columns:
            tables["entities"] = tables["entities"].with_columns(pl.lit(None, pl.String).alias(column))
    tables["entities"] = validate("entities", tables["entities"], Cells if spec.kind == "grid" else Entities, fix)
    if spec.kind == "grid":
        grid_of(tables["entities"])
        _apart(tables["entities"])
    if spec.region is not None:
        _within(spec.region, tables["entities"])
    zones = {spec.zone, *tables["entities"]["zone"].drop_nulls()}
    if unknown := sorted(z for z in zones if not is_zone(z)):
        raise ContractError(
            "unknown time zones", expected="IANA names such as 'Europe/Berlin'", offenders=unknown, fix=fix
        )
    if step_us(spec.harmonize.step) >= DAY_US and (away := sorted(z for z in zones if leaves_utc(z))):
        raise ContractError(
            f"steps of {spec.harmonize.step} are days of UTC, not of where the entities are",
            offenders=away,
            fix="leave the entities' zones out where the times are dates, or take a step shorter than a day",
        )
    if "edges" in raw:
        given = tables["edges"]
        dated = given if "time" in given.columns else given.with_columns(time=None)
        tables["edges"] = validate("edges", dated, Edges, fix)
    known = set(tables["entities"]["entity"])
    for name, columns in (("observations", ["entity"]), ("edges", ["source", "target"])):
        if name in tables and not (name == "observations" and dense):
            named = set(pl.concat([tables[name][c] for c in columns]).unique())
            if strangers := sorted(named - known):
                raise ContractError(
                    f"{name} name entities that the entities table lacks", offenders=strangers, fix="add their rows"
                )
    return tables


def _apart(cells: pl.DataFrame) -> None:
    """Raise where two cells of a grid lie at one place."""
    turned = cells.filter(pl.col("lon").is_not_null() & pl.col("lat").is_not_null()).with_columns(pl.col("lon") % 360)
    if len(double := turned.filter(pl.struct("lon", "lat").is_duplicated())):
        raise ContractError(
            f"entities: {len(double)} cells of the grid share a place with another",
            expected="a place for each cell",
            offenders=[f"{e} at {lon:g}, {lat:g}" for e, lon, lat in double["entity", "lon", "lat"].rows()],
            fix="leave the second one out: a globe from 0 to 360 degrees holds its first column twice",
        )


def _within(region: Box, entities: pl.DataFrame) -> None:
    """Raise where entities with coordinates lie outside the region that the spec declares."""
    known = entities.filter(pl.col("lon").is_not_null() & pl.col("lat").is_not_null())
    outside = known.filter(pl.Series(~in_box(known["lon"].to_numpy(), known["lat"].to_numpy(), region)))
    if len(outside):
        raise ContractError(
            f"entities: {len(outside)} lie outside the dataset's region",
            expected=f"longitudes {region[0]:g} to {region[2]:g}, latitudes {region[1]:g} to {region[3]:g}",
            offenders=[f"{e} at {lon:g}, {lat:g}" for e, lon, lat in outside["entity", "lon", "lat"].rows()],
            fix="check whether longitude and latitude were mixed up, or correct `region`",
        )


def harmonize(spec: DatasetSpec, raw: Mapping[str, Table], frozen: pl.DataFrame | None = None) -> Result:
    """Dense signal in data units with its mask, entity index, training-part edges, split and scaler.

    `frozen` is an earlier split table whose boundaries stay where they are, as long as they fit the clock. Raises
    `ContractError` on data that cannot be made regular, on a channel without values, and on a split that leaves a part
    empty.
    """
    tables = check_raw(spec, raw)
    rows = raw["observations"] if isinstance(raw["observations"], Chunks) else tables.pop("observations")
    rule = rule_now(spec, times_in(rows).max())
    home = {k: pl.coalesce(k, pl.lit(getattr(spec, k), pl.String)) for k in ("zone", "country")}
    entities = tables["entities"].with_columns(**home).with_row_index("index")
    # Delta has no unsigned numbers: what is read is then exactly what was published.
    entities = entities.cast({"index": pl.Int32})
    names = entities["entity"].to_list()
    found = gather(rows, names, spec.channels, rule)
    fill_absent(found, spec.channels)
    times, values, observed, masked = found.times, found.values, found.observed, found.masked
    require_values(spec, observed, masked, "check the column, its missing codes and its range")
    carried = None if frozen is None else split.carry(frozen, times, spec.task)
    table = split.draw(times, spec.split, spec.task) if carried is None else carried
    parts = split.parts_of(table, times)
    split.check_lengths(parts, spec.task)
    if rule.outliers:
        far = mask_outliers(values, observed, rule.outliers, parts["train"])
        for k, channel in enumerate(spec.channels):
            masked[channel.name]["outliers"] = int(far[k])
    filtered = filters.mask(values, observed, rule.filters, spec.channel_names)
    if rule.coarsen:
        values, observed = coarsen.blocks(values, observed, grid_of(entities), rule.coarsen)
        if "edges" in tables and (rule.adjacency is None or rule.adjacency.kind == "given"):
            raise ContractError(
                "edges link cells that `coarsen` makes blocks of",
                fix="leave out `coarsen`, or take another `adjacency`",
            )
        entities = coarsen.cells(entities, rule.coarsen).with_row_index("index").cast({"index": pl.Int32})
        names = entities["entity"].to_list()
    signal = Signal(times, tuple(names), spec.channel_names, values, observed)
    used = thin.table(signal, parts["train"], rule.min_observed)
    if rule.min_observed or spec.kind == "grid":
        for name, lost in zip(spec.channel_names, thin.mask(values, observed, used), strict=True):
            masked[name]["few_observed"] = int(lost)
    require_values(spec, observed, masked, "loosen the filters, or `min_observed`, or `at_least`")
    given = training_edges(tables["edges"], table) if "edges" in tables else None
    learned = learn(spec, signal, parts["train"], entities, given)
    facts: dict[str, Any] = {
        "steps": len(times),
        "entities": len(names),
        "channels": list(spec.channel_names),
        "start": str(times[0]),
        "end": str(times[-1] + np.timedelta64(step_us(rule.step), "us")),
        "step": rule.step,
        "edges": len(learned["edges"]),
        "entity_hash": entity_hash(names),
        **shares(signal),
        "report": found.report,
        "masked": masked,
        "dense": {"signal": list(spec.channel_names)},
        "parts": {p: [s.start, s.stop] for p, s in parts.items()},
    }
    if spec.kind == "grid":
        facts["grid"] = list(grid_of(entities))
        # As far as training knows: what follows does not change it.
        facts["never_observed"] = int((~observed[parts["train"]].any(axis=(0, 2))).sum())
    if rule.filters:
        facts["filtered"] = filtered
    if rule.min_observed:
        facts["few_observed"] = thin.few(used)
    out: dict[str, Table] = {"signal": signal.to_table(), "entities": entities, "split": table, **learned}
    if rule.min_observed or spec.kind == "grid":
        out["mask"] = used
    again = learn(spec, until(signal, parts["train"].stop), parts["train"], entities, given)
    checks = contract(spec, signal, facts, parts, goes_on=spec.end is not None or "landed" in raw)
    checks.append(same_again(learned, again))
    checks.append(adjacency.check(rule.adjacency, learned["edges"], names, adjacency.met(signal, parts["train"])))
    profile = decompose.profile_of(learned.get("profile"), len(names), len(spec.channels))
    components = decompose.components(signal, profile, rule.decompose) if rule.decompose else None
    if components is not None:
        out["components"] = components.to_table()
        facts["dense"] = facts["dense"] | {"components": list(components.channels)}
    checks.append(decompose.check(signal, components, profile, rule.decompose))
    return Result(out, facts, checks)


def shares(signal: Signal) -> dict[str, dict[str, float]]:
    """Share of cells that are observed, and of those that hold 0, by channel."""
    out: dict[str, dict[str, float]] = {"observed_share": {}, "zero_share": {}}
    cells = len(signal.times) * len(signal.entities)
    for k, channel in enumerate(signal.channels):
        seen = total(lambda observed, k=k: observed[..., k].sum(), signal.observed)
        zeros = total(lambda v, o, k=k: ((v[..., k] == 0) & o[..., k]).sum(), signal.values, signal.observed)
        out["observed_share"][channel], out["zero_share"][channel] = seen / cells, zeros / seen
    return out


def require_values(spec: DatasetSpec, observed: Any, masked: dict[str, dict[str, int]], fix: str) -> None:
    """Raise where a channel has no observed value."""
    for k, channel in enumerate(spec.channels):
        if not observed[..., k].any():
            raise ContractError(
                f"channel '{channel.name}' has no observed value",
                expected="at least one finite value inside its range",
                found=f"{masked[channel.name]}",
                fix=fix,
            )


def rule_now(spec: DatasetSpec, last: Any) -> Harmonize:
    """How the signal is made regular now: a dataset that stops early has a clock up to there, or to what has landed."""
    rule = spec.harmonize
    if spec.end is None or last is None:
        return rule
    step = step_us(rule.step)
    moments = [spec.end, last + timedelta(microseconds=step)]
    ends = [m - timedelta(microseconds=(m - EPOCH) // timedelta(microseconds=1) % step) for m in moments]
    end = max(ends) if rule.end is None else min(rule.end, max(ends))
    return rule.model_copy(update={"end": end})


def fill_absent(found: Gathered, channels: Sequence[Channel]) -> None:
    """In place: a step without a row holds a channel's `absent` value; a row that says nothing leaves it unobserved."""
    for k, channel in enumerate(channels):
        if channel.absent is not None:
            found.values[..., k][~found.seen] = channel.absent
            found.observed[..., k] |= ~found.seen


def training_edges(edges: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Edges counted from evidence inside the training part; undated edges always count."""
    end = table.filter(pl.col("part") == "train")["end"][0]
    known = edges.filter(pl.col("time").is_null() | (pl.col("time") <= end))
    return known.group_by("source", "target").agg(pl.col("weight").sum()).sort("source", "target")
