"""Windows out, forecasts in: what a model made elsewhere gets to see, and the file its forecasts come back in.

A window set is a part, a horizon, a stride and a hash over clock, entities, channels, target values and mask. Every
window's id carries it, so forecasts made for other windows, or for another version of the data, are noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from stfm_pipeline.datasets.spec import Part
from stfm_pipeline.errors import FrameError, StfmError, UsageError
from stfm_pipeline.forecaster import in_data_units

if TYPE_CHECKING:
    from stfm_pipeline.windows import Panel

ID = re.compile(r"(val|gate|test)-h([0-9]{1,9})-s([0-9]{1,9})-([0-9a-f]{12})-[0-9]+")
# What numpy and zipfile raise on bytes that are no arrays, or on a header that asks for more than there is memory.
UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError),
    *(MemoryError, BadZipFile, zlib.error),
)
KEYS = ("window", "unique_id")
NAMES = ("window", "entities", "channels")
SUFFIXES = (".npz", ".parquet", ".csv")
HOW = {
    "npz": "np.savez(FILE, window=ids, forecast=array): forecast is (windows, horizon, entities, channels) in data "
    "units, in the order of series.npz; `entities` and `channels` may say another order",
    "parquet or csv": "a row per window, entity and step: window, unique_id, ds (or step, from 1), and the channels",
    "rules": "every window of the set once; every observed target needs a finite forecast; nothing observed at or "
    "after a window's origin may be used for it",
}


@dataclass(frozen=True)
class WindowSet:
    """The windows that contenders are compared on; `origins` are their first target steps on the panel's clock."""

    part: Part
    horizon: int
    every: int
    digest: str
    origins: Int[Tensor, " w"]

    @property
    def name(self) -> str:
        return f"{self.part}-h{self.horizon}-s{self.every}-{self.digest}"

    def ids(self) -> list[str]:
        return [f"{self.name}-{i:06d}" for i in range(len(self.origins))]


def window_set(panel: Panel, part: Part, every: int = 1) -> WindowSet:
    """Every `every`-th window of a part, with the hash of what they are scored on."""
    if every < 1:
        raise UsageError("one window in so many is taken", expected="1 or more", found=str(every))
    origins = panel.origins(part)[::every]
    if not len(origins):
        raise StfmError(f"{part} holds no window", expected=f"at least {panel.problem.horizon} steps")
    p = panel.problem
    span = slice(int(origins[0]), int(origins[-1]) + p.horizon)
    digest = hashlib.sha256(json.dumps([p.entities, p.channels, p.step_us, p.horizon, every]).encode())
    digest.update(panel.times[origins.numpy()].astype(np.int64).tobytes())
    # Standardised values are the same in any unit.
    digest.update(p.tensors["mean"].numpy().tobytes() + p.tensors["std"].numpy().tobytes())
    observed = panel.arrays.observed[span].numpy()
    digest.update(np.packbits(observed).tobytes())
    digest.update(np.where(observed, panel.arrays.values[span].numpy(), np.float32(0)).tobytes())
    return WindowSet(part, p.horizon, every, digest.hexdigest()[:12], origins)


