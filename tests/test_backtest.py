"""Rolling origins: each fold learns from its past alone, and is judged on what followed."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import polars as pl
import pytest
import torch
from fixtures.synthetic import START
from typer.testing import CliRunner

from stfm_pipeline.backtest import backtest, cut, origins_of, train_and_score
from stfm_pipeline.cli import app
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import get_system

ORIGIN, END = START + timedelta(days=40), START + timedelta(days=46)


def test_changing_everything_after_the_origin_leaves_the_folds_model_and_forecast_as_they_were(
    enriched: Lake, settings: Settings
) -> None:
    spec = get_dataset("synthetic").spec
    stage = enriched.require("synthetic", "raw")
    raw = {t: enriched.read(stage, t) for t in stage.tables}
    later = pl.col("time") >= ORIGIN
    other = {
        **raw,
        "observations": raw["observations"].with_columns(
            count=pl.when(later).then(pl.col("count") + 7).otherwise("count"),
            level=pl.when(later).then(500.0).otherwise("level"),
        ),
        "weather": raw["weather"].with_columns(temp_c=pl.when(later).then(99.0).otherwise("temp_c")),
    }
    assert not other["observations"].equals(raw["observations"])
    found = []
    for tables, name in ((raw, "one"), (other, "two")):
        panel = cut(spec, tables, ORIGIN, END, Lake(str(settings.root / name)))
        systems = [get_system(s) for s in ("stid", "historical-median")]
        models, sums = train_and_score(panel, systems, "quick", "cpu")
        first = panel.gather(panel.origins("test")[:1], ("past", "ahead"))
        found.append((panel, models, sums, {n: m.forecast(first) for n, m in models.items()}))
    (panel, models, sums, made), (_, models_too, sums_too, made_too) = found
    assert panel.times[int(panel.origins("test")[0])].item() == ORIGIN.replace(tzinfo=None)
    assert panel.times[-1].item() == (END - timedelta(hours=1)).replace(tzinfo=None)
    for name, model in models.items():
        for key, value in model.module.state_dict().items():
            assert torch.equal(value, models_too[name].module.state_dict()[key]), (name, key)
        assert torch.equal(made[name].values, made_too[name].values), name
        bounds, too = made[name].bounds, made_too[name].bounds
        assert bounds is not None
        assert too is not None
        assert torch.equal(bounds, too), name
        assert not (sums[name].window_abs == sums_too[name].window_abs).all(), "what followed was another thing"


def test_folds_follow_one_another_and_rows_and_margins_are_those_of_the_folds(
    enriched: Lake, settings: Settings
) -> None:
    found, folds = backtest("synthetic", "dlinear", enriched, settings, folds=3)
    assert [f.end for f in folds][:-1] == [f.origin for f in folds][1:]
    assert folds[-1].end == START + timedelta(days=60)
    mae = {
        (r.split, r.system): r.mae for r in found.rows if (r.scale, r.channel, r.horizon) == ("data", "count", "avg")
    }
    mine = [mae[f"fold {k}", "dlinear"] for k in (1, 2, 3)]
    assert mae["all folds", "dlinear"] == pytest.approx(sum(mine) / 3)
    assert mine == pytest.approx([float(f.sums["dlinear"].mae()[0]) for f in folds])
    whole = [r for r in found.rows if (r.split, r.system, r.horizon) == ("all folds", "dlinear", "avg")]
    assert {r.windows for r in whole} == {sum(f.sums["dlinear"].windows for f in folds)}
    cells = sum(r.n for r in found.rows if r.split.startswith("fold") and (r.system, r.horizon) == ("dlinear", "avg"))
    assert sum(r.n for r in whole) == cells
    assert {r.horizon for r in found.rows} == {"avg", *range(1, 13)}
    assert {m["rival"] for m in found.margins} >= {"constant", "seasonal-naive", "historical-median"}
    for m in found.margins:
        assert m["low"] <= m["margin"] <= m["high"]
        assert m["margin"] == pytest.approx(sum(m["folds"]) / 3)
    by = {m["rival"]: m["margin"] for m in found.margins}
    assert by["constant"] > 0.05, "a daily cycle is there to be learned"


def test_origins_are_steps_and_refuse_what_makes_no_fold() -> None:
    hour, end = timedelta(hours=1), START + timedelta(days=10)
    moments = origins_of(START, end, hour, 3, None)
    assert moments[0] == START + timedelta(days=6)
    assert moments[-1] == end
    assert all((m - START) % hour == timedelta(0) for m in moments)
    with pytest.raises(UsageError, match="at least two"):
        origins_of(START, end, hour, 1, None)
    with pytest.raises(UsageError, match="outside the data"):
        origins_of(START, end, hour, 2, datetime(2030, 1, 1, tzinfo=START.tzinfo))


def test_the_command_prints_a_table_or_json(enriched: Lake, settings: Settings) -> None:
    asked = ["backtest", "synthetic", "--system", "last-value", "--folds", "2"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "fold 1" in shown.output
    as_json = CliRunner().invoke(app, [*asked, "--json"])
    assert {r["split"] for r in json.loads(as_json.stdout)["rows"]} == {"fold 1", "fold 2", "all folds"}
    late = CliRunner().invoke(app, [*asked, "--start", "2023-04-20T23:00:00"])
    assert late.exit_code != 0
