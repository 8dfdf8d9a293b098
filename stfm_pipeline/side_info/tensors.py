"""What never changes as numbers that a model can read."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray


def static_array(
    table: pl.DataFrame, scaler: pl.DataFrame, vocabulary: pl.DataFrame
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and (n, s) values: numbers standardised, a column per category, 0 where missing, and a mask for each.

    The mask columns come last, named `<column>_known`, 1 where the entity has a value.
    """
    scales = {r["column"]: (r["mean"], r["std"]) for r in scaler.to_dicts()}
    words = {c: vocabulary.filter(column=c).sort("code") for c in vocabulary["column"].unique()}
    columns = [c for c in table.columns if c != "entity"]
    cells: dict[str, NDArray[np.float64]] = {}
    for column in columns:
        values = table[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
        if column in words:
            cells |= {f"{column}_{w}": values == code for _, code, w in words[column].iter_rows()}
        else:
            mean, std = scales[column]
            cells[column] = np.nan_to_num((values - mean) / std)
    cells |= {f"{c}_known": table[c].is_not_null().to_numpy() for c in columns}
    out = np.zeros((len(table), len(cells)), np.float32)
    for i, values in enumerate(cells.values()):
        out[:, i] = values
    return tuple(cells), out