def export(panel: Panel, chosen: WindowSet, folder: Path, facts: dict[str, Any], long: bool = False) -> list[Path]:
    """Write `series.npz`, `windows.csv` and `windows.json` into a new folder, and with `long` also `series.parquet`.

    series.npz: times (t,) UTC, values (t, n, c) in data units with NaN where unobserved, entities, channels, mean and
    std (n, c) of the training part, the parts' bounds, and per window its id and origin. The folder appears whole.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"{folder} is {'not empty' if folder.is_dir() else 'a file'}", fix="name a new folder with --to"
        )
    p = panel.problem
    mean, std = p.tensors["mean"], p.tensors["std"]
    values = torch.where(panel.arrays.observed, in_data_units(panel.arrays.values, p), torch.nan).numpy()
    ids, origins = chosen.ids(), chosen.origins.numpy()
    parts = {name: [s.start, s.stop] for name, s in panel.parts.items()}
    about = {
        "dataset": p.dataset,
        "windows": chosen.name,
        "count": len(ids),
        "part": chosen.part,
        "every": chosen.every,
        "look_back": p.look_back,
        "horizon": p.horizon,
        "step_seconds": p.step_us / 1e6,
        "channels": list(p.channels),
        "entities": p.n,
        "parts": parts,
        **facts,
        "forecasts": HOW,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".windows-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made", found=error.strerror or str(error), fix="name another folder with --to"
        ) from error
    try:
        np.savez(
            scratch / "series.npz",
            times=panel.times.astype("datetime64[us]"),
            values=values,
            entities=np.array(p.entities, dtype=str),
            channels=np.array(p.channels, dtype=str),
            mean=mean.numpy(),
            std=std.numpy(),
            part_names=np.array(list(parts), dtype=str),
            part_bounds=np.array(list(parts.values())),
            window=np.array(ids, dtype=str),
            origin=origins,
        )
        stamps = pl.Series(panel.times[origins]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        text = stamps.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        pl.DataFrame({"window": ids, "origin": text, "index": origins}).write_csv(scratch / "windows.csv")
        (scratch / "windows.json").write_text(json.dumps(about, indent=1))
        if long:
            _long(panel, values).write_parquet(scratch / "series.parquet")
        if folder.is_dir():
            folder.rmdir()
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return sorted(folder.iterdir())


def _long(panel: Panel, values: NDArray[np.float32]) -> pl.DataFrame:
    """`unique_id, ds, <channels>`, entity by entity."""
    p, t = panel.problem, len(panel.times)
    times = pl.Series(panel.times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.DataFrame(
        {
            "unique_id": pl.Series(p.entities).gather(np.repeat(np.arange(p.n, dtype=np.uint32), t)),
            "ds": times.gather(np.tile(np.arange(t, dtype=np.uint32), p.n)),
            **{c: pl.Series(values[:, :, k].T.ravel()).fill_nan(None) for k, c in enumerate(p.channels)},
        }
    )


@dataclass(frozen=True)
class Asked:
    """What a file of forecasts says it is for, before any of it is checked against a dataset."""

    part: Part
    horizon: int
    every: int
    digest: str


@dataclass(frozen=True)
class Predictions:
    """Forecasts made elsewhere: `values` (w, h, n, c) in data units, NaN where none was given."""

    name: str
    values: Float[Tensor, "w h n c"]


def open_file(path: Path) -> tuple[Asked, Any]:
    """The window set that a file's ids name, and its content as read."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"cannot read '{path.name}'", expected=", ".join(SUFFIXES))
    if not path.is_file():
        raise UsageError(f"no file at {path}")
    content = _arrays(path) if path.suffix == ".npz" else _frame(path)
    text = content["window"] if isinstance(content, pl.DataFrame) else pl.Series(content["window"], dtype=pl.String)
    text = text.unique(maintain_order=True)
    known = text.str.extract(r"^(.*)-\d+$").unique(maintain_order=True).to_list()
    match = ID.fullmatch(text[0] or "") if len(text) else None
    if match is None or len(known) != 1:
        raise FrameError(
            f"{path.name}: window ids are not of one set",
            expected="ids such as test-h12-s1-0123456789ab-000000, all from one `stfm benchmark windows`",
            found=f"{len(known)} kinds",
            offenders=[repr(k) for k in known],
            fix="take the ids from windows.csv",
        )
    part: Part = match[1]  # type: ignore[assignment]
    return Asked(part, int(match[2]), int(match[3]), match[4]), content


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {k: file[k] for k in file.files if k in ("forecast", *NAMES)}
        named = {k: found[k].astype(str) for k in NAMES if k in found}
    except UNREADABLE as error:
        raise FrameError(
            f"{path.name} cannot be read as npz",
            expected="plain arrays; an array of Python objects would have to be unpickled, which is never done",
            found=str(error).partition("\n")[0] or type(error).__name__,
            fix="np.savez(FILE, window=np.array(ids, dtype=str), forecast=array)",
        ) from None
    if lacking := [k for k in ("window", "forecast") if k not in found]:
        raise FrameError(f"{path.name} lacks arrays", expected="window, forecast", offenders=lacking, fix=HOW["npz"])
    if odd := [k for k, v in named.items() if v.ndim != 1]:
        raise FrameError(f"{path.name}: a name for each is a list", expected="one axis", offenders=odd, fix=HOW["npz"])
    return found | named


