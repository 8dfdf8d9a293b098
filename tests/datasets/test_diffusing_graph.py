"""A generated dataset: the same every time, its optimum that of a long simulation, and met by who knows the truth."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stfm_pipeline import console
from stfm_pipeline.datasets import diffusing_graph as made
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import RawTables
from stfm_pipeline.errors import StfmError
from stfm_pipeline.evaluate import report
from stfm_pipeline.evaluate.metrics import Sums
from stfm_pipeline.evaluate.oracle import oracle
from stfm_pipeline.evaluate.run import Entry, evaluate, score
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.dataset import dataset_page
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.tables import dense_values
from stfm_pipeline.truth import MEAN_ABS, OPTIMUM, LinearGaussian
from stfm_pipeline.windows import Panel, load_panel

HORIZON = made.SPEC.task.horizon


@pytest.fixture(scope="module")
def raw() -> RawTables:
    return made.read({})


@pytest.fixture(scope="module")
def truth() -> LinearGaussian:
    return made.truth()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for stage in STEPS:
        outcome = materialize(made.SPEC.name, stage, Lake(str(folder / "lake")), Settings(home=folder))
        assert outcome.stage is not None, outcome.checks
    return folder


@pytest.fixture(scope="module")
def panel(home: Path) -> Panel:
    return load_panel(Lake(str(home / "lake")), made.SPEC.name, home / "cache")


def test_the_same_seed_gives_the_same_numbers_everywhere(raw: RawTables) -> None:
    values = dense_values(raw["observations"], "level")
    assert values.shape == (made.STEPS, made.ENTITIES)
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "d3b4c6e04d8cffbd"
    assert hashlib.sha256(raw["weather"]["forcing"].to_numpy().tobytes()).hexdigest()[:16] == "7d6f6f96a1755543"


def test_edges_say_where_a_value_comes_from(raw: RawTables, truth: LinearGaussian) -> None:
    n = truth.n
    along = truth.transition[:n, :n] - made.OWN * np.eye(n)
    for source, target, weight in raw["edges"].head(20).select("source", "target", "weight").iter_rows():
        came = raw["edges"].filter(target=target)["weight"].sum()
        assert np.isclose(along[int(target[1:]), int(source[1:])], made.ALONG * weight / came)
    assert np.count_nonzero(along) == len(raw["edges"])
    assert abs(np.linalg.eigvals(truth.transition)).max() < 1, "it stays where it is"


def test_the_stated_optimum_is_the_error_in_a_long_simulation(truth: LinearGaussian) -> None:
    """The simulation and the matrices are written down apart from one another."""
    x, z = made.simulate(12_000)
    state = np.concatenate([x[1:-HORIZON], x[: -HORIZON - 1], z[1:-HORIZON], z[: -HORIZON - 1]], axis=1)
    answers = np.eye(4 * truth.n)[: truth.n]
    wanted = truth.deviations(HORIZON)
    for h in range(HORIZON):
        answers = answers @ truth.transition
        error = x[1 + h + 1 : len(x) - HORIZON + h + 1] - state @ answers.T
        blocks = np.square(error[: len(error) // 200 * 200].reshape(-1, 200, truth.n)).mean(axis=(1, 2))
        off = blocks.mean() - np.square(wanted[h]).mean()
        assert abs(off) < 3 * blocks.std() / np.sqrt(len(blocks)), h
        assert np.isclose(np.abs(error).mean(), MEAN_ABS * wanted[h].mean(), rtol=0.02)


def test_the_oracle_meets_the_stated_optimum_on_the_windows_of_the_evaluation(panel: Panel, home: Path) -> None:
    stated = Lake(str(home / "lake")).require(made.SPEC.name, "raw").facts["optimum"]["scores"]["level"]
    best = oracle(made.truth(), panel.problem)
    assert best is not None
    sums = score(best, panel, "test", ("past", "ahead")).sums
    for found, known in ((sums.window_abs, stated["avg"]["mae"]), (sums.window_sq, stated["avg"]["rmse"] ** 2)):
        mean, error = _mean(found, sums)
        assert abs(mean - known) < 2 * error
        assert error < 0.02 * known
    count, size = sums.cells["data"][:2, :, 0]
    assert np.allclose(size / count, stated["mae"], rtol=0.02)


def _mean(size: np.ndarray, sums: Sums, block: int = 48) -> tuple[float, float]:
    """Mean per cell, with its standard error from means of blocks of windows: neighbours overlap."""
    each = (size / sums.window_count)[:, 0]
    means = each[: len(each) // block * block].reshape(-1, block).mean(axis=1)
    return float(each.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def _few(panel: Panel) -> Panel:
    """The same data with shorter parts."""
    return replace(panel, parts={p: slice(s.start, s.start + 200) for p, s in panel.parts.items()})


@pytest.mark.parametrize("part", ["time", "edges", "weather"])
def test_each_kind_of_information_carries_some_of_what_can_be_known(panel: Panel, part: str) -> None:
    known = made.truth()
    n = known.n
    less = known.transition.copy()
    if part == "edges":
        less[:n, :n] = np.diag(np.diag(less[:n, :n]) + made.ALONG)
    if part == "weather":
        less[:n, 2 * n :] = 0
    cycle = known.cycle if part != "time" else np.zeros_like(known.cycle)
    few = _few(panel)
    full, without = (
        score(f, few, "test", ("past",)).sums.mae()[0]
        for f in (oracle(known, few.problem), oracle(replace(known, transition=less, cycle=cycle), few.problem))
        if f is not None
    )
    assert without > 1.02 * full


def test_what_no_side_information_costs_lies_between_the_optimum_and_nothing(truth: LinearGaussian) -> None:
    small = _smaller(truth, 6)
    with_side, without = (small.deviations(4, side) for side in (True, False))
    assert (without > with_side).all()
    alone = small.alone(4, 12)
    assert (alone >= with_side - 1e-9).all()
    assert (small.alone(4, 24) <= alone + 1e-9).all(), "who sees more is not worse"
    assert (without[0] ** 2 < 1 + made.FORCING**2 * made.DRIVE**2 / (1 - made.MEMORY**2)).all()


def test_a_series_alone_is_forecast_no_better_in_a_long_simulation(truth: LinearGaussian) -> None:
    """Least squares on an entity's own past and weather reach the stated error, and not less."""
    x, z = made.simulate(8000)
    past = np.stack([a[11 - k : len(x) - 1 - k] for a in (x, z) for k in range(12)], axis=2)
    wanted = truth.alone(1, 12)[0]
    for i in range(10):
        weights, *_ = np.linalg.lstsq(past[:, i], x[12:, i])
        error = x[12:, i] - past[:, i] @ weights
        assert np.isclose(error.std(), wanted[i], rtol=0.03)


