"""Scales other than the z-score, and the climatology that learned systems see values without."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fixtures.synthetic import NAMES, START, make_spec, tables
from pydantic import ValidationError
from torch import nn

from stfm_pipeline.datasets.spec import Dataset, Facts, Harmonize
from stfm_pipeline.embed.temporal import calendar
from stfm_pipeline.forecaster import Forecaster, truth
from stfm_pipeline.harmonize import climatology, scaler
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tables import Signal
from stfm_pipeline.tasks.forecasting import hide
from stfm_pipeline.windows import Panel, load_panel

MODULE = "stfm_pipeline.datasets.nyc_airports"


@pytest.mark.parametrize("per", ["channel", "entity"])
@pytest.mark.parametrize(
    ("scale", "offset", "width"),
    [
        ("zscore", np.mean, np.std),
        ("minmax", np.min, np.ptp),
        ("robust", np.median, lambda x: np.subtract(*np.quantile(x, [0.75, 0.25])) / 1.349),
    ],
)
def test_a_scale_is_what_numpy_makes_of_observed_training_cells(
    scale: str, per: str, offset: Callable[[Any], float], width: Callable[[Any], float]
) -> None:
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", scale=scale, scale_per=per)), tables())
    assert [c.name for c in result.checks if not c.passed] == []
    signal = Signal.from_frame(result.frame("signal"), NAMES, ["count", "level"])
    stop = result.facts["parts"]["train"][1]
    found = [a.astype(np.float64) for a in scaler.arrays(result.frame("scaler"), 6, 2)]
    for n in range(6):
        for k in range(2):
            chosen = slice(None) if per == "channel" else slice(n, n + 1)
            cells = signal.values[:stop, chosen, k][signal.observed[:stop, chosen, k]].astype(np.float64)
            assert found[0][n, k] == pytest.approx(offset(cells), rel=1e-6)
            assert found[1][n, k] == pytest.approx(width(cells), rel=1e-6)


@pytest.mark.parametrize("scale", ["zscore", "minmax", "robust"])
def test_a_series_that_training_never_saw_has_the_scale_of_its_channel(scale: str) -> None:
    raw = tables()
    late = (pl.col("entity") != "f") | (pl.col("time") > START + timedelta(days=45))
    raw["observations"] = raw["observations"].with_columns(level=pl.when(late).then("level"))
    spec = make_spec(harmonize=Harmonize(step="1h", scale=scale, scale_per="entity"))
    own = harmonize(spec, raw).frame("scaler").filter(entity="f", channel="level").drop("count")
    whole = make_spec(harmonize=Harmonize(step="1h", scale=scale))
    assert own.equals(harmonize(whole, raw).frame("scaler").filter(entity="f", channel="level").drop("count"))


def test_phases_are_those_of_the_calendar() -> None:
    times = np.datetime64("2023-02-20T00:00", "us") + np.arange(24 * 300) * np.timedelta64(3_600_000_000, "us")
    for zone in ("America/New_York", "Europe/Zurich", "Asia/Kolkata"):
        table = calendar(times, [zone], 3_600_000_000, [None])
        assert climatology.codes(times, zone, ("tod",), 3_600_000_000).tolist() == table["tod"].to_list()
        both = climatology.codes(times, zone, ("month", "tod"), 3_600_000_000).tolist()
        assert both == (table["tod"] * 12 + table["month"]).to_list()


@pytest.mark.parametrize("phases", [("tod",), ("month",), ("month", "tod")])
def test_climatology_is_the_training_mean_of_each_phase_in_civil_time(phases: Any) -> None:
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", climatology=phases)), tables())
    assert [c.name for c in result.checks if not c.passed] == []
    signal = Signal.from_frame(result.frame("signal"), NAMES, ["count", "level"])
    stop, table = result.facts["parts"]["train"][1], result.frame("climatology")
    assert len(table) == (24 if "tod" in phases else 1) * (12 if "month" in phases else 1) * 12
    offset, width = scaler.arrays(result.frame("scaler"), 6, 2)
    long = pl.DataFrame(
        {
            "time": np.repeat(signal.times[:stop], 6),
            "entity": np.tile(np.array(NAMES), stop),
            "value": ((signal.values - offset) / width)[:stop, :, 1].ravel(),
            "seen": signal.observed[:stop, :, 1].ravel(),
        }
    ).filter("seen")
    zone = pl.when(pl.col("entity").is_in(["a", "b", "c"]))
    utc = pl.col("time").dt.replace_time_zone("UTC")
    parts = {"tod": lambda t: t.dt.hour(), "month": lambda t: t.dt.month() - 1}
    civil = {
        p: zone.then(parts[p](utc.dt.convert_time_zone("America/New_York"))).otherwise(
            parts[p](utc.dt.convert_time_zone("Europe/Zurich"))
        )
        for p in phases
    }
    expected = long.group_by(*(e.cast(pl.Int32).alias(p) for p, e in civil.items()), "entity").agg(
        pl.col("value").mean().alias("expected"), pl.len().alias("seen")
    )
    both = table.filter(channel="level").join(expected, on=[*phases, "entity"], how="left")
    assert both["count"].to_list() == both["seen"].fill_null(0).to_list()
    enough = both.filter(pl.col("count") >= climatology.FEW)
    assert np.allclose(enough["mean"], enough["expected"], atol=1e-6)
    means = long.group_by("entity").agg(pl.col("value").mean().alias("whole"))
    empty = both.filter(pl.col("count") == 0).join(means, on="entity")
    assert np.allclose(empty["mean"], empty["whole"], atol=1e-6)
    assert len(empty) == (0 if phases == ("tod",) else len(empty))


def test_few_values_are_shrunk_to_the_mean_of_the_series() -> None:
    total, count = np.array([[[10.0]], [[2.0]], [[0.0]]]), np.array([[[10.0]], [[1.0]], [[0.0]]])
    assert np.allclose(climatology._shrunk(total, count).ravel(), [1, 0.2 * 2 + 0.8 * 12 / 11, 12 / 11])


class Nothing(nn.Module):
    """Answers that all will be as usual, and keeps what it was shown."""

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.shape = (problem.horizon, problem.n, problem.c)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Any) -> torch.Tensor:
        self.shown = inputs.x
        return torch.zeros(len(inputs.x), *self.shape) * self.weight


NOTHING = System(
    "nothing", "Nothing", "", "", "primitive", "regression", "none", "temporal", Nothing, training=Training()
)


def seasonal() -> dict[str, pl.DataFrame]:
    """Levels that depend on the civil time of day and on the entity alone, with gaps."""
    raw = tables()
    local = pl.when(pl.col("entity").is_in(["a", "b", "c"]))
    hour = local.then(pl.col("time").dt.convert_time_zone("America/New_York").dt.hour()).otherwise(
        pl.col("time").dt.convert_time_zone("Europe/Zurich").dt.hour()
    )
    level = 40 + (hour.cast(pl.Float64) / 24 * 2 * np.pi).sin() * 7 + hour % 3
    raw["observations"] = raw["observations"].with_columns(
        count=pl.lit(3.0), level=pl.when(pl.col("level").is_not_null()).then(level)
    )
    return raw


@pytest.fixture
def panel(add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings) -> Panel:
    channels = tuple(c.model_copy(update={"absent": None}) for c in make_spec().channels)
    rule = Harmonize(step="1h", climatology=("tod",), scale_per="entity")
    spec = make_spec("waves", harmonize=rule, joins=(), facts=Facts(), channels=channels)
    add_dataset(Dataset(spec=spec, read=lambda files: seasonal(), module=MODULE))
    for stage in STEPS:
        assert materialize("waves", stage, lake, settings).stage is not None
    return load_panel(lake, "waves", settings.cache)


def test_a_purely_seasonal_signal_is_forecast_exactly_by_a_module_that_answers_nothing(panel: Panel) -> None:
    module = NOTHING.module(panel.problem)
    window = panel.gather(panel.origins("test")[::7])
    forecaster = Forecaster("nothing", panel.problem, module, {})
    forecast, (values, observed) = forecaster.forecast(window).values, truth(window, panel.problem)
    assert observed.sum() > 5000
    assert torch.allclose(forecast[observed], values[observed], atol=1e-3)
    assert module.inner.shown.abs().max() < 1e-4, "nothing is left of the season"
    plain = Forecaster("nothing", panel.problem, NOTHING.build(panel.problem), {}).forecast(window).values
    assert (plain - values)[observed].abs().mean() > 1


def test_what_is_not_observed_stays_0_and_an_unknown_time_has_no_climatology(panel: Panel) -> None:
    window = panel.gather(panel.origins("test")[:3])
    inputs, _ = hide(window, panel.problem.look_back)
    module = NOTHING.module(panel.problem)
    module(inputs)
    assert (module.inner.shown[~inputs.observed] == 0).all()
    inputs.calendar.zero_(), inputs.calendar_ahead.zero_()
    assert (module(inputs) == 0).all()
    assert torch.equal(module.inner.shown, inputs.x)


def test_an_answer_of_another_shape_is_still_refused(panel: Panel) -> None:
    class Narrow(Nothing):
        def forward(self, inputs: Any) -> torch.Tensor:
            return super().forward(inputs)[..., :1]

    narrow = System("narrow", "", "", "", "primitive", "", "", "temporal", Narrow, training=Training())
    window = panel.gather(panel.origins("test")[:2])
    with pytest.raises(Exception, match="does not answer with a forecast"):
        Forecaster("narrow", panel.problem, narrow.module(panel.problem), {}).forecast(window)


def test_a_saved_model_and_a_frame_give_the_same_forecast(panel: Panel, tmp_path: Any) -> None:
    system = get_system("dlinear")
    forecaster = Forecaster("dlinear", panel.problem, system.module(panel.problem).eval(), {})
    again = Forecaster.load(forecaster.save(tmp_path / "model"))
    origin = int(panel.origins("test")[5])
    window = panel.gather(torch.tensor([origin]))
    expected = forecaster.forecast(window).values
    assert torch.equal(again.forecast(window).values, expected)
    frame = again.predict(frame_of(panel, origin))
    level = frame["level"].to_numpy().reshape(6, -1).T
    assert np.allclose(level, expected[0, :, :, 1].numpy(), atol=1e-4)


def test_baselines_see_the_values_themselves(panel: Panel) -> None:
    module = get_system("last-value").module(panel.problem)
    assert type(module) is type(get_system("last-value").build(panel.problem))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"step": "1h", "climatology": ["tod", "tod"]}, "stands twice"),
        ({"step": "1d", "climatology": ["tod"]}, "have no time of day"),
        ({"step": "1h", "climatology": ["week"]}, "'tod' or 'month'"),
        ({"step": "1h", "scale": "log"}, "'zscore', 'minmax' or 'robust'"),
    ],
)
def test_what_makes_no_sense_is_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Harmonize.model_validate(rule)