def _frame(path: Path) -> pl.DataFrame:
    try:
        frame = (
            pl.read_parquet(path)
            if path.suffix == ".parquet"
            else pl.read_csv(path, infer_schema_length=None, schema_overrides=dict.fromkeys(KEYS, pl.String))
        )
        known = frame.with_columns(pl.col(c).cast(pl.String) for c in KEYS if c in frame.columns)
    except pl.exceptions.PolarsError as error:
        raise FrameError(f"{path.name} cannot be read as a table", found=str(error).splitlines()[0]) from None
    if lacking := [c for c in KEYS if c not in frame.columns]:
        raise FrameError(
            f"{path.name} lacks columns",
            expected="window, unique_id, ds or step, and the channels",
            found=", ".join(frame.columns),
            offenders=lacking,
            fix=HOW["parquet or csv"],
        )
    return known


def read_predictions(
    path: Path, panel: Panel, chosen: WindowSet, content: Any, name: str, zone: str | None = None
) -> Predictions:
    """The file's forecasts laid out as (w, h, n, c). Raises `FrameError` unless each window is there exactly once."""
    dense = _from_arrays if isinstance(content, dict) else _from_rows
    values = dense(path, panel, chosen, content, zone)
    return Predictions(name, torch.from_numpy(values))


def _order(path: Path, what: str, given: Sequence[str], ours: Sequence[str]) -> list[int]:
    place = {v: i for i, v in enumerate(given)}
    missing, strangers = [v for v in ours if v not in place], [v for v in given if v not in set(ours)]
    if missing or strangers or len(place) != len(given):
        raise FrameError(
            f"{path.name}: {what} differ from the dataset's",
            expected=f"these {len(ours)}, each once: {', '.join(ours[:5])}{' ...' if len(ours) > 5 else ''}",
            found=f"{len(given)}, of which {len(missing)} are lacking and {len(strangers)} unknown",
            offenders=missing or strangers or [v for v in place if list(given).count(v) > 1],
        )
    return [place[v] for v in ours]


def _places(path: Path, ids: Sequence[str], chosen: WindowSet) -> NDArray[np.int64]:
    """The position of each id in the set; a set that is not whole is refused, so that nobody picks windows."""
    position = {v: i for i, v in enumerate(chosen.ids())}
    at = np.array([position.get(i, -1) for i in ids], np.int64)
    count = np.bincount(at[at >= 0], minlength=len(position))
    if (at < 0).any() or (count != 1).any():
        lacking = [i for i, k in zip(position, count, strict=True) if k == 0]
        raise FrameError(
            f"{path.name}: not the windows of the set",
            expected=f"each of {len(position)} windows once",
            found=f"{int((count == 0).sum())} lacking, {int((count > 1).sum())} more than once, "
            f"{int((at < 0).sum())} unknown",
            offenders=lacking or [i for i, a in zip(ids, at, strict=True) if a < 0 or count[a] > 1],
            fix="forecast every window of windows.csv; a smaller set comes from `stfm benchmark windows --every K`",
        )
    return at


