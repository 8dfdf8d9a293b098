"""What each stage of the data road is made from, how it is computed, and how it goes on where there is more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline.datasets.spec import Dataset, DatasetSpec
from stfm_pipeline.datasets.spec import Part as DataPart
from stfm_pipeline.errors import ContractError, SourceError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.large import Table, times_in, whole
from stfm_pipeline.parts import ACCEPTED, LANDED, Part, digest, folder, intact, landed, name_of, table
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import fetch, identity
from stfm_pipeline.splits import split_version
from stfm_pipeline.stage import NEVER, Extension, Result, Tail
from stfm_pipeline.tables import Check, is_dense

if TYPE_CHECKING:
    from stfm_pipeline.harmonize.more import Published

GROUND = ("stfm_pipeline.tables", "stfm_pipeline.stage", "stfm_pipeline.large")


@dataclass(frozen=True)
class Step:
    """One stage of the road: what it reads, which code and which part of the spec it is made from."""

    name: str
    survey: str
    description: str
    inputs: tuple[str, ...]
    modules: tuple[str, ...]
    config: Callable[[DatasetSpec], Any]
    compute: Callable[[Dataset, Lake, Settings], Result]
    # What new rows make of a published state, given the time from which inputs differ; None where that is everything.
    extend: Callable[[Dataset, Lake, Settings, Stage, datetime], Extension | None]
    # Tables that nothing after the training part may change. Every other one has a column `time`, and a row shows
    # only what was known at the end of its step: `stfm datasets check` proves both (see stfm_pipeline.leaks).
    fitted: tuple[str, ...]


def _raw(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.datasets.landed import raw_tables

    spec = dataset.spec
    parts = landed(spec.sources, settings)
    intact(parts)
    _still_there(dataset, lake, settings)
    tables = raw_tables(dataset, fetched(spec, settings), parts, spec.end)
    check = raw_contract(spec, tables)
    if not check.passed:
        return Result({}, {}, [check])
    observations = tables["observations"]
    facts = {
        "licence": spec.licence,
        "rows": {name: len(frame) for name, frame in tables.items()},
        "start": str(times_in(observations).min()),
        "end": str(times_in(observations).max()),
        "sources": [identity(s, settings) for s in spec.sources],
        "landed": _landed(parts),
        "in_order": all(times_in(f).is_sorted() for f in tables.values() if "time" in f.columns),
    }
    if is_dense(observations):
        facts["dense_observations"] = [c for c in observations.columns if c != "time"]
    if dataset.truth is not None:
        known = dataset.truth()
        facts["optimum"] = {"claim": known.claim, "scores": known.optimum(spec.task.horizon)}
    return Result({**tables, **({LANDED: table(parts)} if parts else {})}, facts, [check])


def _still_there(dataset: Dataset, lake: Lake, settings: Settings) -> None:
    """Raise where files had landed and their folders are gone: without them the tables would become shorter."""
    before = lake.stage(dataset.spec.name, "raw")
    places = [folder(name_of(s), settings) / ACCEPTED for s in dataset.spec.sources]
    if before is not None and before.facts.get("landed", {}).get("files") and not any(p.is_dir() for p in places):
        raise SourceError(
            f"what had landed for '{dataset.spec.name}' is not there",
            expected=f"{before.facts['landed']['files']} files in {' or '.join(map(str, places))}",
            fix="bring the folder back; to go on without what landed, make an empty one",
        )


def _landed(parts: tuple[Part, ...]) -> dict[str, Any]:
    return {"files": len(parts), "digest": digest(parts)}


def landed_of(lake: Lake, raw: Stage) -> list[dict[str, Any]]:
    """The files that a raw stage was made from besides its archives."""
    return lake.read(raw, LANDED).to_dicts() if LANDED in raw.tables else []


def fetched(spec: DatasetSpec, settings: Settings) -> dict[str, Path]:
    """The files of a dataset's archives by name."""
    files: dict[str, Path] = {}
    for source in spec.sources:
        files |= fetch(source, settings)
    return files


def raw_contract(spec: DatasetSpec, tables: Mapping[str, Table]) -> Check:
    """Whether raw tables keep their contracts."""
    from stfm_pipeline.harmonize.run import check_raw

    promise = "types, keys, zones and coordinates are right"
    try:
        check_raw(spec, tables)
    except ContractError as error:
        return Check("canonical_contract", False, promise, {"broken": str(error)})
    return Check("canonical_contract", True, promise, {})


