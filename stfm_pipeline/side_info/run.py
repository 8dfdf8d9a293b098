"""The enriched stage of a signal: what else was known, past and ahead, beside the values, and what never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import DatasetSpec, Join
from stfm_pipeline.embed.spatial import adjacency_of
from stfm_pipeline.errors import MAX_OFFENDERS, ContractError
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.harmonize.split import parts_of
from stfm_pipeline.large import Table, whole
from stfm_pipeline.side_info import account, static
from stfm_pipeline.side_info.check import leak, never_from_the_future
from stfm_pipeline.side_info.join import Joined, Scene, join_side_table, require_values
from stfm_pipeline.side_info.known import ALWAYS, checked, stations_of
from stfm_pipeline.side_info.text import text_vectors
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Check, Signal

ONE = slice(0, 1)


def enrich(spec: DatasetSpec, raw: dict[str, pl.DataFrame], harmonized: Mapping[str, Table]) -> Result:
    """Dense side signals `past` and `ahead` with scalers fitted on train, `static` columns, and a text per entity.

    `provenance` says of every joined column from whom each entity got it; `text_vectors` are the texts as an encoder
    sees them, where the dataset asks for one. Raises `ContractError` on a side table that
    cannot be joined, or of which nothing fits.
    """
    tables = {name: whole(table) for name, table in harmonized.items() if name != "signal"}
    entities = tables["entities"]
    texts = entities.select("entity", text=pl.col("text").fill_null(pl.format("Entity {}.", "entity")))
    facts: dict[str, Any] = {
        "dense": {"signal": list(spec.channel_names)},
        "observed_share": {},
        "sources": {j.table: _said(j) for j in spec.joins},
        "texts": len(texts),
        "joins": [],
    }
    out: dict[str, Table] = {"text": texts}
    leaks: dict[str, str] = {}
    origins: list[pl.DataFrame] = []
    if any(j.timed for j in spec.joins):
        signal = Signal.from_frame(harmonized["signal"], entities["entity"].to_list(), spec.channel_names)
        scene = scene_of(spec, signal.times, signal.step_us, entities, tables["edges"])
        train = parts_of(tables["split"], signal.times)["train"]
        for side in ("past", "ahead"):
            joins = [j for j in spec.joins if j.availability == side]
            found = []
            for rule in joins:
                table = checked(raw[rule.table], rule)
                stations = stations_of(rule, _of(raw))
                found.append(join_side_table(table, rule, scene, stations, train))
                require_values(table, rule, found[-1].spread.observed, scene)
                if problem := leak(rule, table, scene, stations, found[-1]):
                    leaks[rule.table] = problem
                facts["joins"].append(account.counts(rule, table, found[-1], _until(tables), train))
                origins.append(account.provenance(rule, found[-1], entities, train))
            if joins:
                block = block_of(joins, found, scene)
                out |= frames_of(side, block, lead_of(joins, found))
                out[f"{side}_scaler"] = scaler.fit(block, train, "entity")
                facts["dense"][side] = list(block.channels)
                facts["observed_share"] |= {
                    c: float(block.observed[..., k].mean()) for k, c in enumerate(block.channels)
                }
    if spec.poi or not all(j.timed for j in spec.joins):
        found_static, more = _static(spec, raw, entities, tables["edges"], facts)
        out |= found_static
        origins += more
    if spec.embed_text is not None:
        out["text_vectors"], facts["text_encoder"] = text_vectors(texts, spec.embed_text)
    if origins:
        out["provenance"] = pl.concat(origins)
    silent = texts.filter(pl.col("text").fill_null("").str.strip_chars() == "")["entity"].to_list()
    checks = [
        never_from_the_future(leaks),
        Check(
            "every_entity_has_a_text",
            not silent,
            "a sentence per entity",
            {"blank": ", ".join(silent[:MAX_OFFENDERS])} if silent else {},
        ),
    ]
    return Result(out, facts, checks)


def scene_of(spec: DatasetSpec, times: Any, step: int, entities: pl.DataFrame, edges: pl.DataFrame) -> Scene:
    """What the joins of a dataset work on."""
    adjacency = adjacency_of(edges, entities["entity"].to_list())
    return Scene(times, step, spec.task.horizon, entities.select("entity", "lon", "lat"), adjacency)


def block_of(joins: list[Join], found: list[Joined], scene: Scene) -> Signal:
    """The columns of several joins side by side."""
    return Signal(
        scene.times,
        tuple(scene.names),
        tuple(c for j in joins for c in j.columns),
        np.concatenate([f.values for f in found], axis=2),
        np.concatenate([f.observed for f in found], axis=2),
    )


def lead_of(joins: list[Join], found: list[Joined]) -> Any:
    """Steps (t, n, g) before its own from which each value is known, or None where all are always."""
    if all(f.lead is None for f in found):
        return None
    return np.concatenate([np.full(f.values.shape, ALWAYS, np.int16) if f.lead is None else f.lead for f in found], 2)


def frames_of(side: str, block: Signal, lead: Any) -> dict[str, Table]:
    """A side's dense table, and beside it the leads where there are any."""
    if lead is None:
        return {side: block.to_table()}
    frame = block.to_frame()
    cells = pl.Series(lead.reshape(len(lead), -1)).cast(pl.List(pl.Int16))
    return {side: frame, f"{side}_lead": pl.DataFrame({"time": frame["time"], "lead": cells})}


