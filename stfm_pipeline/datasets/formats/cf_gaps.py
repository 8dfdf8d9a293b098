"""What counts as missing in a file under the CF conventions, beyond what xarray masks by itself."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

# What the NetCDF library leaves in cells that nobody wrote; a single byte has no such value that is no data.
UNWRITTEN = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}
UNWRITTEN |= {"u2": 65535, "u4": 4294967295}
PACKING = ("scale_factor", "add_offset")


def decoded(found: Dataset, netcdf: bool = False, zarr_2: bool = False) -> Dataset:
    """A dataset as it is stored, unpacked lazily and with missing cells as NaN; times are left as numbers.

    In NetCDF a field that states no `_FillValue` has the library's own. In Zarr 2 every array has a fill value, mostly
    0, which is data as long as nothing is packed.
    """
    import xarray as xr

    for variable in found.variables.values():
        kind = f"{variable.dtype.kind}{variable.dtype.itemsize}"
        # Axes are all there, and times as integers would lose digits.
        field = variable.ndim > 1 and " since " not in str(variable.attrs.get("units", ""))
        if netcdf and field and "_FillValue" not in variable.attrs and kind in UNWRITTEN:
            variable.attrs["_FillValue"] = np.array(UNWRITTEN[kind], variable.dtype.newbyteorder("="))[()]
        elif zarr_2 and not any(k in variable.attrs for k in PACKING) and _zero(variable.attrs.get("_FillValue")):
            del variable.attrs["_FillValue"]
    with warnings.catch_warnings():
        # That a `missing_value` stands beside a fill value: both are masked.
        warnings.simplefilter("ignore", xr.SerializationWarning)
        return xr.decode_cf(found, decode_times=False, decode_timedelta=False)


def _zero(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and value == 0


def limits(field: DataArray) -> tuple[float, float]:
    """The lowest and the highest value that a field's `valid_range`, or `valid_min` and `valid_max`, lets be.

    Of packed values they are stated as these are stored, unless their type is that of unpacked ones (NetCDF User's
    Guide, Appendix A).
    """
    stored = field.encoding
    said = [field.attrs[k] for k in ("valid_range",) if k in field.attrs] or [
        field.attrs.get("valid_min", -np.inf),
        field.attrs.get("valid_max", np.inf),
    ]
    kinds = {np.asarray(v).dtype.kind for v in said if not np.array_equal(v, np.inf) and not np.array_equal(v, -np.inf)}
    ends = np.concatenate([np.ravel(v) for v in said])
    if len(ends) != 2 or not kinds <= set("iuf") or "_Unsigned" in stored:
        return -np.inf, np.inf
    ends = ends.astype(np.float64)
    # Values are in single precision, the limits may be in double.
    slack = 1e-6 * max(np.abs(ends[np.isfinite(ends)]), default=0.0)
    if any(k in stored for k in PACKING) and not kinds & {"f"}:
        scale, offset = (float(stored.get(k, usual)) for k, usual in zip(PACKING, (1, 0), strict=True))
        ends, slack = ends * scale + offset, abs(scale) / 2
    return float(ends.min() - slack), float(ends.max() + slack)
