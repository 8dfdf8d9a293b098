"""Side information from places: who is near enough, who speaks for an entity, and what is counted of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.scene import cells, join, scene_of, table
from fixtures.synthetic import make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.side_info import places
from stfm_pipeline.side_info.run import enrich

# One degree along the equator.
DEGREE_KM = 111.195


def place(**changes: Any) -> Join:
    whole = {"table": "t", "columns": ("v",), "availability": "past", "tolerance": "0h", "via": "place"}
    return Join(**{**whole, "within_km": 250.0, **changes})


def station(name: str, lon: float | None, hours: list[float], values: list[float | None], lat: float = 0) -> Any:
    n = len(hours)
    return table(hours, values, name, lon=[lon] * n, lat=[lat if lon is not None else None] * n)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=6),
    st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=6),
)
def test_distances_are_haversine_ones(here: list[tuple[float, float]], there: list[tuple[float, float]]) -> None:
    a, b = (places.on_sphere(*zip(*p, strict=True)) for p in (here, there))
    index, km = places.nearest(a, b, 1)
    for i, (lon, lat) in enumerate(here):
        x, y = np.deg2rad(there).T
        u, v = np.deg2rad(lon), np.deg2rad(lat)
        h = np.sin((y - v) / 2) ** 2 + np.cos(y) * np.cos(v) * np.sin((x - u) / 2) ** 2
        expected = 2 * 6371.0088 * np.arcsin(np.sqrt(np.clip(h, 0, 1)))
        # Opposite points are the hard ones for either formula.
        assert km[i, 0] == pytest.approx(expected.min(), abs=1e-3)
        assert expected[index[i, 0]] == pytest.approx(expected.min(), abs=1e-3)


def test_the_nearest_station_with_a_value_speaks() -> None:
    side = pl.concat([station("far", 2.0, [0, 1, 2], [1.0, 2, 3]), station("near", 1.0, [1], [20.0])])
    found = join(side, place(), scene_of([("x", 0, 0), ("nowhere", None, None), ("beyond", 9, 0)]))
    assert cells(found)[:4] == [1, 20, 3, None]
    assert cells(found, 1) == cells(found, 2) == [None] * 8
    assert found.spread.linked.tolist() == [True, False, False]


def test_the_mean_of_the_nearest_goes_by_inverse_distance() -> None:
    side = pl.concat(
        [station(n, lon, [0, 1], [v, w]) for n, lon, v, w in (("p", 1, 10, 10), ("q", -2, 40, None), ("r", 2.1, 99, 7))]
    )
    found = join(side, place(nearest=2), scene_of([("x", 0, 0)]))
    assert cells(found)[:2] == [pytest.approx((10 + 40 / 2) / 1.5), pytest.approx((10 + 7 / 2.1) / (1 + 1 / 2.1))]


def test_at_the_limit_a_place_is_near_and_over_the_date_line_too() -> None:
    side = station("p", 179.5, [0], [5.0])
    for within, expected in ((DEGREE_KM * 1.001, 5.0), (DEGREE_KM * 0.999, None)):
        assert cells(join(side, place(within_km=within), scene_of([("x", -179.5, 0)])))[0] == expected


def test_stations_may_have_their_places_in_a_table_of_their_own() -> None:
    where = pl.DataFrame({"entity": ["p", "q"], "lon": [1.0, None], "lat": [0.0, None]})
    side = pl.concat([table([0], [5.0], "p"), table([0], [9.0], "q")])
    found = join(side, place(places="sites"), scene_of([("x", 0, 0)]), where)
    assert cells(found)[0] == 5


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (pl.concat([station("p", 1, [0], [1.0]), station("p", 2, [1], [1.0])]), "a station is at several places"),
        (station("p", 40.0, [0], [1.0], lat=-95), "no place on earth"),
        (table([0], [1.0]), "lacks columns"),
    ],
)
def test_stations_that_cannot_be_placed_are_named(side: pl.DataFrame, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        join(side, place(), scene_of([("x", 0, 0)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"within_km": None}, "state `within_km`"),
        ({"via": "entity"}, "are for `via: place`"),
        ({"availability": "static"}, "neither `lag` nor `tolerance`"),
    ],
)
def test_a_join_by_place_says_how_far(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        place(**changes)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_a_station_says_later_changes_nothing_earlier(data: st.DataObject) -> None:
    """Also a station that only then begins to speak, and is nearer than all others."""
    lons = data.draw(st.lists(st.integers(-4, 4), min_size=1, max_size=4, unique=True))
    value = st.one_of(st.none(), st.floats(-10, 10, width=32))
    sides = [
        station(f"s{lon}", lon, list(range(8)), data.draw(st.lists(value, min_size=8, max_size=8))) for lon in lons
    ]
    moment, rule = data.draw(st.integers(0, 7)), place(nearest=data.draw(st.integers(1, 3)), tolerance="2h", lag="1h")
    side, scene = pl.concat(sides), scene_of([("x", 0, 0), ("y", 2.5, 1)])
    changed = side.with_columns(v=pl.when(pl.col("time").dt.hour() >= moment).then(7.0).otherwise("v"))
    before, after = join(side, rule, scene), join(changed, rule, scene)
    # Stamped at `moment`, with a lag of an hour: at the end of the step after that it is known.
    assert np.array_equal(before.values[: moment + 1], after.values[: moment + 1])
    assert np.array_equal(before.observed[: moment + 1], after.observed[: moment + 1])


def by_place() -> tuple[Any, dict[str, pl.DataFrame]]:
    raw = tables()
    raw["entities"] = raw["entities"].with_columns(lon=pl.when(pl.col("entity") != "f").then("lon"))
    raw["weather"] = pl.concat([raw["weather"], raw["weather"].filter(entity="a").with_columns(entity=pl.lit("zz"))])
    sites = pl.DataFrame({"entity": ["a", "d"], "lon": [-74.0, 8.0], "lat": [40.0, 47.0]})
    rule = Join(
        table="weather",
        columns=("temp_c",),
        availability="past",
        tolerance="0h",
        via="place",
        within_km=100.0,
        places="sites",
    )
    return make_spec(joins=(rule,)), raw | {"sites": sites}


def test_provenance_and_counts_say_who_gave_what_and_why_a_cell_is_missing() -> None:
    spec, raw = by_place()
    harmonized = harmonize(spec, raw).tables
    result = enrich(spec, raw, harmonized)
    train = int(60 * 24 * 0.6)
    rows = {r["entity"]: r for r in result.tables["provenance"].to_dicts()}
    # Every other hour has a report, and c, f are too far away or nowhere.
    assert {e: r["partner"] for e, r in rows.items()} == {"a": "a", "b": "a", "d": "d", "e": "d"}
    assert (rows["a"]["distance_km"], rows["a"]["weight"], rows["a"]["share"]) == (0, 1, 0.5)
    assert 60 < rows["b"]["distance_km"] < 75
    assert rows["b"]["lag"] == "0h"
    (counts,) = result.facts["joins"]
    assert counts["entities_without_partner"] == 2
    assert counts["cells_missing"] == {"temp_c": {"no_partner": 2 * train, "too_old": 4 * train // 2}}
    assert (counts["rows_used"], counts["rows_unmatched"]) == (train, train // 2)
    assert counts["missing_is"] == "masked"
    assert result.passed


def test_mean_age_counts_from_the_end_of_a_values_own_step() -> None:
    spec, raw = by_place()
    rule = spec.joins[0].model_copy(update={"tolerance": "1h", "lag": "2h"})
    spec = spec.model_copy(update={"joins": (rule,)})
    found = enrich(spec, raw, harmonize(spec, raw).tables).tables["provenance"].filter(entity="b")
    # Reports every other hour, two hours late: 2 or 3 steps old.
    assert found["mean_age_steps"][0] == pytest.approx(2.5, abs=0.01)
