"""Contracts of grids, and what is noted of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import check_raw, harmonize
from stfm_pipeline.tables import Signal, dense_observations

STEPS = 30


def spec(kind: str = "grid", region: list[float] | None = None) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "name": "x",
            "title": "x",
            "kind": kind,
            "licence": "none",
            "zone": "UTC",
            "region": region,
            "channels": [{"name": "v", "unit": "m"}],
            "harmonize": {"step": "1h"},
            "task": {"look_back": 3, "horizon": 2},
        }
    )


def tables(lon: list[Any], lat: list[Any], hidden: dict[int, slice] | None = None) -> dict[str, pl.DataFrame]:
    """Two rows of three cells; cells of `hidden` are not observed in those steps."""
    values = np.arange(STEPS * 6, dtype=np.float32).reshape(STEPS, 6)
    for cell, steps in (hidden or {}).items():
        values[steps, cell] = np.nan
    times = pl.Series([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(STEPS)]).cast(
        pl.Datetime("us", "UTC")
    )
    cells = {"entity": list("abcdef"), "row": [0, 0, 0, 1, 1, 1], "col": [0, 1, 2] * 2, "lon": lon, "lat": lat}
    return {"observations": dense_observations(times, {"v": values}), "entities": pl.DataFrame(cells)}


LON, LAT = [178.0, 179, -180] * 2, [1.0] * 3 + [0.0] * 3


def test_cells_that_training_never_saw_are_counted() -> None:
    hidden = {1: slice(None), 4: slice(None), 5: slice(0, 18)}
    found = harmonize(spec(), tables(LON, LAT, hidden))
    assert found.facts["parts"]["train"] == [0, 18]
    assert found.facts["never_observed"] == 3, "the last one is seen after the training part alone"
    assert found.facts["grid"] == [2, 3]
    observed = Signal.from_frame(found.frame("signal"), found.frame("entities")["entity"].to_list(), ["v"]).observed
    assert not observed[:, [1, 4, 5]].any(), "land stays masked, whatever a later step says"
    assert observed[:, [0, 2, 3]].all()
    assert found.facts["masked"]["v"]["few_observed"] == len(observed) - 18


def test_two_cells_at_one_place_are_refused() -> None:
    check_raw(spec(), tables(LON, LAT))
    with pytest.raises(ContractError, match=r"2 cells of the grid share a place[\s\S]*a at 180, 1, c at 180, 1"):
        check_raw(spec(), tables([180.0, 179, -180] * 1 + LON[3:], LAT))


def test_sensors_of_a_graph_may_share_a_place() -> None:
    raw = tables([1.0] * 6, [2.0] * 6)
    check_raw(spec("graph"), raw)


def test_cells_without_a_place_are_no_two_at_one_place() -> None:
    check_raw(spec(region=[0, 0, 1, 1]), tables([None] * 6, [None] * 6))


@pytest.mark.parametrize("kind", ["grid", "graph"])
def test_entities_lie_in_the_declared_region(kind: str) -> None:
    check_raw(spec(kind, [178, 0, -180, 1]), tables(LON, LAT))
    with pytest.raises(ContractError, match=r"2 lie outside the dataset's region[\s\S]*c at -180, 1, f at -180, 0"):
        check_raw(spec(kind, [170, -5, 179.5, 5]), tables(LON, LAT))
    with pytest.raises(ContractError, match=r"6 lie outside[\s\S]*mixed up"):
        check_raw(spec(kind, [178, -5, -178, 5]), tables([10.0, 11, 12] * 2, LAT))


@pytest.mark.parametrize("box", [[0, 5, 10, -5], [0, 0, 190, 5], [0, -91, 10, 5], [5, 0, 5, 1]])
def test_a_region_is_west_south_east_north(box: list[float]) -> None:
    with pytest.raises(ValueError, match="a box is west, south, east, north"):
        spec(region=box)


def test_coordinates_are_on_earth() -> None:
    with pytest.raises(ContractError, match=r"entities: 1 of 6 rows break the contract[\s\S]*lat\|max: 1 rows"):
        check_raw(spec(), tables(LON, [*LAT[:5], 90.5]))
