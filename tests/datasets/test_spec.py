from __future__ import annotations

import importlib
import json
from datetime import date

import pytest
from fixtures.synthetic import make_spec
from pydantic import ValidationError

from stfm_pipeline.datasets import catalog
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.rules import Outliers
from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Embed, Split, Task
from stfm_pipeline.embed.temporal import holiday_codes
from stfm_pipeline.tables import step_us

# Not those of a home that this runs in.
BUILT_IN = sorted(catalog._built_in())


def test_the_catalog_holds_every_file_that_defines_a_dataset() -> None:
    assert {"etth1", "haute-borne", "metr-la", "nyc-airports"} <= set(BUILT_IN)
    assert not {"spec", "catalog", "formats", "export"} & set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_dataset_says_what_the_rest_of_the_road_relies_on(name: str) -> None:
    dataset = get_dataset(name)
    spec = dataset.spec
    if not spec.tables:
        assert dataset.module.rsplit(".", 1)[1].replace("_", "-") == name
        assert importlib.import_module(dataset.module).read is dataset.read
    columns = [*spec.channel_names, *(c for j in spec.joins for c in j.columns)]
    assert len(set(columns)) == len(columns), "a column of a long table has one meaning"
    assert not {"entity", "time", "unique_id", "ds"} & set(columns)
    assert list(spec.seasons) == sorted(spec.seasons)
    assert spec.seasons
    assert step_us(spec.harmonize.step) > 0
    assert all(step_us(j.lag, zero=True) >= 0 for j in spec.joins)
    assert spec.licence
    assert spec.homepage.startswith("https://") or dataset.truth is not None, "what was not made here has a home"
    assert all(c.unit for c in spec.channels)
    assert set(holiday_codes([date(2024, 7, 4)], spec.country)) == {date(2024, 7, 4)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_spec_survives_json(name: str) -> None:
    spec = get_dataset(name).spec
    assert DatasetSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"split ratios sum to 1\.1"):
        Split(ratios=(0.7, 0.1, 0.1, 0.2))


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Channel, {"name": "x", "unit": "1", "minimun": 0}),
        (Outliers, {"threshold": 0}),
        (Embed, {"patch_size": 0}),
        (Task, {"look_back": 0, "horizon": 1}),
        (Task, {"look_back": 1, "horizon": 1, "loss": "mape"}),
    ],
)
def test_unknown_fields_and_values_out_of_range_are_refused(model: type, fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model(**fields)


def test_a_spec_without_channels_is_refused() -> None:
    with pytest.raises(ValidationError, match="channels"):
        DatasetSpec.model_validate(make_spec().model_dump() | {"channels": ()})