def _smaller(truth: LinearGaussian, n: int) -> LinearGaussian:
    keep = np.concatenate([np.arange(n) + k * truth.n for k in range(4)])
    pick = np.ix_(keep, keep)
    return replace(
        truth,
        transition=truth.transition[pick],
        noise=truth.noise[pick],
        level=truth.level[:n],
        cycle=truth.cycle[:, :n],
    )


def test_windows_that_do_not_show_the_state_have_no_optimum(panel: Panel) -> None:
    short = replace(panel.problem, look_back=1)
    with pytest.raises(StfmError, match="do not show the state"):
        oracle(made.truth(), short)
    best = oracle(made.truth(), panel.problem)
    assert best is not None
    window = panel.gather(panel.origins("test")[:2], ("past",))
    holes = replace(window, observed=torch.zeros_like(window.observed))
    with pytest.raises(StfmError, match="without gaps"):
        best.forecast(holes)


def test_a_leaderboard_shows_the_optimum_and_never_chooses_it(
    panel: Panel, home: Path, raw: RawTables, capsys: pytest.CaptureFixture[str]
) -> None:
    few = _few(panel)
    entries = []
    for name in ("constant", "last-value", "dlinear"):
        module = get_system(name).build(few.problem)
        if name == "constant":
            module.fit(few)
        entries.append(Entry(get_system(name), [Forecaster(name, few.problem, module.eval(), {})], ["run"]))
    found = evaluate(made.SPEC, few, entries, best=oracle(made.truth(), few.problem))
    mae = {r.system: r.mae for r in found.rows if (r.split, r.horizon, r.scale) == ("test", "avg", "data")}
    assert min(mae, key=lambda s: mae[s]) == OPTIMUM
    assert OPTIMUM not in {r["system"] for r in found.ranking}
    assert found.candidate == "dlinear"
    assert {m["rival"] for m in found.decision.margins} == {"constant", "last-value"}
    signal = Lake(str(home / "lake")).require(made.SPEC.name, "harmonized")
    html = report.render(found, raw["entities"], raw["edges"], signal.facts)
    assert html.count("<td>the optimum</td>") == 2
    rows = [{**vars(r), "horizon": str(r.horizon)} for r in found.rows]
    facts = {
        "ranking": found.ranking,
        "fallback": found.fallback,
        "candidate": {"system": found.candidate},
        "margins": found.margins,
        "warning": None,
        "notes": [],
    }
    console.leaderboard(rows, facts, {"level": "units"})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in said if line.lstrip(" │┃").startswith(OPTIMUM)] == ["–"]


def test_the_optimum_is_shown_with_the_dataset(home: Path) -> None:
    page = dataset_page(made.SPEC, Lake(str(home / "lake")))
    shown = page.numbers["optimum"]
    assert [r["metric"] for r in shown["rows"]] == ["mae", "rmse"]
    assert shown["rows"][1]["steps"][0] == 1.0, "the noise of one step"
    assert "The best that any forecast can do" in page.html


def test_it_needs_no_files() -> None:
    assert get_dataset(made.SPEC.name).spec.sources == ()
