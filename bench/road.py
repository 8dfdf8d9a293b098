"""Raw files to the enriched table, each size in a fresh process with imports, checks and commits."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import cost, finish, line, measured

TRAFFIC = """\
kind: graph
zone: UTC
tables:
  observations: {{format: wide, file: speed.{form}, {where}}}
  entities: {{format: places, file: places.csv}}
  edges: {{format: edges, file: edges.csv, weight: weight}}
channels:
  - {{name: speed, unit: mph, minimum: 0, missing: [0]}}
harmonize: {{step: {step}}}
task: {{look_back: 12, horizon: 12}}
"""


def write(folder: Path, steps: int, sensors: int, step: str, form: str) -> None:
    """A made-up source of this size: speeds with a daily rhythm, places on a plane, twelve neighbours each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"s{i:05d}" for i in range(sensors)]
    minutes = 5 if step == "5m" else 60
    rhythm = np.sin(np.arange(steps) * 2 * np.pi * minutes / 1440).astype(np.float32)[:, None]
    values = 50 + 10 * rhythm + rng.standard_normal((steps, sensors), dtype=np.float32)
    values[rng.random((steps, sensors), dtype=np.float32) < 0.05] = 0
    times = np.datetime64("2019-01-01", "s") + np.arange(steps) * np.timedelta64(minutes * 60, "s")
    if form == "h5":
        import h5py

        with h5py.File(folder / "speed.h5", "w") as file:
            group = file.create_group("df")
            for axis in ("axis0", "block0_items"):
                group.create_dataset(axis, data=np.array([n.encode() for n in names]))
            index = group.create_dataset("axis1", data=times.astype("datetime64[ns]").astype(np.int64))
            index.attrs["kind"] = np.bytes_(b"datetime64")
            group.create_dataset("block0_values", data=values.astype(np.float64))
    else:
        import polars as pl

        stamps = pl.Series("time", times.astype("datetime64[us]"))
        table = pl.DataFrame(values.round(2), schema=names).insert_column(0, stamps)
        table.write_csv(folder / "speed.csv", float_precision=2)
    xy = rng.random((sensors, 2))
    rows = [f"{n},{-118 + x:.5f},{34 + y:.5f}" for n, (x, y) in zip(names, xy, strict=True)]
    (folder / "places.csv").write_text("entity,lon,lat\n" + "\n".join(rows) + "\n")
    order = np.lexsort((xy[:, 1], (xy[:, 0] * np.sqrt(sensors / 4)).astype(int)))
    near = [(order[i], order[(i + k) % sensors]) for i in range(sensors) for k in range(1, min(13, sensors))]
    edges = [f"{names[a]},{names[b]},{1 / (1 + 100 * np.abs(xy[a] - xy[b]).sum()):.4f}" for a, b in near]
    (folder / "edges.csv").write_text("source,target,weight\n" + "\n".join(edges) + "\n")
    where = "key: df" if form == "h5" else "time: time"
    (folder / "traffic.yaml").write_text(TRAFFIC.format(form=form, where=where, step=step))


def child(home: str) -> None:
    """The whole data road of the dataset in `home`."""
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.steps import STEPS

    settings = Settings(home=Path(home))
    lake = Lake(settings.lake_uri)
    seconds = {}
    began = time.process_time()
    for stage in STEPS:
        outcome = materialize("traffic", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
        seconds[stage] = round(outcome.seconds, 2)
    finish(stages=seconds, stages_cpu=time.process_time() - began)


def once(steps: int, sensors: int, step: str, form: str) -> dict[str, Any]:
    """Cost of one size, in all and per stage."""
    with tempfile.TemporaryDirectory(prefix="stfm-bench-") as home:
        measured("bench.road", "write", home, str(steps), str(sensors), step, form)
        return measured("bench.road", "run", home, environment={"STFM_HOME": home})


def main(quick: bool) -> None:
    for form in ("csv", "h5"):
        found = once(34_272, 207, "5m", form)
        line(
            f"raw {form} of METR-LA's size (34272 x 207) to enriched, own process",
            f"{cost(found)}; stages {found['stages']}",
            "6 s, 1000 MB",
            found["seconds"] <= 6 and found["peak_mb"] <= 1000,
        )
    sizes = (500, 1000, 2000) if quick else (500, 1000, 2000, 4000, 8600)
    times = []
    busy = []
    for sensors in sizes:
        found = once(8760, sensors, "1h", "h5")
        times.append(sum(found["stages"].values()))
        busy.append(found["stages_cpu"])
        print(f"     raw h5 of 8760 x {sensors}: {cost(found)}; stages {found['stages']}", flush=True)
    if not quick:
        line(
            "raw h5 of LargeST's size (8760 x 8600) to enriched, own process",
            cost(found),
            "40 s, 3000 MB",
            found["seconds"] <= 40 and found["peak_mb"] <= 3000,
        )
    wall, cpu = (float(np.polyfit(np.log(sizes), np.log(t), 1)[0]) for t in (times, busy))
    line(
        f"exponent of the road's seconds in entities ({sizes[0]} to {sizes[-1]}), imports left out",
        f"{wall:.2f} ({cpu:.2f} of its CPU seconds)",
        "1.1",
        wall <= 1.1,
    )


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2], "datasets"), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7])
        finish()
    else:
        child(sys.argv[2])
