"""When the steps of a file under the CF conventions are: units, calendars, and what rounding did to them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.errors import ContractError

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

Stamps = NDArray[np.int64]

PROLEPTIC = "proleptic_gregorian"
REAL_CALENDARS = ("standard", "gregorian", PROLEPTIC)
# The standard calendar is Julian before this day, the first of the Gregorian one, and its Julian day number.
REFORM, REFORM_DAY = "1582-10-15", 2299161
SINCE = re.compile(r"\s*(?P<unit>\w+) since (?P<y>\d{1,4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?P<clock>.*)")
SPELT = {86400: ("d", "day"), 3600: ("h", "hr", "hour"), 60: ("min", "minute"), 1: ("s", "sec", "second")}
SECONDS = {word: seconds for seconds, words in SPELT.items() for word in words}
# What clocks are made of, in seconds.
ROUND = (86400, 21600, 10800, 3600, 1800, 900, 600, 300, 60, 10, 1)


def moments(path: Path, data: Dataset, name: str) -> tuple[Stamps, Stamps | None]:
    """Times of an axis in UTC microseconds, and the ends of the periods that its bounds state."""
    axis = data[name]
    calendar = str(axis.attrs.get("calendar", "standard")).lower()
    if calendar not in REAL_CALENDARS:
        raise ContractError(
            f"{path.name} counts time by the calendar '{calendar}', whose days are not those of the real one",
            expected="standard, gregorian or proleptic_gregorian",
            fix="convert it to the standard calendar first, e.g. `ds.convert_calendar('standard', align_on='year')`",
        )
    if " since " not in str(axis.attrs.get("units", "")):
        raise ContractError(
            f"'{name}' of {path.name} says nowhere from when it counts",
            expected="units such as 'hours since 1970-01-01'",
            found=repr(axis.attrs.get("units")),
            fix="set its units, or name the axis of times as `time`",
        )
    bounds = str(axis.attrs.get("bounds", ""))
    ends = None
    if bounds in data.variables and data[bounds].ndim == 2:
        last = data[bounds][:, 1]
        ends = _decoded(path, last.assign_attrs(units=axis.attrs["units"], calendar=calendar))
    return _decoded(path, axis.assign_attrs(calendar=calendar)), ends


def _decoded(path: Path, axis: DataArray) -> Stamps:
    import xarray as xr

    fine = _spacing(axis)
    axis = _after_the_reform(path, axis)
    with warnings.catch_warnings():
        # That a fraction is finer than microseconds; it is rounded below.
        warnings.simplefilter("ignore", xr.SerializationWarning)
        found = xr.coders.CFDatetimeCoder(use_cftime=False, time_unit="us").decode(axis.variable).values
    stamps = found.astype("datetime64[us]").astype(np.int64)
    # A third of an hour has no exact floating point number: what rounding took must not make it the hour before.
    stamps = np.asarray((stamps + 500) // 1000 * 1000)
    for seconds in ROUND if fine > 1e3 else ():
        near = (stamps + seconds * 500_000) // (seconds * 1_000_000) * (seconds * 1_000_000)
        if (np.abs(near - stamps) <= fine / 2 + 1000).all():
            return near
    return stamps


def _unit(axis: DataArray) -> int | None:
    """Seconds of the unit that an axis counts in; None where it is none of those that have a fixed length."""
    word = str(axis.attrs["units"]).split(" since ")[0].strip().lower()
    return SECONDS.get(word) or SECONDS.get(word.removesuffix("s"))


def _spacing(axis: DataArray) -> float:
    """How far apart, in microseconds, the numbers are that single precision has for an axis; 0 for any other one."""
    stored = np.dtype(axis.encoding.get("dtype", axis.dtype))
    unit = _unit(axis)
    if stored != np.dtype(np.float32) or unit is None or not axis.size:
        return 0.0
    return float(np.spacing(np.abs(axis.values).max().astype(np.float32))) * unit * 1e6


def _after_the_reform(path: Path, axis: DataArray) -> DataArray:
    """The same axis counted from the Gregorian calendar's first day, where it counts from before it.

    Old archives count from the year 1 in the standard calendar, that is in the Julian one up to 4 October 1582.
    """
    found, unit = SINCE.fullmatch(str(axis.attrs["units"])), _unit(axis)
    if found is None or unit is None or axis.attrs["calendar"] == PROLEPTIC:
        return axis
    year, month, day = (int(found[k]) for k in "ymd")
    if (year, month, day) >= (1582, 10, 15):
        return axis
    # Fliegel and van Flandern's formula of the Julian day number, for the Julian calendar.
    late = (14 - month) // 12
    y, m = year + 4800 - late, month + 12 * late - 3
    number = day + (153 * m + 2) // 5 + 365 * y + y // 4 - 32083
    counted = axis.astype(np.float64) - (REFORM_DAY - number) * 86400 / unit
    if axis.size and float(counted.min()) < 0:
        raise ContractError(
            f"'{axis.name}' of {path.name} reaches back before {REFORM}, into the Julian calendar",
            fix="leave those steps out, or convert them to `proleptic_gregorian`",
        )
    units = f"{found['unit']} since {REFORM}{found['clock']}"
    return counted.assign_attrs(axis.attrs | {"units": units, "calendar": PROLEPTIC})
