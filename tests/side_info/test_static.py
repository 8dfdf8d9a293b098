"""What never changes: attributes, categories, points around an entity, and the numbers a model reads of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_pipeline.datasets.spec import Dataset, Join, PointsNear
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.side_info.run import enrich
from stfm_pipeline.side_info.static import points_near
from stfm_pipeline.stage import Result
from stfm_pipeline.steps import STEPS
from stfm_pipeline.windows import load_panel

SITES = pl.DataFrame(
    {
        "entity": ["a", "b", "c", "d", "zz"],
        "altitude_m": [10.0, 30.0, None, 50.0, 1e6],
        "land": ["town", "field", "town", None, "sea"],
    }
)
OWN = Join(table="sites", columns=("altitude_m", "land"), availability="static")
POINTS = pl.DataFrame(
    {
        "lon": [-74.0, -73.9, -73.5, 8.0, None],
        "lat": [40.0, 40.0, 40.5, 47.0, 1.0],
        "kind": ["airport", "school", "airport", "airport", "school"],
        "entity": ["a", None, None, "d", None],
    }
)
NEAR = PointsNear(table="poi", category="kind", radii_km=(50, 200.5))


def enriched(sites: pl.DataFrame = SITES, **changes: Any) -> Result:
    raw = tables() | {"sites": sites, "poi": POINTS}
    spec = make_spec(**{"joins": (OWN,), **changes})
    return enrich(spec, raw, harmonize(spec, raw).frames)


def test_attributes_are_numbers_and_codes_of_a_vocabulary_and_missing_where_nothing_is_said() -> None:
    found = enriched()
    table = found.tables["static"]
    assert table["altitude_m"].to_list() == [10, 30, None, 50, None, None]
    assert found.tables["static_vocabulary"]["category"].to_list() == ["field", "sea", "town"]
    assert table["land"].to_list() == [2, 0, 2, None, None, None]
    (scale,) = found.tables["static_scaler"].to_dicts()
    assert (scale["column"], scale["mean"], scale["count"]) == ("altitude_m", 30, 3)
    assert scale["std"] == pytest.approx(np.std([10, 30, 50]))
    (counts,) = found.facts["joins"]
    assert counts["cells_missing"] == {
        "altitude_m": {"no_partner": 2, "no_value": 1},
        "land": {"no_partner": 2, "no_value": 1},
    }
    assert (counts["rows_unmatched"], counts["entities_without_partner"]) == (1, 2)
    assert set(found.tables["provenance"]["join"]) == {"sites"}


def test_absent_is_the_value_of_an_entity_that_is_left_out() -> None:
    rule = Join(table="sites", columns=("altitude_m",), availability="static", absent=0.0)
    assert enriched(joins=(rule,)).tables["static"]["altitude_m"].to_list() == [10, 30, 0, 50, 0, 0]


def test_the_nearest_place_lends_its_category() -> None:
    rule = Join(table="land", columns=("land",), availability="static", via="place", within_km=60)
    land = pl.DataFrame({"entity": ["p"], "lon": [-74.0], "lat": [40.2], "land": ["sea"]})
    spec = make_spec(joins=(rule,))
    raw = tables() | {"land": land}
    assert enrich(spec, raw, harmonize(spec, raw).frames).tables["static"]["land"].to_list() == [0, 0, *[None] * 4]
    several = make_spec(joins=(rule.model_copy(update={"nearest": 2}),))
    with pytest.raises(ContractError, match="no mean of categories"):
        enrich(several, raw, harmonize(spec, raw).frames)


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (pl.concat([SITES, SITES[:1]]), "several rows of one entity"),
        (SITES.with_columns(entity=pl.lit("x") + pl.col("entity")), "no observed value"),
        (pl.DataFrame({"entity": [f"e{i}" for i in range(70)], "land": [f"k{i}" for i in range(70)]}), "categories"),
        (SITES.with_columns(altitude_m=pl.Series([[1.0]] * 5)), "something else than numbers or text"),
    ],
)
def test_attributes_that_cannot_be_joined_are_named(sites: pl.DataFrame, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        enriched(sites.with_columns(altitude_m=pl.lit(1.0)) if "altitude_m" not in sites.columns else sites)


def test_points_are_counted_around_each_entity_and_its_own_is_not_near_it() -> None:
    table = enriched(poi=(NEAR,)).tables["static"]
    a = table.row(0, named=True)
    assert a["school_nearest_m"] == pytest.approx(8518, abs=10)
    assert a["airport_nearest_m"] == pytest.approx(69_900, abs=200), "the other one: its own is itself"
    assert (a["airport_within_50km"], a["airport_within_200.5km"], a["school_within_50km"]) == (0, 1, 1)
    d = table.row(3, named=True)
    assert (d["airport_within_50km"], d["airport_nearest_m"] > 6e6) == (0, True)


def test_a_point_that_only_shares_a_name_with_an_entity_is_a_point_like_others() -> None:
    entities = pl.DataFrame({"entity": ["1", "2"], "lon": [8.0, 9.0], "lat": [47.0, 47.0]})
    pubs = pl.DataFrame({"entity": ["1", "2", "9"], "lon": [8.1, 8.101, 9.0], "lat": [47.0, 47.0, 47.001]})
    found = points_near(pubs, PointsNear(table="pubs", radii_km=(5.0, 20.0)), entities)
    assert found["pubs_within_5km"].to_list() == [0, 1]
    assert found["pubs_within_20km"].to_list() == [2, 1]
    assert found["pubs_nearest_m"][0] == pytest.approx(7_584, abs=20)
    own = pubs.with_columns(lon=pl.Series([8.0, 8.1, 8.0]), lat=pl.Series([47.0, 47.0, 47.0]))
    beside = points_near(own, PointsNear(table="pubs", radii_km=(5.0,)), entities)
    assert (beside["pubs_within_5km"][0], beside["pubs_nearest_m"][0]) == (1, 0), "its own is one of two at its place"
    crowd = pl.DataFrame({"entity": ["x", "y", "z", "w", "1", "1"], "lon": [8.0] * 4 + [8.001] * 2, "lat": [47.0] * 6})
    among = points_near(crowd, PointsNear(table="pubs", radii_km=(5.0,)), entities)
    assert (among["pubs_within_5km"][0], among["pubs_nearest_m"][0]) == (4, 0), "nor are both of its own near it"


def test_points_of_no_category_and_those_left_out() -> None:
    near = PointsNear(table="poi", category="kind", only=("school",))
    assert enriched(joins=(), poi=(near,)).facts["static"] == ["school_nearest_m"]
    assert enriched(joins=(), poi=(PointsNear(table="poi"),)).facts["static"] == ["poi_nearest_m"]
    with pytest.raises(ContractError, match="none of a category"):
        enriched(poi=(PointsNear(table="poi", category="kind", only=("pub",)),))
    with pytest.raises(ContractError, match="lack columns"):
        enriched(poi=(PointsNear(table="poi", category="sort"),))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-180, 180), st.floats(-85, 85)), min_size=1, max_size=30),
    st.lists(st.tuples(st.floats(-180, 180), st.floats(-85, 85)), min_size=1, max_size=4),
    st.floats(10, 15_000),
)
def test_counts_are_those_of_all_distances(
    points: list[tuple[float, float]], here: list[tuple[float, float]], radius: float
) -> None:
    where = pl.DataFrame(
        {"entity": [str(i) for i in range(len(here))], "lon": [p[0] for p in here], "lat": [p[1] for p in here]}
    )
    poi = pl.DataFrame({"lon": [p[0] for p in points], "lat": [p[1] for p in points]})
    found = points_near(poi, PointsNear(table="p", radii_km=(radius,)), where)
    (x, y), (u, v) = (np.deg2rad(np.array(a)).T for a in (points, here))
    square = np.sin((y - v[:, None]) / 2) ** 2 + np.cos(y) * np.cos(v[:, None]) * np.sin((x - u[:, None]) / 2) ** 2
    km = 2 * 6371.0088 * np.arcsin(np.sqrt(np.clip(square, 0, 1)))
    sure = (np.abs(km - radius) > 1e-3).all(axis=1)
    assert found[f"p_within_{radius:g}km"].to_numpy()[sure].tolist() == (km <= radius).sum(axis=1)[sure].tolist()
    assert found["p_nearest_m"].to_numpy() == pytest.approx(km.min(axis=1) * 1000, abs=1)


def test_a_model_reads_them_standardised_with_a_mask(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    spec = make_spec(joins=(OWN,), poi=(NEAR,))
    add_dataset(Dataset(spec=spec, read=lambda _: tables() | {"sites": SITES, "poi": POINTS}, module=MODULE))
    for stage in STEPS:
        outcome = materialize("synthetic", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    problem = load_panel(lake, "synthetic", settings.cache).problem
    found = {name: problem.tensors["static"][:, i].tolist() for i, name in enumerate(problem.static)}
    spread = np.std([10, 30, 50])
    assert found["altitude_m"] == pytest.approx([-20 / spread, 0, 0, 20 / spread, 0, 0])
    assert found["altitude_m_known"] == [1, 1, 0, 1, 0, 0]
    assert found["land_town"] == [1, 0, 1, 0, 0, 0]
    assert found["land_known"] == [1, 1, 1, 0, 0, 0]
    assert found["airport_nearest_m_known"] == [1] * 6
    assert abs(np.mean(found["airport_nearest_m"])) < 1e-6


MODULE = "stfm_pipeline.datasets.nyc_airports"