def _more_raw(dataset: Dataset, lake: Lake, settings: Settings, old: Stage, _: datetime) -> Extension | None:
    return _raw_with(dataset, landed(dataset.spec.sources, settings), lake, settings, old)


def _raw_with(
    dataset: Dataset, parts: tuple[Part, ...], lake: Lake, settings: Settings, old: Stage
) -> Extension | None:
    from stfm_pipeline.datasets.landed import extend

    known = old.facts["landed"]["files"]
    if not old.facts["in_order"] or _landed(parts[:known]) != old.facts["landed"]:
        return None
    intact(parts[known:])
    found = extend(dataset, fetched(dataset.spec, settings), parts, len(parts) - known, lake, old)
    if found is None:
        return None
    tables, since = found
    rows = old.facts["rows"] | {name: tail.rows for name, tail in tables.items()}
    facts = old.facts | {"rows": rows, "landed": _landed(parts)}
    if "observations" in tables and len(tables["observations"].frame):
        changed = tables["observations"]
        first = old.facts["start"] if changed.first else str(changed.frame["time"].min())
        facts |= {"start": first, "end": str(changed.frame["time"].max())}
    held = {t: tables[t].frame if t in tables else lake.read_rows(old, t, b.rows) for t, b in old.blocks.items()}
    held |= {t: lake.read(old, t) for t in held if t == "entities"}
    came = table(parts[known:])
    more = {**tables, LANDED: Tail(known, came) if known else came}
    return Extension(more, facts, [raw_contract(dataset.spec, held)], since)


def try_out(dataset: Dataset, parts: tuple[Part, ...], lake: Lake, settings: Settings) -> None:
    """Raise what would keep the tables with these parts from being published, whatever was published so far."""
    from stfm_pipeline.harmonize import more

    spec = dataset.spec
    old, signal = (lake.stage(spec.name, stage) for stage in ("raw", "harmonized"))
    raw = _raw_with(dataset, parts, lake, settings, old) if old is not None and old.blocks else None
    found: Result | Extension | None = None
    if old is not None and raw is not None and signal is not None and signal.inputs["raw"] == old.data_version:
        before = lake.tail(old, "observations", more.read_from(signal.facts, raw.since, spec.harmonize))
        change = raw.tables.get("observations")
        if before is not None and raw.passed:
            after = before.frame
            if isinstance(change, Tail):
                after = pl.concat([after[: change.first - before.first], change.frame])
            found = more.extend(spec, _published(lake, spec, old, signal), before.frame, after, raw.since)
    if raw is None or found is None:
        try_whole(dataset, parts, lake, settings)
    else:
        _hold([*raw.checks, *found.checks])


def try_whole(dataset: Dataset, parts: tuple[Part, ...], lake: Lake, settings: Settings) -> None:
    """The same with all stages computed whole; nothing is published."""
    from stfm_pipeline.datasets.landed import raw_tables
    from stfm_pipeline.embed.run import embed
    from stfm_pipeline.harmonize.run import harmonize
    from stfm_pipeline.side_info.run import enrich

    spec = dataset.spec
    tables = {**raw_tables(dataset, fetched(spec, settings), parts, spec.end), LANDED: table(parts)}
    _hold([raw_contract(spec, tables)])
    signal = harmonize(spec, tables, _frozen(dataset, lake))
    _hold(signal.checks)
    _hold(embed(spec, signal.tables, settings).checks)
    _hold(enrich(spec, {t: whole(tables[t]) for t in spec.side_tables}, signal.tables).checks)


def _hold(checks: list[Check]) -> None:
    for check in checks:
        if not check.passed:
            raise ContractError(
                f"with this file a promise would be broken: {check.description}",
                found="; ".join(f"{k}: {v}" for k, v in check.details.items()) or None,
            )


def _split_rule(spec: DatasetSpec) -> dict[str, Any]:
    rule = spec.split.model_dump(mode="json")
    if rule["of"] == "windows":
        rule["windows"] = spec.task.model_dump(mode="json", include={"look_back", "horizon"})
    if spec.task.clip is not None:
        rule["clip"] = spec.task.clip
    return rule


