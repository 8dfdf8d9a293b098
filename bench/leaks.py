"""Leaks on purpose: the audit of `stfm datasets check` on a small road that is sound, and on three that leak."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.child import line

# What leaks, the promise that it breaks, and the table in which that shows.
LEAKS = {
    "scaler": ("nothing_after_training_is_fitted", "harmonized.scaler"),
    "adjacency": ("nothing_after_training_is_fitted", "harmonized.edges"),
    "join": ("side_information_as_of_its_time", "enriched.past"),
}


@contextmanager
def leaking(what: str) -> Iterator[None]:
    """Within the block, the scaler is fitted on everything, edges are correlations over the whole series, or a join
    looks one step ahead."""
    from stfm_pipeline.harmonize import run, scaler
    from stfm_pipeline.side_info import join

    fit, harmonize, as_of = scaler.fit, run.harmonize, join.as_of

    def on_everything(signal: Any, train: slice, *rest: Any) -> Any:
        return fit(signal, slice(None), *rest)

    def correlated(spec: Any, *rest: Any) -> Any:
        from stfm_pipeline.stage import Result

        found = harmonize(spec, *rest)
        edges = _correlations(spec, found)
        return Result({**found.tables, "edges": edges}, found.facts, found.checks)

    def one_ahead(table: Any, rule: Any, times: Any, places: Any, step: int, counted: slice) -> Any:
        import numpy as np

        return as_of(table, rule, times + np.timedelta64(step, "us"), places, step, counted)

    module, name, bad = {
        "scaler": (scaler, "fit", on_everything),
        "adjacency": (run, "harmonize", correlated),
        "join": (join, "as_of", one_ahead),
    }[what]
    with patch.object(module, name, bad):
        yield


def _correlations(spec: Any, found: Any) -> Any:
    """Edges between entities by the correlation of their whole series."""
    import numpy as np
    import polars as pl

    from stfm_pipeline.tables import Signal

    names = found.frame("entities")["entity"].to_list()
    series = Signal.from_frame(found.frame("signal"), names, spec.channel_names).values[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.nan_to_num(np.abs(np.corrcoef(series.T.astype(np.float64))))
    rows, columns = np.nonzero(~np.eye(len(names), dtype=bool))
    ends = [pl.Series([names[i] for i in index], dtype=pl.String) for index in (rows, columns)]
    return pl.DataFrame({"source": ends[0], "target": ends[1], "weight": weights[rows, columns]})


def write(folder: Path) -> None:
    """A dataset with edges, and weather joined along them."""
    from bench.fuzz.seeds import EDGES, PLACES, long_csv, yaml

    folder.mkdir(parents=True)
    description = yaml(
        "observations: {format: long, file: x.csv}",
        "entities: {format: places, file: places.csv}",
        "edges: {format: edges, file: edges.csv, weight: weight}",
        "weather: {format: long, file: weather.csv, columns: {speed_there: speed}}",
        more="joins:\n  - {table: weather, columns: [speed_there], availability: past, tolerance: 3h}\n",
    )
    files = {"x.csv": long_csv(), "weather.csv": long_csv(), "places.csv": PLACES, "edges.csv": EDGES}
    for name, data in {**files, "small.yaml": description.encode()}.items():
        (folder / name).write_bytes(data)


def main(quick: bool) -> None:
    import logging
    import os

    with tempfile.TemporaryDirectory(prefix="stfm-leaks-") as home:
        os.environ["STFM_HOME"] = home
        logging.getLogger("stfm").setLevel(logging.ERROR)
        from stfm_pipeline.lake import Lake
        from stfm_pipeline.leaks import audit
        from stfm_pipeline.road import materialize
        from stfm_pipeline.settings import Settings
        from stfm_pipeline.steps import STEPS

        write(Path(home, "datasets"))
        settings = Settings()
        lake = Lake(settings.lake_uri)
        for stage in STEPS:
            outcome = materialize("small", stage, lake, settings)
            assert outcome.stage is not None, outcome.checks
        began = time.perf_counter()
        sound = all(row["passed"] for row in audit("small", lake, settings))
        line("nothing leaks", f"{'passes' if sound else 'fails'}, {time.perf_counter() - began:.1f} s", "passes", sound)
        good = [sound]
        for what, (promise, table) in LEAKS.items():
            with leaking(what):
                (row,) = (r for r in audit("small", lake, settings) if r["check"] == promise)
            found = row["details"].get(table)
            good.append(not row["passed"] and found is not None)
            line(f"a leaking {what}", f"{promise}: {table} {found}", f"fails by {table}", good[-1])
    if not all(good):
        sys.exit(1)
