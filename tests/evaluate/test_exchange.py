"""Windows out, forecasts in: the same cells for everybody, and no file is taken for what it is not."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures.foreign_models import ridge, truth
from typer.testing import CliRunner

from stfm_pipeline.cli import app
from stfm_pipeline.errors import FrameError, MetricError, StfmError, UsageError
from stfm_pipeline.evaluate.compare import Comparison, compare
from stfm_pipeline.evaluate.exchange import export, open_file, window_set
from stfm_pipeline.evaluate.run import score
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.train import BUDGETS, fit
from stfm_pipeline.windows import Panel, load_panel

Save = Callable[..., Path]


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


@pytest.fixture
def folder(panel: Panel, tmp_path: Path) -> Path:
    export(panel, window_set(panel, "test", every=6), tmp_path / "windows", {"licence": "none"}, long=True)
    return tmp_path / "windows"


@pytest.fixture
def save(folder: Path, tmp_path: Path) -> Save:
    """Writes forecasts of the exported windows as npz; `changes` replace arrays."""

    def write(made: np.ndarray, name: str = "mine", **changes: object) -> Path:
        window = np.load(folder / "series.npz")["window"]
        np.savez(tmp_path / f"{name}.npz", **{"window": window, "forecast": made, **changes})
        return tmp_path / f"{name}.npz"

    return write


def found(enriched: Lake, settings: Settings, *files: Path, zone: str | None = None) -> Comparison:
    return compare("synthetic", list(files), enriched, settings, zone)


def test_the_export_holds_the_harmonized_series_and_one_row_per_window(
    folder: Path, panel: Panel, enriched: Lake
) -> None:
    s = np.load(folder / "series.npz")
    rows = enriched.read(enriched.require("synthetic", "harmonized"), "signal")
    values = np.stack(rows["values"].to_list()).reshape(s["values"].shape)
    observed = np.stack(rows["observed"].to_list()).reshape(s["values"].shape)
    np.testing.assert_array_equal(np.isfinite(s["values"]), observed)
    np.testing.assert_allclose(s["values"][observed], values[observed], rtol=1e-5, atol=1e-4)
    assert ((s["values"] == 0) == (observed & (values == 0))).all()
    windows = pl.read_csv(folder / "windows.csv")
    assert windows["window"].to_list() == s["window"].tolist()
    assert windows["index"].to_list() == panel.origins("test")[::6].tolist()
    assert windows["origin"][0] == str(s["times"][s["origin"][0]])[:19] + "Z"
    about = json.loads((folder / "windows.json").read_text())
    assert (about["count"], about["horizon"], about["every"]) == (len(windows), 12, 6)
    long = pl.read_parquet(folder / "series.parquet")
    assert long.columns == ["unique_id", "ds", "count", "level"]
    one = long.filter(unique_id="c")["level"].fill_null(float("nan")).to_numpy()
    np.testing.assert_array_equal(one, s["values"][:, 2, 1])


def test_a_forecast_of_our_own_brought_in_as_a_file_gets_exactly_our_own_score(
    panel: Panel, enriched: Lake, settings: Settings, tmp_path: Path
) -> None:
    chosen = window_set(panel, "test")
    export(panel, chosen, tmp_path / "all", {})
    system = get_system("seasonal-naive")
    ours = Forecaster("seasonal-naive", panel.problem, fit(system, panel, BUDGETS["quick"]).module, {})
    made = ours.forecast(panel.arrays.gather(chosen.origins, panel.problem)).values.numpy()
    np.savez(tmp_path / "copy.npz", window=np.array(chosen.ids()), forecast=made)
    both = found(enriched, settings, tmp_path / "copy.npz")
    expected = score(ours, panel, "test", ()).sums.rows(
        "synthetic", "copy", "test", panel.problem.channels, range(1, 13)
    )
    mine = {(r.scale, r.channel, r.horizon): r for r in both.rows if r.system == "copy"}
    assert [vars(mine[r.scale, r.channel, r.horizon]) for r in expected] == [vars(r) for r in expected]
    tie = [m for m in both.margins if m["rival"] == "seasonal-naive"]
    assert [(m["margin"], m["low"], m["high"]) for m in tie] == [(0, 0, 0)] * 2


def test_scikit_learn_is_scored_beside_every_baseline_on_the_same_cells_with_paired_intervals(
    folder: Path, save: Save, enriched: Lake, settings: Settings
) -> None:
    made = ridge(folder)
    both = found(enriched, settings, save(made))
    measured = np.load(folder / "series.npz")
    target = np.stack([measured["values"][i : i + 12] for i in measured["origin"]])
    for k, channel in enumerate(("count", "level")):
        seen = np.isfinite(target[..., k])
        rows = [r for r in both.rows if (r.scale, r.channel, r.horizon) == ("data", channel, "avg")]
        assert {r.n for r in rows} == {int(seen.sum())}
        assert {r.windows for r in rows} == {len(target)}
        by = {r.system: r.mae for r in rows}
        assert by["mine"] == pytest.approx(np.abs(made[..., k] - target[..., k])[seen].mean(), rel=1e-5)
        assert set(by) == {
            "mine",
            "constant",
            "historical-average",
            "historical-median",
            "last-value",
            "seasonal-naive",
        }
        margins = {m["rival"]: m for m in both.margins if m["channel"] == channel}
        for rival, m in margins.items():
            assert m["margin"] == pytest.approx(1 - by["mine"] / by[rival])
            assert m["low"] <= m["margin"] <= m["high"]
        assert margins["last-value"]["low"] > 0


def test_trained_systems_join_the_comparison(trained: tuple[Settings, Lake], tmp_path: Path) -> None:
    settings, lake = trained
    panel = load_panel(lake, "trained", settings.cache)
    export(panel, window_set(panel, "val", every=12), tmp_path / "w", {})
    made = ridge(tmp_path / "w")
    np.savez(tmp_path / "mine.npz", window=np.load(tmp_path / "w" / "series.npz")["window"], forecast=made)
    both = compare("trained", [tmp_path / "mine.npz"], lake, settings)
    assert {"mine", "dlinear", "stid", "historical-median"} <= {r.system for r in both.rows}
    assert {r.split for r in both.rows} == {"val"}


def test_a_long_frame_says_the_same_as_arrays_in_any_order_of_rows(
    folder: Path, save: Save, enriched: Lake, settings: Settings, tmp_path: Path
) -> None:
    made, s = ridge(folder).astype(np.float32), np.load(folder / "series.npz")
    w, h, n, _ = made.shape
    steps = (s["origin"][:, None] + np.arange(h)).ravel()
    frame = pl.DataFrame(
        {
            "window": np.repeat(s["window"], h * n),
            "unique_id": np.tile(s["entities"], w * h),
            "ds": np.repeat(s["times"][steps], n),
            "step": np.tile(np.repeat(np.arange(1, h + 1), n), w),
            "count": made[..., 0].ravel(),
            "level": made[..., 1].ravel(),
        }
    ).sample(fraction=1.0, shuffle=True, seed=1)
    expected = [vars(r) for r in found(enriched, settings, save(made, "long")).rows if r.system == "long"]

    def rows(path: Path, zone: str | None = None) -> list[dict[str, object]]:
        return [vars(r) for r in found(enriched, settings, path, zone=zone).rows if r.system == "long"]

    frame.drop("ds").write_parquet(tmp_path / "long.parquet")
    assert rows(tmp_path / "long.parquet") == expected
    frame.drop("step").write_parquet(tmp_path / "long.parquet")
    with pytest.raises(FrameError, match="carries no time zone"):
        rows(tmp_path / "long.parquet")
    assert rows(tmp_path / "long.parquet", "UTC") == expected
    text = frame.drop("step").with_columns(pl.col("ds").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    text.write_csv(tmp_path / "long.csv")
    assert rows(tmp_path / "long.csv") == expected


def test_order_of_windows_entities_and_channels_may_be_another_if_it_is_said(
    folder: Path, save: Save, enriched: Lake, settings: Settings
) -> None:
    made, s = ridge(folder), np.load(folder / "series.npz")
    plain = found(enriched, settings, save(made)).rows
    turned = save(
        made[::-1, :, ::-1, ::-1],
        window=s["window"][::-1],
        entities=s["entities"][::-1],
        channels=s["channels"][::-1],
    )
    assert found(enriched, settings, turned).rows == plain


def test_other_data_another_part_or_another_mask_is_another_set(
    panel: Panel, enriched: Lake, settings: Settings
) -> None:
    import dataclasses

    base = window_set(panel, "test").digest
    flipped = panel.arrays.observed.clone()
    at = int(panel.origins("test")[0])
    flipped[at, 0, 0] = ~flipped[at, 0, 0]
    hidden = dataclasses.replace(panel, arrays=dataclasses.replace(panel.arrays, observed=flipped))
    other = dataclasses.replace(panel, arrays=dataclasses.replace(panel.arrays, values=panel.arrays.values + 1))
    short = load_panel(enriched, "synthetic", settings.cache, horizon=6)
    # In another unit the standardised values are the same.
    scale = {k: panel.problem.tensors[k] * 2 for k in ("mean", "std")}
    doubled = dataclasses.replace(
        panel, problem=dataclasses.replace(panel.problem, tensors={**panel.problem.tensors, **scale})
    )
    found_ = [window_set(p, "test").digest for p in (hidden, other, short, doubled)]
    found_ += [window_set(panel, "val").digest, window_set(panel, "test", 2).digest]
    assert len({base, *found_}) == 7
    assert window_set(load_panel(enriched, "synthetic", settings.cache, look_back=24), "test").digest == base


BROKEN: dict[str, tuple[Callable[[np.ndarray, np.ndarray], dict[str, object]], type[StfmError], str]] = {
    "a window is lacking": (
        lambda f, w: {"forecast": f[1:], "window": w[1:]},
        FrameError,
        r"not the windows of the set(.|\n)*1 lacking, 0 more than once(.|\n)*-000000",
    ),
    "a window stands twice": (
        lambda f, w: {"window": np.concatenate([w[:-1], w[:1]])},
        FrameError,
        r"1 lacking, 1 more than once",
    ),
    "windows of another version": (
        lambda f, w: {"window": np.char.replace(w, w[0].split("-")[3], "0123456789ab")},
        FrameError,
        r"made for other windows(.|\n)*expected: test-h12-s6-(.|\n)*found: test-h12-s6-0123456789ab",
    ),
    "numbers for ids": (
        lambda f, w: {"window": np.arange(len(w))},
        FrameError,
        r"window ids are not of one set(.|\n)*windows.csv",
    ),
    "transposed": (
        lambda f, w: {"forecast": f.swapaxes(1, 2)},
        FrameError,
        r"another shape(.|\n)*expected: \(windows, horizon, entities, channels\)(.|\n)*found: \(\d+, 6, 12, 2\)",
    ),
    "no forecast": (lambda f, w: {"forecast": None}, FrameError, r"cannot be read as npz(.|\n)*never"),
    "an unknown entity": (
        lambda f, w: {"entities": np.array(["a", "b", "c", "d", "e", "x"])},
        FrameError,
        r"entities differ(.|\n)*1 are lacking and 1 unknown(.|\n)*offenders: f",
    ),
    "objects": (
        lambda f, w: {"window": w.astype(object)},
        FrameError,
        r"cannot be read as npz(.|\n)*unpickled, which is never done",
    ),
    "ids on two axes": (
        lambda f, w: {"window": w[:, None]},
        FrameError,
        r"a name for each is a list(.|\n)*offenders: window",
    ),
    "entities on two axes": (
        lambda f, w: {"entities": np.array([list("abcdef")])},
        FrameError,
        r"a name for each is a list(.|\n)*offenders: entities",
    ),
    "ids that are no text": (
        lambda f, w: {"window": np.array([b"\xff"] * len(w))},
        FrameError,
        r"cannot be read as npz",
    ),
    "a horizon beyond numbers": (
        lambda f, w: {"window": np.char.replace(w, "-h12-", f"-h{10**20}-")},
        FrameError,
        r"window ids are not of one set",
    ),
    "numbers beyond a float": (lambda f, w: {"forecast": f + 1e300}, MetricError, r"not finite"),
    "NaN where a target is observed": (
        lambda f, w: {"forecast": np.where(np.arange(len(w))[:, None, None, None] == 3, np.nan, f)},
        MetricError,
        r"not finite where a target is observed(.|\n)*\(3, 0, 0, 0\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_what_is_wrong_about_it(
    case: str, folder: Path, save: Save, enriched: Lake, settings: Settings
) -> None:
    change, error, words = BROKEN[case]
    window = np.load(folder / "series.npz")["window"]
    with pytest.raises(error, match=words):
        found(enriched, settings, save(truth(folder), **change(truth(folder), window)))


def rows_of(folder: Path) -> pl.DataFrame:
    s = np.load(folder / "series.npz")
    w, n = len(s["window"]), len(s["entities"])
    return pl.DataFrame(
        {
            "window": np.repeat(s["window"], 12 * n),
            "unique_id": np.tile(s["entities"], w * 12),
            "step": np.tile(np.repeat(np.arange(1, 13), n), w),
            "count": 1.0,
            "level": 2.0,
        }
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda r: r.drop("unique_id"), FrameError, r"lacks columns(.|\n)*offenders: unique_id"),
        (lambda r: r.drop("level"), FrameError, r"lacks channels(.|\n)*offenders: level"),
        (lambda r: r.drop("step"), FrameError, r"does not say when(.|\n)*`ds` or `step`"),
        (lambda r: r.with_columns(step=pl.col("step") + 1), FrameError, r"outside their window"),
        (lambda r: r.with_columns(step=pl.col("step") + 0.5), FrameError, r"outside their window"),
        (lambda r: r.with_columns(step=pl.lit("a")), FrameError, r"outside their window"),
        (lambda r: r.with_columns(step=pl.lit(float("nan"))), FrameError, r"outside their window"),
        (lambda r: r.with_columns(step=pl.struct("step")), FrameError, r"'step' does not hold numbers"),
        (lambda r: r.with_columns(unique_id=pl.concat_list("unique_id")), FrameError, r"cannot be read as a table"),
        (lambda r: r.with_columns(unique_id=pl.lit("x")), FrameError, r"rows are of unknown entities"),
        (lambda r: pl.concat([r, r[5:6]]), FrameError, r"several rows for one window(.|\n)*-000000, f"),
        (lambda r: r.with_columns(level=pl.lit("high")), FrameError, r"'level' does not hold numbers"),
        (lambda r: r[1:], MetricError, r"2 NaN or infinite cells(.|\n)*\(0, 0, 0, 0\)"),
    ],
)
def test_a_broken_frame_is_refused_with_what_is_wrong_about_it(
    change: Callable[[pl.DataFrame], pl.DataFrame],
    error: type[StfmError],
    words: str,
    folder: Path,
    enriched: Lake,
    settings: Settings,
    tmp_path: Path,
) -> None:
    change(rows_of(folder)).write_parquet(tmp_path / "mine.parquet")
    with pytest.raises(error, match=words):
        found(enriched, settings, tmp_path / "mine.parquet")


def test_files_that_are_no_forecasts_are_refused(
    folder: Path, save: Save, tmp_path: Path, enriched: Lake, settings: Settings
) -> None:
    (tmp_path / "cut.npz").write_bytes(save(truth(folder)).read_bytes()[:-200])
    (tmp_path / "no.parquet").write_text("no")
    np.save(tmp_path / "one.npy", truth(folder))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez_compressed(tmp_path / "bent.npz", window=np.arange(1000), forecast=truth(folder))
    bent = bytearray((tmp_path / "bent.npz").read_bytes())
    bent[200:210] = b"\xff" * 10
    (tmp_path / "bent.npz").write_bytes(bent)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**7)})
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as file:
        file.writestr("forecast.npy", header.getvalue())
    arrays = dict.fromkeys(("cut.npz", "one.npz", "bent.npz", "large.npz"), "cannot be read as npz")
    for name, words in {**arrays, "no.parquet": "cannot be read as a table"}.items():
        with pytest.raises(FrameError, match=words):
            open_file(tmp_path / name)
    with pytest.raises(UsageError, match=r"cannot read 'x.pkl'(.|\n)*expected: .npz, .parquet, .csv"):
        open_file(tmp_path / "x.pkl")
    with pytest.raises(UsageError, match="no file at"):
        open_file(tmp_path / "gone.npz")
    with pytest.raises(UsageError, match=r"names of their own(.|\n)*offenders: last-value"):
        found(enriched, settings, save(truth(folder), "last-value"))
    other = np.load(folder / "series.npz")["window"]
    moved = save(truth(folder), "val", window=np.char.replace(other, "test-", "val-"))
    with pytest.raises(UsageError, match="different window sets"):
        found(enriched, settings, save(truth(folder)), moved)


def test_an_export_is_written_whole_into_a_new_folder_or_not_at_all(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = window_set(panel, "test")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        export(panel, chosen, tmp_path / "used", {})
    with pytest.raises(UsageError, match="is a file"):
        export(panel, chosen, tmp_path / "used" / "mine.txt", {})
    with pytest.raises(UsageError, match="cannot be made"):
        export(panel, chosen, tmp_path / "used" / "mine.txt" / "new", {})

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_csv", crash)
    with pytest.raises(KeyboardInterrupt):
        export(panel, chosen, tmp_path / "new", {})
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["used"]
    with pytest.raises(UsageError, match="1 or more"):
        window_set(panel, "test", every=0)


def test_names_of_entities_in_csv_stay_text(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("window,unique_id,step,level\ntest-h1-s1-0123456789ab-000000,007,1,2.5\n")
    _, rows = open_file(tmp_path / "mine.csv")
    assert rows["unique_id"].to_list() == ["007"]


def test_one_window_has_no_interval_and_says_so_and_names_are_printed_whole(
    panel: Panel, enriched: Lake, settings: Settings, tmp_path: Path
) -> None:
    export(panel, window_set(panel, "test", every=10_000), tmp_path / "one", {})
    path = tmp_path / "mine[bold].npz"
    np.savez(path, window=np.load(tmp_path / "one" / "series.npz")["window"], forecast=truth(tmp_path / "one") + 1)
    both = found(enriched, settings, path)
    assert {(m["low"], m["high"]) for m in both.margins} == {(-np.inf, np.inf)}
    assert "no interval can be given" in (both.warning or "")
    said = CliRunner().invoke(app, ["evaluate", "synthetic", "--predictions", str(path)]).output
    assert "[unknown]" in said
    assert "gain of mine[bold]" in said


@pytest.mark.parametrize("wrong", [["--length", "0"], ["--length", "-3"], ["--every", "0"]])
def test_windows_of_no_length_are_wrong_use(wrong: list[str], enriched: Lake, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["benchmark", "windows", "synthetic", "--to", str(tmp_path / "w"), *wrong])
    assert answer.exit_code == 2
    assert not (tmp_path / "w").exists()
