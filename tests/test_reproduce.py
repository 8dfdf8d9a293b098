"""Published protocols: what is measured, what is reused, and when a number is green."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import foreign
from fixtures.synthetic import make_spec
from pydantic import ValidationError

from stfm_pipeline import reproduce
from stfm_pipeline.datasets.catalog import all_datasets, get_dataset
from stfm_pipeline.datasets.spec import Benchmark, DatasetSpec, Published
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.training import train_system

RULE = Benchmark(
    metrics=("mae", "rmse"),
    channel="level",
    published=(
        Published(
            model="HA", source="a paper", system="historical-average", scores={3: (1.0, 2.0), "avg": (1.5, None)}
        ),
        Published(model="Other", source="a paper", scores={3: (0.5, 1.0)}),
    ),
)
LENGTHS = Benchmark(
    metrics=("mse", "mae"),
    scale="standardised",
    at="length",
    published=(
        Published(
            model="L", source="a paper", system="last-value", look_back=24, scores={6: (1.0, 1.0), 12: (2.0, 1.0)}
        ),
    ),
)


def test_every_published_row_of_a_system_here_names_one_that_fits() -> None:
    for dataset in all_datasets().values():
        if (rule := dataset.spec.benchmark) is None:
            continue
        assert rule.channel is None or rule.channel in dataset.spec.channel_names
        for row in rule.published:
            known = [k for k in row.scores if k != "avg"]
            assert all(int(k) <= dataset.spec.task.horizon or rule.at == "length" for k in known), row
            if row.system not in (None, "graph-wavenet"):
                assert "graph" in get_system(str(row.system)).kinds


def test_steps_of_one_horizon_are_measured_and_found_again(enriched: Lake, settings: Settings) -> None:
    spec = make_spec(benchmark=RULE)
    (job,) = reproduce.jobs_of(spec, [], [])
    assert (job.system.name, job.look_back, job.horizon) == ("historical-average", 48, 12)
    stage = _measure(spec, job, enriched, settings)
    scores = reproduce.scores_of(RULE, stage, enriched)
    assert set(scores) == {3, "avg"}
    rows = enriched.read(stage, "rows")
    assert scores["avg"]["mae"] == (rows.filter(pl.col("horizon") == "avg")["mae"][0], 0.0)
    assert rows["channel"].unique().to_list() == ["level"]
    assert _measure(spec, job, enriched, settings).version == stage.version


def test_lengths_are_measured_each_with_its_own_look_back(enriched: Lake, settings: Settings) -> None:
    spec = make_spec(benchmark=LENGTHS)
    jobs = reproduce.jobs_of(spec, [], [])
    assert [(j.look_back, j.horizon) for j in jobs] == [(24, 6), (24, 12)]
    stages = [_measure(spec, j, enriched, settings) for j in jobs]
    found = [reproduce.scores_of(LENGTHS, s, enriched) for s in stages]
    assert [list(f) for f in found] == [[6], [12]]
    assert stages[0].facts["windows"] == stages[1].facts["windows"] + 6
    assert [j.horizon for j in reproduce.jobs_of(spec, ["constant"], [12])] == [12]


def _measure(spec: DatasetSpec, job: reproduce.Job, lake: Lake, settings: Settings) -> reproduce.Stage:
    from stfm_pipeline.datasets import catalog

    catalog.register(catalog.get_dataset("synthetic").model_copy(update={"spec": spec}))
    return reproduce.measure("synthetic", job, lake, settings, "quick", "cpu")


def test_three_seeds_give_a_mean_and_a_deviation(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stfm_pipeline import train

    monkeypatch.setitem(train.BUDGETS, "quick", train.Budget("quick", epochs=1, patience=1, seeds=3, stride=8))
    spec = make_spec(benchmark=RULE)
    stage = _measure(spec, reproduce.Job(get_system("dlinear"), 48, 12), enriched, settings)
    assert stage.facts["seeds"] == 3
    mean, spread = reproduce.scores_of(RULE, stage, enriched)["avg"]["mae"]
    values = enriched.read(stage, "rows").filter(pl.col("horizon") == "avg")["mae"]
    assert values.n_unique() == 3
    assert (mean, spread) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert not list((settings.root / "work").iterdir())


@pytest.mark.parametrize(
    ("value", "ok", "verdict"),
    [
        (0.5, True, "far better: the same data?"),
        (0.9, True, "better"),
        (0.981, True, "green"),
        (1.019, True, "green"),
        (1.021, False, "RED"),
        (3.0, False, "RED"),
    ],
)
def test_green_is_within_the_tolerance(value: float, ok: bool, verdict: str) -> None:
    spec = make_spec(benchmark=RULE)
    (row,) = reproduce.reproduction(spec, "historical-average", 48, {3: {"mae": value}})
    assert (row["published"], row["ok"], row["verdict"]) == (1.0, ok, verdict)
    assert row["difference"] == pytest.approx(value - 1)


def test_only_the_same_system_look_back_and_published_numbers_are_compared() -> None:
    spec = make_spec(benchmark=RULE)
    scores = {3: {"mae": 1.0, "rmse": 2.0}, "avg": {"mae": 1.0, "rmse": 2.0}, 12: {"mae": 1.0}}
    found = reproduce.reproduction(spec, "historical-average", 48, scores)
    assert [(r["at"], r["metric"]) for r in found] == [(3, "mae"), (3, "rmse"), ("avg", "mae")]
    assert reproduce.reproduction(spec, "historical-average", 96, scores) == []
    assert reproduce.reproduction(spec, "stid", 48, scores) == []


def test_an_ordinary_leaderboard_gets_the_same_column() -> None:
    spec = make_spec(benchmark=RULE)
    base = {"system": "historical-average", "split": "test", "scale": "data", "channel": "level"}
    rows = [
        {**base, "horizon": 3, "mae": 1.1, "rmse": 2.0},
        {**base, "horizon": 3, "mae": 9.0, "rmse": 9.0, "split": "val"},
        {**base, "horizon": 3, "mae": 9.0, "rmse": 9.0, "channel": "count"},
        {**base, "horizon": "avg", "mae": 1.0, "rmse": 9.0},
    ]
    found = reproduce.from_leaderboard(spec, rows)
    assert [(r["at"], r["metric"], r["ok"]) for r in found] == [
        (3, "mae", False),
        (3, "rmse", True),
        ("avg", "mae", True),
    ]
    assert reproduce.from_leaderboard(make_spec(), rows) == []


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="'synthetic' has no published protocol"):
        reproduce.jobs_of(make_spec(), [], [])
    with pytest.raises(UsageError, match="leave --length out"):
        reproduce.jobs_of(make_spec(benchmark=RULE), [], [6])
    with pytest.raises(UsageError, match="no published row"):
        reproduce.jobs_of(make_spec(benchmark=RULE.model_copy(update={"published": ()})), [], [])
    with pytest.raises(ValidationError, match="not one per metric"):
        Benchmark(metrics=("mae",), channel="x", published=(Published(model="m", source="s", scores={3: (1.0, 2.0)}),))
    with pytest.raises(ValidationError, match="belong to one channel"):
        Benchmark(metrics=("mae",))


def test_metr_la_from_files_of_its_form_to_a_reproduction(
    tmp_path: Path, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way on a short file: the numbers are made up, the protocol is not."""
    foreign.metr_la(tmp_path, steps=288 * 9, sensors=6)
    monkeypatch.setenv("STFM_DATA", str(tmp_path))
    short = get_dataset("metr-la").spec.facts.model_copy(update={"steps": 288 * 9, "entities": 6})
    from stfm_pipeline.datasets import catalog

    dataset = get_dataset("metr-la")
    monkeypatch.setitem(
        catalog._registered,
        "metr-la",
        dataset.model_copy(update={"spec": dataset.spec.model_copy(update={"facts": short})}),
    )
    here = Settings()
    for stage in STEPS:
        assert materialize("metr-la", stage, lake, here).stage is not None
    found = lake.connect().execute(
        "select count(*), count(distinct entity), max(time), sum(speed_mph) from metr_la.raw where entity != '773807'"
    )
    count, entities, last, total = found.fetchone()  # type: ignore[misc]
    truth = np.delete(foreign.traffic(288 * 9, 6), 1, axis=1)
    assert (count, entities) == (288 * 9 * 5, 5), "dense raw tables are rows in SQL"
    assert total == pytest.approx(truth.sum(), rel=1e-6)
    assert last.astimezone(UTC) == datetime(2012, 3, 10, 7, 55, tzinfo=UTC)
    assert train_system("metr-la", "historical-average", lake, here, progress=False).stage is not None
    spec = get_dataset("metr-la").spec
    job = next(j for j in reproduce.jobs_of(spec, ["historical-average"], []))
    measured = reproduce.measure("metr-la", job, lake, here, "quick", "cpu")
    compared = reproduce.reproduction(
        spec, "historical-average", 12, reproduce.scores_of(spec.benchmark, measured, lake)
    )
    assert {(c["at"], c["metric"]) for c in compared} == {(k, m) for k in (3, 6, 12) for m in ("mae", "rmse", "mape")}
    assert all(c["model"] == "time-of-week average" for c in compared)
