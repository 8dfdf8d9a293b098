"""A field larger than what its stages may hold, raw to enriched and to a first window, in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.child import cost, finish, line, measured

STEPS_AT_ONCE = 240
SPEC = """\
kind: grid
zone: UTC
tables:
  observations: {format: gridded, file: field.nc}
channels:
  - {name: temp, unit: K, minimum: 100, maximum: 400}
harmonize: {step: 1h, scale_per: entity}
task: {look_back: 12, horizon: 12}
"""


def write(folder: Path, steps: int, side: int) -> None:
    """Hourly temperatures of `side` x `side` cells with a daily rhythm and 5 % of the cells missing, as NetCDF-4."""
    import h5netcdf

    folder.mkdir(parents=True)
    (folder / "field.yaml").write_text(SPEC)
    rng = np.random.default_rng(0)
    with h5netcdf.File(folder / "field.nc", "w") as file:
        file.dimensions = {"time": steps, "lat": side, "lon": side}
        time = file.create_variable("time", ("time",), np.int64)
        time.attrs.update(units="hours since 2020-01-01", standard_name="time")
        time[:] = np.arange(steps)
        for axis, first in (("lat", 40.0), ("lon", 0.0)):
            places = file.create_variable(axis, (axis,), np.float64)
            places.attrs["units"] = "degrees_north" if axis == "lat" else "degrees_east"
            places[:] = first + np.arange(side) * 0.1
        field = file.create_variable("temp", ("time", "lat", "lon"), np.float32, chunks=(24, side, side))
        field.attrs["units"] = "K"
        for i in range(0, steps, STEPS_AT_ONCE):
            n = min(STEPS_AT_ONCE, steps - i)
            values = 280 + rng.standard_normal((n, side, side), dtype=np.float32)
            values += 5 * np.sin((i + np.arange(n, dtype=np.float32)) * np.pi / 12)[:, None, None]
            values[rng.random(values.shape, dtype=np.float32) < 0.05] = np.nan
            field[i : i + n] = values


def child(home: str) -> None:
    """The data road of the field in `home`, the panel of it, and a batch of windows."""
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.steps import STEPS

    settings = Settings(home=Path(home))
    lake = Lake(settings.lake_uri)
    peaks = {}
    for stage in STEPS:
        outcome = materialize("field", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
        peaks[stage] = {k: round(v) for k, v in outcome.stage.cost.items()}
    from stfm_pipeline.windows import load_panel

    panel = load_panel(lake, "field", settings.cache)
    window = panel.gather(panel.origins("train")[:4])
    finish(stages=peaks, windows=list(window.values.shape))


def main(quick: bool) -> None:
    steps, side = (2190, 200) if quick else (8760, 200)
    size = steps * side * side * 4 / 1e6
    with tempfile.TemporaryDirectory(prefix="stfm-bench-") as home:
        measured("bench.field", "write", home, str(steps), str(side))
        found = measured("bench.field", "run", home, environment={"STFM_HOME": home})
    line(
        f"a field of {size:.0f} MB ({steps} x {side} x {side}, single precision) raw to windows, own process",
        f"{cost(found)}; seconds and MB by stage {found['stages']}",
        "3000 MB",
        found["peak_mb"] <= 3000,
    )


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2], "datasets"), int(sys.argv[3]), int(sys.argv[4]))
        finish()
    else:
        child(sys.argv[2])