def _frozen(dataset: Dataset, lake: Lake) -> pl.DataFrame | None:
    """The split that was drawn before by the same shares, unless a new version of it is asked for."""
    earlier, rule = lake.stage(dataset.spec.name, "harmonized"), _split_rule(dataset.spec)
    drawn = earlier is not None and earlier.facts.get("split_rule") == rule and rule["counts"] is None
    drawn = drawn and earlier is not None and earlier.facts.get("split_version", 1) == split_version(dataset.spec.name)
    return lake.read(earlier, "split") if earlier is not None and drawn else None


def _harmonized(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.harmonize.run import harmonize

    name, frozen = dataset.spec.name, _frozen(dataset, lake)
    result = harmonize(dataset.spec, _tables(lake, name, "raw"), frozen)
    drawn = result.facts["end"]
    if frozen is not None and frozen["start"].equals(result.frame("split")["start"]):
        drawn = lake.require(name, "harmonized").facts.get("split_drawn", drawn)
    facts = {"split_rule": _split_rule(dataset.spec), "split_version": split_version(name), "split_drawn": drawn}
    return Result(result.tables, {**result.facts, **facts}, result.checks)


def _more_harmonized(dataset: Dataset, lake: Lake, settings: Settings, old: Stage, since: datetime) -> Extension | None:
    from stfm_pipeline.harmonize import more

    now = lake.require(dataset.spec.name, "raw")
    was = lake.as_made_of(dataset.spec.name, "raw", old.inputs["raw"])
    rule = dataset.spec.harmonize
    first = more.read_from(old.facts, since, rule)
    before = None if was is None else lake.tail(was, "observations", first)
    after = lake.tail(now, "observations", first)
    if before is None or after is None:
        return None
    return more.extend(dataset.spec, _published(lake, dataset.spec, now, old), before.frame, after.frame, since)


def _published(lake: Lake, spec: DatasetSpec, raw: Stage, signal: Stage) -> Published:
    from stfm_pipeline.harmonize.more import Published

    return Published(
        signal.facts,
        lake.read(raw if spec.harmonize.coarsen else signal, "entities"),
        lambda table: lake.read(signal, table) if table in signal.tables else None,
        lambda start, stop: lake.read_rows(signal, "signal", start, stop),
    )


def _embedded(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.embed.run import embed

    return embed(dataset.spec, _tables(lake, dataset.spec.name, "harmonized"), settings)


def _more_embedded(dataset: Dataset, lake: Lake, settings: Settings, old: Stage, since: datetime) -> Extension | None:
    from stfm_pipeline.embed.run import extend
    from stfm_pipeline.harmonize import more

    signal = lake.require(dataset.spec.name, "harmonized")
    # What a codebook misses is told for val as well.
    part: DataPart = "val" if dataset.spec.embed.tokens.codebook else "train"
    if more.touches(lake.read(signal, "split"), part, since):
        return None
    return extend(dataset.spec, old.facts, more.clock(*more.edges_of(signal.facts), dataset.spec.harmonize.step))


def _enriched(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.side_info.run import enrich

    name = dataset.spec.name
    # Without anything to join in time, the signal itself is not needed.
    needed = None if any(j.timed for j in dataset.spec.joins) else ("entities", "edges")
    side = {table: whole(frame) for table, frame in _tables(lake, name, "raw", dataset.spec.side_tables).items()}
    return enrich(dataset.spec, side, _tables(lake, name, "harmonized", needed))


def _more_enriched(dataset: Dataset, lake: Lake, settings: Settings, old: Stage, since: datetime) -> Extension | None:
    from stfm_pipeline.harmonize import more
    from stfm_pipeline.side_info.more import extend

    spec = dataset.spec
    raw, signal = (lake.require(spec.name, stage) for stage in ("raw", "harmonized"))
    was = lake.as_made_of(spec.name, "harmonized", old.inputs["harmonized"])
    if was is None or more.touches_training(lake.read(signal, "split"), since):
        return None
    if not any(j.timed for j in spec.joins):
        return Extension({}, old.facts, [], NEVER)
    start, end = more.edges_of(signal.facts)
    first = more.first_new(was.facts, since, spec.harmonize.step)
    times = more.clock(first, end, spec.harmonize.step)
    if not len(times):
        return Extension({}, old.facts, [], NEVER)

    def rows(table: str, moment: datetime) -> pl.DataFrame | None:
        found = lake.tail(raw, table, moment)
        return None if found is None else found.frame

    def distinct(table: str, columns: list[str]) -> pl.DataFrame:
        return lake.distinct(raw, table, columns)

    kept = len(more.clock(start, first, spec.harmonize.step))
    replaced = {t: lake.read_rows(old, t, kept) for t in old.tables if t in ("past", "ahead")}
    entities, edges = (lake.read(signal, t) for t in ("entities", "edges"))
    return extend(spec, old.facts, times, kept, entities, edges, rows, distinct, replaced)


def _tables(lake: Lake, dataset: str, stage: str, only: tuple[str, ...] | None = None) -> dict[str, Table]:
    found = lake.require(dataset, stage)
    return {t: lake.table(found, t) for t in found.tables if only is None or t in only}


def _raw_config(spec: DatasetSpec) -> Any:
    """A file at hand counts by its bytes, wherever it lies; how tables are read depends on the step."""
    sources = [identity(s, Settings()) for s in spec.sources]
    read = [spec.model_dump(mode="json")["tables"], spec.harmonize.step] if spec.tables else []
    return [_pick("name", "channels", "zone", "region", "licence", "end")(spec), sources, read]


def _harmonized_config(spec: DatasetSpec) -> Any:
    """A split that is asked for anew makes everything from here on anew."""
    picked = _pick("channels", "zone", "country", "harmonize", "split", "task", "facts", "end")(spec)
    return [picked, split_version(spec.name)]


def _enriched_config(spec: DatasetSpec) -> Any:
    """Of a plan that changes, windows see the row that the first of them can use, so their length counts."""
    from stfm_pipeline.side_info.text import encoder_identity

    encoder = None if spec.embed_text is None else encoder_identity(spec.embed_text, Settings())
    return [_pick("joins", "poi", "embed_text")(spec), spec.task.horizon, encoder]


def _pick(*fields: str) -> Callable[[DatasetSpec], Any]:
    return lambda spec: spec.model_dump(mode="json", include=set(fields))


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step(
            "raw",
            "raw_data",
            "The source's own values, typed and in UTC. Nothing is repaired here.",
            (),
            (*GROUND, "stfm_pipeline.sources", "stfm_pipeline.datasets.landed"),
            _raw_config,
            _raw,
            _more_raw,
            ("entities",),
        ),
        Step(
            "harmonized",
            "preprocessing",
            "Regular in time, in data units, with a mask instead of holes; the split is frozen and scalers are fitted "
            "on its training part.",
            ("raw",),
            (
                *GROUND,
                "stfm_pipeline.harmonize",
                "stfm_pipeline.datasets.formats.base",
                "stfm_pipeline.datasets.rules",
                "stfm_pipeline.origins",
            ),
            _harmonized_config,
            _harmonized,
            _more_harmonized,
            ("entities", "edges", "split", "scaler", "mask", "climatology", "profile", "strength"),
        ),
        Step(
            "embedded",
            "embedding",
            "Temporal, spatial and frequency embeddings, each computed once.",
            ("harmonized",),
            (
                *GROUND,
                "stfm_pipeline.embed",
                "stfm_pipeline.harmonize.scaler",
                "stfm_pipeline.harmonize.split",
                "stfm_pipeline.digest",
            ),
            _pick("embed", "seasons", "task"),
            _embedded,
            _more_embedded,
            ("vocabulary", "spatial", "patches", "spectrum", "density", "zones", "bins", "codebook"),
        ),
        Step(
            "enriched",
            "side_info_integration",
            "Side information joined as of the time it was known: weather, timetable, text.",
            ("raw", "harmonized", "embedded"),
            (
                *GROUND,
                "stfm_pipeline.side_info",
                "stfm_pipeline.embed.spatial",
                "stfm_pipeline.harmonize.clock",
                "stfm_pipeline.harmonize.scaler",
                "stfm_pipeline.harmonize.split",
            ),
            _enriched_config,
            _enriched,
            _more_enriched,
            (
                "past_scaler",
                "ahead_scaler",
                "text",
                "static",
                "static_scaler",
                "static_vocabulary",
                "provenance",
                "text_vectors",
            ),
        ),
    )
}
