"""The metric contract against torchmetrics and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics.functional as reference

from stfm_pipeline.errors import MetricError
from stfm_pipeline.evaluate.calibration import conformal_offsets
from stfm_pipeline.evaluate.choose import decide, too_short_to_rank, val_scores
from stfm_pipeline.evaluate.metrics import Row, Sums, block_bootstrap, mean_rows, observed_blocks, paired_bootstrap

W, H, N, C = 40, 3, 4, 2


def batch(seed: int = 0, share: float = 0.7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(W, H, N, C, generator=g) * 5 + 20
    return target + torch.randn(W, H, N, C, generator=g), target, torch.rand(W, H, N, C, generator=g) < share


def scored(prediction: torch.Tensor, target: torch.Tensor, observed: torch.Tensor, size: int = 7) -> Sums:
    sums, std, hour = Sums(W, H, N, C, 24), torch.full((N, C), 2.0), torch.zeros(W, H, dtype=torch.long)
    for i in range(0, W, size):
        at = slice(i, i + size)
        sums.add(prediction[at], target[at], observed[at], std, hour[at])
    return sums


def pick(rows: list[Row], scale: str, channel: str | None, horizon: int | str) -> Row:
    (row,) = [r for r in rows if (r.scale, r.channel, r.horizon) == (scale, channel, horizon)]
    return row


def test_scores_agree_with_torchmetrics_under_the_mask() -> None:
    prediction, target, observed = batch()
    rows = scored(prediction, target, observed).rows("d", "s", "test", ["x", "y"], [1, 3])
    for k, channel in enumerate(("x", "y")):
        for horizon, steps in (("avg", slice(None)), (1, slice(0, 1)), (3, slice(2, 3))):
            mask = observed[:, steps, :, k]
            p, y = prediction[:, steps, :, k][mask].double(), target[:, steps, :, k][mask].double()
            row = pick(rows, "data", channel, horizon)
            assert row.mae == pytest.approx(float(reference.mean_absolute_error(p, y)), rel=1e-6)
            assert row.mse == pytest.approx(float(reference.mean_squared_error(p, y)), rel=1e-6)
            assert row.rmse == pytest.approx(float(reference.mean_squared_error(p, y, squared=False)), rel=1e-6)
            assert row.mape == pytest.approx(float(reference.mean_absolute_percentage_error(p, y)), rel=1e-5)
            assert row.r2 == pytest.approx(float(reference.r2_score(p, y)), rel=1e-5)
            assert row.n == int(mask.sum())
    whole = pick(rows, "standardised", None, "avg")
    error = (prediction - target)[observed].double() / 2
    assert whole.mse == pytest.approx(float(error.square().mean()), rel=1e-6)
    assert whole.mae == pytest.approx(float(error.abs().mean()), rel=1e-6)
    assert [r for r in rows if r.channel is None and r.scale == "data"] == [], "minutes and counts are never averaged"


def test_batch_size_changes_nothing() -> None:
    a, b = scored(*batch(), size=40), scored(*batch(), size=3)
    assert np.allclose(a.cells["data"], b.cells["data"], rtol=1e-12)
    assert np.allclose(a.window_abs, b.window_abs, rtol=1e-12)


def test_a_nan_forecast_is_an_error_that_says_where() -> None:
    prediction, target, observed = batch()
    observed[5, 1, 2, 0] = True
    prediction[5, 1, 2, 0] = float("nan")
    with pytest.raises(MetricError, match="not finite") as caught:
        scored(prediction, target, observed, size=40)
    assert caught.value.offenders == ["(window, step, entity, channel) = (5, 1, 2, 0)"]
    with pytest.raises(MetricError, match="not finite"):
        scored(torch.full_like(prediction, float("nan")), target, observed)


def test_unobserved_targets_never_count_whatever_they_hold() -> None:
    prediction, target, observed = batch()
    a = scored(prediction, target, observed)
    b = scored(torch.where(observed, prediction, float("inf")), torch.where(observed, target, float("nan")), observed)
    assert np.array_equal(a.cells["data"], b.cells["data"])


def test_an_empty_mask_is_an_error() -> None:
    prediction, target, observed = batch()
    with pytest.raises(MetricError, match="no observed target"):
        scored(prediction, target, torch.zeros_like(observed)).rows("d", "s", "test", ["x", "y"], [])


def test_mape_is_null_where_more_than_a_tenth_of_the_targets_is_zero() -> None:
    prediction, target, observed = batch(share=1.1)
    target[:3, :, :, 0] = 0
    target[:6, :, :, 1] = 0
    rows = scored(prediction, target, observed).rows("d", "s", "test", ["x", "y"], [])
    assert pick(rows, "data", "x", "avg").mape is not None
    assert pick(rows, "data", "y", "avg").mape is None


def test_seeds_are_averaged_and_counted() -> None:
    a = scored(*batch()).rows("d", "s", "test", ["x", "y"], [])
    prediction, target, observed = batch()
    b = scored(prediction + 1, target, observed).rows("d", "s", "test", ["x", "y"], [])
    mean = mean_rows([a, b])
    assert mean[0].mae == pytest.approx((a[0].mae + b[0].mae) / 2)
    assert {r.seeds for r in mean} == {2}


def test_bootstrap_interval_holds_a_true_margin_and_excludes_none() -> None:
    prediction, target, observed = batch(share=1.1)
    good, bad = scored(target + (prediction - target) * 0.5, target, observed), scored(prediction, target, observed)
    margin, low, high = block_bootstrap(good, bad, block=6)
    assert margin == pytest.approx(0.5, abs=1e-6)
    assert low <= margin <= high
    same = block_bootstrap(bad, bad, block=6)
    assert same == pytest.approx((0, 0, 0), abs=1e-12)
    other = scored(prediction, target, observed & (torch.rand(observed.shape) < 0.5))
    with pytest.raises(MetricError, match="different cells"):
        block_bootstrap(good, other, block=6)


@pytest.mark.parametrize("windows", [60, 120])
def test_an_interval_from_few_blocks_is_wide_enough_for_what_it_claims(windows: int) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        # Errors of windows that overlap by eleven of twelve steps; the truth is a margin of a tenth.
        raw = np.abs(rng.normal(0, 1, (2, windows + 11))) * np.array([[0.9], [1.0]])
        ours, theirs = (np.convolve(r, np.ones(12), "valid")[:, None] for r in raw)
        _, low, high = paired_bootstrap(ours, theirs, block=12, draws=200)
        held += low <= 0.1 <= high
    assert held >= 85


def test_less_than_two_blocks_say_nothing_and_promote_nobody() -> None:
    prediction, target, observed = batch(share=1.1)
    bad, good = scored(prediction, target, observed), scored(target + (prediction - target) * 0.5, target, observed)
    margin, low, high = block_bootstrap(good, bad, block=good.windows)
    assert margin == pytest.approx(0.5, abs=1e-6)
    assert (low, high) == (-np.inf, np.inf)
    assert not decide(good, {"b": bad}, good.windows).promote


def test_two_perfect_forecasts_tie_and_a_draw_without_cells_favours_nobody() -> None:
    none = np.zeros((40, 1))
    assert paired_bootstrap(none, none, block=4) == (0, 0, 0)
    rare = none.copy()
    rare[:2] = 1
    margin, _, high = paired_bootstrap(1.5 * rare, rare, block=4)
    assert margin == -0.5
    assert high < 1


def test_only_a_margin_beyond_doubt_promotes() -> None:
    prediction, target, observed = batch(share=1.1)
    bad = scored(prediction, target, observed)
    good = scored(target + (prediction - target) * 0.5, target, observed)
    noise = scored(target + (prediction - target).flip(0), target, observed)
    assert decide(good, {"b": bad, "n": noise}, 6).promote
    refused = decide(noise, {"b": bad}, 6)
    assert not refused.promote
    assert "beyond doubt" in refused.reason
    assert not decide(good, {"b": bad, "itself": good}, 6).promote, "as good as the champion is not better"


def test_val_score_is_the_mean_ratio_to_the_best_baseline() -> None:
    mae = {"b1": np.array([2.0, 10.0]), "b2": np.array([4.0, 5.0]), "s": np.array([1.0, 5.0])}
    assert val_scores(mae, {"b1", "b2"})["s"] == pytest.approx((0.5 + 1) / 2)


def test_a_short_test_part_ranks_nobody() -> None:
    assert too_short_to_rank(1752, 24, 214) is None
    assert "19 disjoint horizons" in (too_short_to_rank(19 * 24, 24, 500) or "")
    assert too_short_to_rank(30 * 96, 96, 6) is not None


def test_conformal_offsets_cover_exchangeable_residuals() -> None:
    g = torch.Generator().manual_seed(0)
    residuals = torch.randn(4000, 2, 3, 1, generator=g).exp()
    seen = torch.rand(residuals.shape, generator=g) < 0.8
    low, high = conformal_offsets(residuals[:2000], seen[:2000])
    fresh, mask = residuals[2000:], seen[2000:]
    inside = ((fresh >= low) & (fresh <= high))[mask].float().mean()
    assert float(inside) == pytest.approx(0.8, abs=0.02)


def test_a_series_without_residuals_borrows_from_the_others() -> None:
    residuals = torch.randn(200, 1, 3, 1, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(200, 1, 3, 1, dtype=torch.bool)
    seen[20:, :, 2] = False
    low, high = conformal_offsets(residuals, seen)
    assert float(high[0, 2, 0]) != float(high[0, 1, 0])
    assert 1.0 < float(high[0, 2, 0]) < 1.6
    assert float(low[0, 2, 0]) < 0


def test_blocks_are_counted_where_cells_were_observed() -> None:
    full = np.full((240, 2), 6.0)
    assert observed_blocks(full, 24) == pytest.approx(10)
    assert observed_blocks(full[:230], 24) == pytest.approx(230 / 24)
    assert observed_blocks(full[:20], 24) == pytest.approx(20 / 24)
    one = full.copy()
    one[24:, 1] = 0
    assert observed_blocks(one, 24) == pytest.approx(1), "of several channels the worst"
    thin = full.copy()
    thin[24:] = 0
    thin[36::24] = 6
    assert 1 < observed_blocks(thin, 24) < 3, "a cell here and there makes no block"
    none = full.copy()
    none[:, 0] = 0
    assert observed_blocks(none, 24) == 0


def test_a_gate_that_was_hardly_observed_decides_nothing() -> None:
    prediction, target, observed = batch(share=1.1)
    observed[10:, :, :, 1] = False
    bad, good = scored(prediction, target, observed), scored(target + (prediction - target) * 0.5, target, observed)
    refused = decide(good, {"b": bad}, 5)
    assert not refused.promote
    assert (refused.level, refused.blocks) == (0, pytest.approx(2))
    assert "gate holds 2.0 blocks of 5 windows (8.0 fit into it, but cells are missing)" in refused.reason


@pytest.mark.parametrize("seen", [2, 4])
def test_missing_cells_promote_nobody_by_chance(seen: int) -> None:
    rng, block, blocks, promoted = np.random.default_rng(0), 12, 20, 0
    for _ in range(300):
        observed = np.zeros((blocks, block, 1), bool)
        observed[rng.choice(blocks, seen, replace=False)] = True
        noise = np.exp(0.3 * np.repeat(rng.normal(0, 1, (2, blocks)), block, axis=1))
        ours, theirs = (Sums(blocks * block, 1, 1, 1, 1) for _ in range(2))
        for sums, size in ((ours, noise[0]), (theirs, noise[1])):
            sums.window_count = observed.reshape(-1, 1).astype(float)
            sums.window_abs, sums._at = size[:, None] * sums.window_count, len(size)
        promoted += decide(ours, {"rival": theirs}, block).promote
    assert promoted <= 3, "at half a percent, 1.5 of 300 are to be expected"
