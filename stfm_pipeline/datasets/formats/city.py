"""City grids as papers on crowd flows pass them around: TaxiBJ and BikeNYC in HDF5, UniST's windows in json."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from stfm_pipeline.datasets.formats.base import (
    Form,
    FrameFiles,
    Moment,
    Scene,
    clock,
    dated,
    lay_out,
    only_observations,
    refuse_bomb,
    to_moments,
)
from stfm_pipeline.datasets.formats.hdf import held, refuse_elsewhere
from stfm_pipeline.errors import MAX_OFFENDERS, ContractError
from stfm_pipeline.tables import DAY_US, dense_observations, step_us, times_of

UNIST = {"X_train": "train", "X_val": "val", "X_test": "test"}


class StResNet(Form):
    """HDF5 as ST-ResNet's TaxiBJ and BikeNYC are: `data` (t, c, h, w) and `date`, b'2013070101' the day's first slot.

    Slots are a step long, civil in the dataset's zone, counted from 1; one that is left out has no row. Several files
    follow one another. `columns` says which index is which channel. Places are not in the file.
    """

    format: Literal["st_resnet"]
    file: FrameFiles
    columns: dict[str, int] = Field(default={})

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        only_observations(table)
        wanted = self.columns or {c: i for i, c in enumerate(scene.channels)}
        found = [_h5(table, files[name], wanted) for name in self.names()]
        whole = _one_grid(table, self.names(), [next(iter(v.values())).shape[1:] for _, v in found])
        times = pl.concat([_slots(table, files[n], s, scene) for n, (s, _) in zip(self.names(), found, strict=True)])
        lay_out(scene, *whole)
        values = {c: np.concatenate([v[c] for _, v in found]) for c in wanted}
        return dense_observations(times, {c: v.reshape(len(v), -1) for c, v in values.items()})


def _h5(table: str, path: Path, wanted: dict[str, int]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Slots, and per channel values (t, h, w)."""
    import h5py

    with h5py.File(path, "r") as file:
        refuse_elsewhere(path, file)
        if lacking := [k for k in ("data", "date") if k not in file]:
            raise ContractError(
                f"{table}: {path.name} lacks datasets", expected="data, date", found=", ".join(file), offenders=lacking
            )
        data = file["data"]
        if data.ndim != 4 or data.shape[1] <= max(wanted.values()) or len(data) != len(file["date"]):
            raise ContractError(
                f"{table}: {path.name} holds arrays of another form",
                expected=f"data (slots, channels up to index {max(wanted.values())}, rows, columns), date (slots)",
                found=f"data {data.shape}, date {file['date'].shape}",
                fix=f"correct tables.{table}.columns",
            )
        slots = [s.decode() if isinstance(s, bytes) else str(s) for s in held(path, file["date"]).tolist()]
        refuse_bomb(path, data.nbytes)
        return slots, {c: data[:, i] for c, i in wanted.items()}


def _slots(table: str, path: Path, slots: list[str], scene: Scene) -> pl.Series:
    """Slots such as 2013070148 as UTC times."""
    length, day = timedelta(microseconds=step_us(scene.step)), DAY_US // step_us(scene.step)
    good = [len(s) == 10 and s.isdigit() and 1 <= int(s[8:]) <= day for s in slots]
    if not all(good):
        raise ContractError(
            f"{table}: slots of {path.name} are none of a day in steps of {scene.step}",
            expected=f"a date and 01 to {day:02d}, such as 20130701{day:02d}",
            offenders=[s for s, ok in zip(slots, good, strict=True) if not ok],
            fix="correct harmonize.step, or leave the slots out",
        )
    civil = [datetime.strptime(s[:8], "%Y%m%d") + (int(s[8:]) - 1) * length for s in slots]
    return to_moments(pl.Series(civil, dtype=pl.Datetime("us")), scene.zone)


