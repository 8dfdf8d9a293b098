"""50 million long rows to a regular, masked, scaled signal: the road's raw and harmonized stages, and pandas."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.child import cost, finish, line, measured

ROWS, SENSORS, MISSING_ROWS, ZEROS = 50_000_000, 207, 0.02, 0.03
YAML = """\
kind: graph
zone: UTC
tables:
  observations: {format: long, file: rows.csv, entity: node, columns: {speed: value}}
channels:
  - {name: speed, unit: mph, minimum: 0, missing: [0]}
harmonize: {step: 5m, duplicates: mean}
task: {look_back: 12, horizon: 12}
"""


def write(folder: Path, rows: int) -> None:
    """A made-up source: a row a minute of each sensor (string time, int node, float value), some missing, some 0."""
    import polars as pl

    rng = np.random.default_rng(0)
    nodes = np.sort(rng.choice(np.arange(400_000, 800_000), SENSORS, replace=False))
    minutes = round(rows / SENSORS / (1 - MISSING_ROWS))
    folder.mkdir(parents=True)
    (folder / "rows.yaml").write_text(YAML)
    with (folder / "rows.csv").open("wb") as file:
        file.write(b"time,node,value\n")
        for start in range(0, minutes, 4096):
            minute = np.arange(start, min(start + 4096, minutes))
            times = np.datetime64("2024-01-01", "us") + minute * np.timedelta64(60_000_000, "us")
            values = (
                50 + 10 * np.sin(minute * 2 * np.pi / 1440)[:, None] + 3 * rng.standard_normal((len(minute), SENSORS))
            )
            values[rng.random(values.shape) < ZEROS] = 0
            kept = rng.random(values.size) >= MISSING_ROWS
            block = pl.DataFrame(
                {"time": times.repeat(SENSORS), "node": np.tile(nodes, len(minute)), "value": values.ravel()}
            )
            block.filter(pl.Series(kept)).write_csv(
                file, include_header=False, float_precision=2, datetime_format="%Y-%m-%d %H:%M:%S"
            )


def road(home: Path) -> None:
    """The road's own stages, and the scaled signal as training takes it."""
    from stfm_pipeline.harmonize.scaler import arrays
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.tables import Signal

    settings = Settings(home=home)
    lake = Lake(settings.lake_uri)
    seconds = {}
    for stage in ("raw", "harmonized"):
        outcome = materialize("rows", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
        seconds[stage] = round(outcome.seconds, 2)
    tables = {name: lake.read(outcome.stage, name) for name in ("signal", "entities", "scaler")}
    names = tables["entities"]["entity"].to_list()
    signal = Signal.from_frame(tables["signal"], names, ["speed"])
    mean, std = arrays(tables["scaler"], len(names), 1)
    scaled = (signal.values - mean) / std
    scaled[~signal.observed] = np.nan
    finish(stages=seconds)
    np.save(home / "ours.npy", scaled[..., np.argsort(np.array(names, int)), 0])


def pandas(home: Path, engine: str) -> None:
    """The same in pandas: columns typed at once, zeros masked, 5-minute means, z-score from the training part."""
    import pandas as pd

    if engine == "pyarrow":
        rows = pd.read_csv(home / "datasets" / "rows.csv", engine="pyarrow", dtype_backend="pyarrow")
        rows = rows.astype({"time": "datetime64[s]", "node": "int32", "value": "float32"})
    else:
        rows = pd.read_csv(home / "datasets" / "rows.csv", dtype={"node": "int32", "value": "float32"})
        rows["time"] = pd.to_datetime(rows["time"], format="%Y-%m-%d %H:%M:%S")
    rows["time"] = rows["time"].dt.floor("5min")
    rows["value"] = rows["value"].mask(rows["value"] <= 0)
    means = rows.groupby(["time", "node"])["value"].mean()
    del rows
    dense = means.unstack()
    dense = dense.reindex(pd.date_range(dense.index[0], dense.index[-1], freq="5min"))
    train = dense.iloc[: round(0.6 * len(dense))].to_numpy(np.float64)
    scaled = ((dense - np.nanmean(train)) / np.nanstd(train)).astype("float32")
    scaled.columns = scaled.columns.astype(str)
    scaled.to_parquet(home / "theirs.parquet")
    finish()
    np.save(home / f"{engine}.npy", scaled.to_numpy())


def main(quick: bool) -> None:
    rows = ROWS // 10 if quick else ROWS
    size = f"{rows / 1e6:g} M long rows parsed, resampled, masked, scaled, written"
    with tempfile.TemporaryDirectory(prefix="stfm-bench-") as folder:
        measured("bench.long_rows", "write", folder, str(rows))
        ours = measured("bench.long_rows", "ours", folder, environment={"STFM_HOME": folder})
        print(f"     {size}: {cost(ours)}; stages {ours['stages']}", flush=True)
        for engine in ("c", "pyarrow"):
            theirs = measured("bench.long_rows", "pandas", folder, engine)
            print(f"     the same in pandas, read by its engine {engine}: {cost(theirs)}", flush=True)
            a, b = (np.load(Path(folder, f"{name}.npy")) for name in ("ours", engine))
            apart, same = float(np.nanmax(np.abs(a - b))), np.array_equal(np.isnan(a), np.isnan(b))
            line("    largest difference", f"{apart:.1e}, masked cells equal: {same}", "1e-5", apart <= 1e-5 and same)
            faster, busier = theirs["seconds"] / ours["seconds"], theirs["cpu"] / ours["cpu"]
            line(
                "    times faster",
                f"{faster:.2f} ({busier:.2f} in CPU seconds)",
                "2.5",
                faster >= 2.5,
                judged=not quick,
            )
            share = ours["peak_mb"] / theirs["peak_mb"]
            line("    share of its memory", f"{share:.2f}", "0.25", share <= 0.25, judged=not quick)


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "write":
        write(Path(folder, "datasets"), int(rest[0]))
        finish()
    elif what == "ours":
        road(Path(folder))
    else:
        pandas(Path(folder), rest[0])