def _static(
    spec: DatasetSpec, raw: dict[str, pl.DataFrame], entities: pl.DataFrame, edges: pl.DataFrame, facts: dict[str, Any]
) -> tuple[dict[str, pl.DataFrame], list[pl.DataFrame]]:
    """The tables of what never changes, and where it comes from; `facts` say how it went."""
    scene = scene_of(spec, np.zeros(1, "datetime64[us]"), 1, entities, edges)
    columns: list[pl.DataFrame] = [entities.select("entity")]
    words, origins = [], []
    for rule in (j for j in spec.joins if not j.timed):
        found, vocabulary = static.attributes(raw[rule.table], rule, stations_of(rule, _of(raw)), scene)
        words.append(vocabulary)
        codes = set(vocabulary["column"])
        cells = {
            c: np.where(found.observed[0, :, k], found.values[0, :, k], np.nan) for k, c in enumerate(rule.columns)
        }
        frame = pl.DataFrame(cells).fill_nan(None)
        columns.append(
            frame.with_columns(pl.col(c).cast(pl.Int32 if c in codes else pl.Float32) for c in frame.columns)
        )
        facts["joins"].append(account.counts(rule, raw[rule.table], found, None, ONE))
        origins.append(account.provenance(rule, found, entities, ONE))
    near = [static.points_near(raw[p.table], p, entities) for p in spec.poi]
    names = Counter(c for frame in (*columns[1:], *near) for c in frame.columns)
    taken = {*facts["dense"]["signal"], *facts["dense"].get("past", []), *facts["dense"].get("ahead", [])}
    if double := sorted(c for c, times in names.items() if times > 1 or c in taken):
        raise ContractError("several columns of side information have one name", offenders=double)
    table = pl.concat([*columns, *near], how="horizontal")
    vocabulary = pl.concat([static.NO_WORDS, *words])
    facts["static"] = [c for c in table.columns if c != "entity"]
    facts["poi"] = {p.table: len(raw[p.table]) for p in spec.poi}
    facts["observed_share"] |= {c: 1 - table[c].null_count() / len(table) for c in facts["static"]}
    scales = static.scaler(table, vocabulary["column"].unique().to_list())
    return {"static": table, "static_scaler": scales, "static_vocabulary": vocabulary}, origins


def _of(raw: dict[str, pl.DataFrame]) -> Any:
    return lambda table, columns: raw[table].select(columns).unique()


def _until(tables: dict[str, pl.DataFrame]) -> Any:
    return tables["split"].filter(part="train")["end"][0]


def _said(rule: Join) -> str:
    how = f"via {rule.via}"
    if rule.via == "place":
        how += f" within {rule.within_km:g} km, nearest {rule.nearest}"
    return f"{rule.availability}, {how}, lag {rule.lag}" if rule.timed else f"{rule.availability}, {how}"