class UniST(Form):
    """UniST's json: X_train, X_val, X_test, each [windows (n, t, h, w), ...], and `timestamps` of each window's steps.

    Windows that overlap are put together to one series, which they must agree on. Timestamps are civil times, or whole
    steps counted from `start`. Pairs of weekday and slot say nothing of which week it was, and are refused.
    """

    format: Literal["unist"]
    file: str
    start: Moment | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        only_observations(table)
        path = files[self.file]
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or (lacking := [k for k in (*UNIST, "timestamps") if k not in data]):
            raise ContractError(
                f"{table}: {path.name} is not as UniST's files are",
                expected=", ".join((*UNIST, "timestamps")),
                found=", ".join(data) if isinstance(data, dict) else type(data).__name__,
                offenders=lacking if isinstance(data, dict) else [],
            )
        windows = [_windows(table, path, key, data[key]) for key in UNIST]
        _one_grid(table, list(UNIST), [w.shape[2:] for w in windows])
        dates = [[s for window in data["timestamps"].get(k, ()) for s in window] for k in UNIST.values()]
        for key, found, dated_by in zip(UNIST, windows, dates, strict=True):
            if len(dated_by) != found.shape[0] * found.shape[1]:
                raise ContractError(
                    f"{table}: {path.name} does not date every step of every window of '{key}'",
                    expected=f"{found.shape[0] * found.shape[1]} timestamps",
                    found=f"{len(dated_by)}",
                )
        stamps = self._stamps(table, path, [s for part in dates for s in part], scene)
        height, width = windows[0].shape[2:]
        rows = np.concatenate([w.reshape(-1, height * width) for w in windows])
        times, first, which = np.unique(times_of(stamps), return_index=True, return_inverse=True)
        whole = rows[first]
        differ = (rows != whole[which]) & ~(np.isnan(rows) & np.isnan(whole[which]))
        if differ.any():
            raise ContractError(
                f"{table}: windows of {path.name} that overlap disagree, so there is no one series behind them",
                offenders=[str(t) for t in np.unique(times[which[differ.any(axis=1)]])[:MAX_OFFENDERS]],
                fix="bring the series that they were cut from",
            )
        lay_out(scene, height, width)
        moments = pl.Series(times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        return dense_observations(moments, {scene.channels[0]: whole})

    def _stamps(self, table: str, path: Path, flat: list[Any], scene: Scene) -> pl.Series:
        """UTC times, window after window."""
        if any(isinstance(s, list) for s in flat):
            raise ContractError(
                f"{table}: {path.name} dates its windows by weekday and slot, and nothing says of which week",
                expected="times such as '2013-07-01 00:30:00', or counted steps",
                found=str(flat[0]),
                fix="bring the series that the windows were cut from, e.g. as npz (`format: tensor`) or NetCDF",
            )
        if all(isinstance(s, int) and s >= 0 for s in flat):
            if self.start is None:
                raise ContractError(
                    f"{table}: {path.name} counts its steps from a time that it does not name",
                    found=str(flat[:3]),
                    fix=f"add `start:` to tables.{table}: the time of step 0",
                )
            return clock(self.start, scene.step, max(flat) + 1, scene.zone).gather(flat)
        return dated(table, path, pl.Series([str(s) for s in flat]), scene.zone, None, "keep")


def _windows(table: str, path: Path, key: str, found: Any) -> NDArray[Any]:
    """The windows (n, t, h, w) of a part: first of several arrays, or alone."""
    for windows in (found[0] if isinstance(found, list) and found else None, found):
        try:
            array = np.asarray(windows, np.float64)
        except (ValueError, TypeError):
            continue
        if array.ndim == 4:
            return array
    raise ContractError(
        f"{table}: '{key}' of {path.name} holds no windows",
        expected="[windows (n, t, h, w), ...], all of one size",
        fix="compare it with the layout in UniST's dataset/README.md",
    )


def _one_grid(table: str, names: Any, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """The one size of several grids."""
    if odd := [f"{n}: {s}" for n, s in zip(names, shapes, strict=True) if s != shapes[0]]:
        raise ContractError(
            f"{table}: the grids of its files differ", expected=str(shapes[0]), offenders=odd, fix="leave them out"
        )
    height, width = shapes[0]
    return height, width
