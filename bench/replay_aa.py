"""Years of weekly decisions, resampled: how often a challenger that is no better is promoted, and one that is, when.

`python -m bench replay-aa` in a home where `stfm run nyc-airports --until enriched` has been: two seeds of
stid are trained (some minutes, kept there), the rest is resampling. A year is put together from two-week blocks of
their errors on val, gate and test, each at its own time of the week; its gates have the length of the real one, and
every year begins with a full bucket, the most that can be spent in one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.child import line

NAME, SYSTEM, SEEDS = "nyc-airports", "stid", (0, 1)
WEEK, BLOCK, WEEKS, YEARS = 168, 2 * 168, 52, 100
GAINS = (0.01, 0.02, 0.05, 0.1)
Errors = NDArray[np.float64]


def measured_errors() -> tuple[Errors, Errors, int]:
    """Error sums per window and channel of both seeds over val, gate and test, and the length of gate in windows."""
    from stfm_pipeline.evaluate.run import score
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.systems.catalog import get_system
    from stfm_pipeline.train import BUDGETS, fit
    from stfm_pipeline.windows import load_panel

    settings, system = Settings(), get_system(SYSTEM)
    panel = load_panel(Lake(settings.lake_uri), NAME, settings.cache)
    found = []
    for seed in SEEDS:
        path = Path(settings.root, "bench", f"{SYSTEM}-{seed}-{panel.inputs['enriched'][:12]}.npy")
        if not path.exists():
            print(f"training {SYSTEM}, seed {seed}", file=sys.stderr, flush=True)
            module = fit(system, panel, BUDGETS["quick"], seed=seed, progress=False).module
            model = Forecaster(SYSTEM, panel.problem, module, {})
            parts = [score(model, panel, part, system.needs).sums.window_abs for part in ("val", "gate", "test")]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate(parts), allow_pickle=False)
        found.append(np.load(path, allow_pickle=False))
    return found[0], found[1], len(panel.origins("gate"))


def year(errors: tuple[Errors, Errors], gate: int, rng: np.random.Generator) -> tuple[Errors, Errors]:
    """Both seeds' errors over a year and the gate before it: the same blocks for both."""
    length, whole = WEEKS * WEEK + gate, len(errors[0])
    starts = rng.integers(0, (whole - BLOCK) // WEEK + 1, size=-(-length // BLOCK)) * WEEK
    rows = (starts[:, None] + np.arange(BLOCK)).ravel()[:length]
    return errors[0][rows], errors[1][rows]


def first_promotion(
    errors: tuple[Errors, Errors], gate: int, block: int, rng: np.random.Generator, gain: float | None
) -> int | None:
    """The week in which a challenger is promoted, if any; without a gain, either seed may be the champion."""
    from stfm_pipeline.evaluate.choose import LEAST, SHARE, allowance
    from stfm_pipeline.evaluate.metrics import paired_bootstrap

    champion, challenger = year(errors, gate, rng)
    left: float | None = None
    for week in range(WEEKS):
        available = allowance(left, 7)
        level = SHARE * available
        left = available - level
        span = slice(week * WEEK, week * WEEK + gate)
        pair = champion[span], challenger[span]
        ours, theirs = pair[::-1] if gain is not None or rng.random() < 0.5 else pair
        _, low, _ = paired_bootstrap(ours * (1 - (gain or 0)), theirs, block, level=level, seed=week)
        if low > LEAST:
            return week + 1
    return None


def replay(errors: tuple[Errors, Errors], gate: int, block: int, gain: float | None, years: int) -> list[int | None]:
    rng = np.random.default_rng(0)
    return [first_promotion(errors, gate, block, rng, gain) for _ in range(years)]


def said(weeks: list[int | None]) -> tuple[int, str]:
    from scipy.stats import binomtest

    hits: list[Any] = [w for w in weeks if w is not None]
    low, high = binomtest(len(hits), len(weeks)).proportion_ci()
    when = f", after {np.median(hits):.0f} weeks (median)" if hits else ""
    return len(hits), f"{len(hits)} of {len(weeks)} years (95 % interval {low:.1%} to {high:.1%}){when}"


def main(quick: bool) -> None:
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.evaluate.metrics import season_block

    spec = get_dataset(NAME).spec
    years, block = 20 if quick else YEARS, season_block(spec.task.horizon, spec.seasons)
    one, two, gate = measured_errors()
    even = two * (one.sum(0) / two.sum(0))
    margin = 1 - (two.sum(0) / one.sum(0)).mean()
    print(
        f"{SYSTEM}, seed 1 over seed 0: margin {margin:+.2%} on {len(one)} windows; gates of {gate / block:.1f} blocks"
    )
    for what, pair in (("another seed", (one, two)), ("another seed, made exactly as good", (one, even))):
        count, text = said(replay(pair, gate, block, None, years))
        line(f"promoted, {what}", text, "at most 5 in 100", count <= 0.05 * years)
    for gain in GAINS:
        line(
            f"promoted, truly {gain:.0%} better",
            said(replay((one, even), gate, block, gain, years))[1],
            "",
            True,
            False,
        )


if __name__ == "__main__":
    main("--quick" in sys.argv)