def _from_arrays(path: Path, panel: Panel, chosen: WindowSet, content: Any, zone: str | None) -> NDArray[np.float32]:
    p, forecast = panel.problem, content["forecast"]
    ids = content["window"].tolist()
    shape = (len(ids), p.horizon, p.n, p.c)
    if forecast.ndim == 3 and p.c == 1:
        forecast = forecast[..., None]
    if forecast.shape != shape or forecast.dtype.kind not in "fiu":
        raise FrameError(
            f"{path.name}: `forecast` has another shape",
            expected=f"(windows, horizon, entities, channels) = {shape}, numbers",
            found=f"{forecast.shape}, {forecast.dtype}",
        )
    at = _places(path, ids, chosen)
    for key, ours, axis in (("entities", p.entities, 2), ("channels", p.channels, 3)):
        if key in content:
            order = _order(path, key, content[key].tolist(), ours)
            if order != list(range(len(ours))):
                forecast = forecast.take(order, axis=axis)
    out = np.empty(shape, np.float32)
    # What is too large for a float becomes infinite, and is refused where it would be scored.
    with np.errstate(over="ignore"):
        out[at] = forecast
    return out


def _from_rows(path: Path, panel: Panel, chosen: WindowSet, rows: Any, zone: str | None) -> NDArray[np.float32]:
    from stfm_pipeline.predict import utc_times
    from stfm_pipeline.tables import times_of

    p = panel.problem
    if lacking := [c for c in p.channels if c not in rows.columns]:
        raise FrameError(
            f"{path.name} lacks channels",
            expected=", ".join(p.channels),
            found=", ".join(rows.columns),
            offenders=lacking,
        )
    ids = rows["window"]
    unique = ids.unique(maintain_order=True).to_list()
    window = ids.replace_strict(unique, _places(path, unique, chosen), return_dtype=pl.Int64).to_numpy()
    index = dict(zip(p.entities, range(p.n), strict=True))
    node = rows["unique_id"].replace_strict(index, default=-1, return_dtype=pl.Int64).to_numpy()
    if "step" in rows.columns:
        step = rows["step"]
        if not (step.dtype.is_numeric() or step.dtype in (pl.String, pl.Null)):
            raise FrameError(f"{path.name}: 'step' does not hold numbers", found=str(step.dtype))
        step = step.cast(pl.Float64, strict=False).fill_null(0).fill_nan(0).clip(0, p.horizon + 1)
        ahead = np.where(step % 1 == 0, step, 0).astype(np.int64) - 1
    elif "ds" in rows.columns:
        times = times_of(rows.select(utc_times(rows, "ds", zone).alias("ds"))["ds"]).astype(np.int64)
        first = panel.times[chosen.origins.numpy()].astype(np.int64)[window]
        ahead, off = np.divmod(times - first, p.step_us)
        ahead = np.where(off == 0, ahead, -1)
    else:
        raise FrameError(
            f"{path.name} does not say when", expected="a column `ds` or `step`", fix=HOW["parquet or csv"]
        )
    bad = (node < 0) | (ahead < 0) | (ahead >= p.horizon)
    if bad.any():
        shown = rows.select(c for c in ("window", "unique_id", "ds", "step") if c in rows.columns).filter(
            pl.Series(bad)
        )
        raise FrameError(
            f"{path.name}: {int(bad.sum())} rows are of unknown entities or outside their window",
            expected=f"the dataset's {p.n} entities, and the {p.horizon} steps from each window's origin on",
            offenders=[str(r) for r in shown.head(6).to_dicts()],
        )
    flat = (window * p.horizon + ahead) * p.n + node
    if len(np.unique(flat)) != len(flat):
        order = np.sort(flat)
        twice = int(order[:-1][order[:-1] == order[1:]][0])
        raise FrameError(
            f"{path.name}: several rows for one window, entity and step",
            expected="one row each",
            offenders=[f"{chosen.ids()[twice // (p.horizon * p.n)]}, {p.entities[twice % p.n]}"],
        )
    out = np.full((len(chosen.origins), p.horizon, p.n, p.c), np.nan, np.float32)
    for k, channel in enumerate(p.channels):
        column = rows[channel]
        if not (column.dtype.is_numeric() or column.dtype == pl.Null):
            raise FrameError(f"{path.name}: '{channel}' does not hold numbers", found=str(column.dtype))
        out.reshape(-1, p.c)[flat, k] = column.cast(pl.Float32).fill_null(np.nan).to_numpy()
    return out
