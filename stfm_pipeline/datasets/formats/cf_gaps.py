"""What counts as missing in a file under the CF conventions, beyond what xarray masks by itself."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

# What the NetCDF library leaves in cells that nobody wrote; a single byte has no such value that is no data.
UNWRITTEN = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}
UNWRITTEN |= {"u2": 65535, "u4": 4294967295, "i8": -9223372036854775806, "u8": 18446744073709551614}
PACKING = ("scale_factor", "add_offset")
# No field in single precision passes it: a limit beyond it is none.
LARGEST = float(np.finfo(np.float32).max)


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

    Of packed values they are stated as these are stored, unless their type is that of the packing and wider than the
    stored one (NetCDF User's Guide, Appendix A).
    """
    if "_Unsigned" in field.encoding:
        return -np.inf, np.inf
    both = np.ravel(field.attrs.get("valid_range", ()))
    said = both if len(both) == 2 else [field.attrs.get(k) for k in ("valid_min", "valid_max")]
    (low, down), (high, up) = sorted(_end(v, field, usual) for v, usual in zip(said, (-np.inf, np.inf), strict=True))
    return low - down, high + up


def _end(value: Any, field: DataArray, usual: float) -> tuple[float, float]:
    """One limit and how much a value may pass it by rounding; `usual` where it is no number."""
    found, packing = np.asarray(value if value is not None else np.nan), field.encoding
    if found.ndim or found.dtype.kind not in "iuf" or np.isnan(found) or abs(float(found)) >= LARGEST:
        return usual, 0.0
    stored = np.dtype(packing.get("dtype", field.dtype))
    scale, offset = (np.asarray(packing.get(k, default)) for k, default in zip(PACKING, (1.0, 0.0), strict=True))
    kinds = {np.asarray(packing[k]).dtype for k in PACKING if k in packing}
    if kinds and not (found.dtype in kinds and found.dtype.itemsize > stored.itemsize):
        return float(found * scale + offset), abs(float(scale)) / 2
    return float(found), 0.0 if stored.kind in "iu" and not kinds else 1e-6 * abs(float(found))
