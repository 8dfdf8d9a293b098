"""What the training part of a dataset says about which systems fit it, by simple forecasts that are scored on val.

Each forecast knows one thing more than the one before: the climatology knows the season, a ridge the series' own recent
values too, a second ridge those of its neighbours as well (Hoerl and Kennard, 1970; closed form, double precision). All
are scored on the same observed cells of the first, middle and last step of the horizon.

Shapes: `w` windows, `s` series that are forecast, `p` pool of series that are looked at, `f` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.embed.strength import strengths
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.origins import origins
from stfm_pipeline.systems._view import NEIGHBOURS, Floats, Index, Mask, View, climatologies, evenly, load, medians

TRAIN_ROWS, VAL_ROWS = 120_000, 60_000
LAGS = (1, 2, 3, 4, 6, 9, 12)
PENALTY = 1e-3
BLOCKS = 20
LEAST_ROWS = 200
SIMPLE = ("constant", "last-value", "seasonal-naive", "historical-average", "historical-median")


@dataclass(frozen=True)
class Ladder:
    """Errors on val of one channel by forecast, standardised, all on the same cells: `SIMPLE`, `own`, `neighbours`.

    `neighbour_gain` is relative, in squared error, which is what a ridge makes small; `noise` is its standard error.
    """

    channel: str
    cells: int
    mae: dict[str, float]
    mse: dict[str, float]
    neighbour_gain: float | None = None
    neighbour_noise: float | None = None

    @property
    def recent_gain(self) -> float:
        """What own recent values are worth: the ridge on them over the climatology."""
        return _gain(self.mse["historical-average"], self.mse["own"])

    @property
    def ridge_gain(self) -> float:
        """What a linear map is worth: the better ridge over the best simple forecast."""
        ridge = min(self.mse[k] for k in ("own", "neighbours") if k in self.mse)
        return _gain(min(v for k, v in self.mse.items() if k in SIMPLE), ridge)


@dataclass(frozen=True)
class Facts:
    """What was measured: seasons as rows (channel, steps, strength), a ladder per channel, empty with too little data.

    `sample` says on how much of the data, `neighbours` who they were.
    """

    sample: str
    neighbours: str
    loss: str
    seasons: list[dict[str, Any]]
    ladders: list[Ladder]

    @property
    def season(self) -> dict[str, Any] | None:
        """The strongest season: its steps and its strength, median over series and mean over channels."""
        known: dict[int, list[float]] = {}
        for row in self.seasons:
            known.setdefault(row["steps"], []).append(row["strength"] or 0.0)
        means = {steps: float(np.mean(values)) for steps, values in known.items()}
        best = max(means, key=lambda s: means[s], default=None)
        return None if best is None else {"steps": best, "strength": means[best]}

    def mean(self, fact: str) -> float | None:
        """A fact of the ladders, mean over channels (of a noise as well: channels share their windows), or None."""
        values = [getattr(ladder, fact) for ladder in self.ladders]
        return float(np.mean(values)) if values and None not in values else None

    def simple(self) -> dict[str, float]:
        """Error of each simple forecast over the best one's, mean over channels, in the task's own loss."""
        errors = [{k: v for k, v in getattr(ladder, self.loss).items() if k in SIMPLE} for ladder in self.ladders]
        names = SIMPLE if errors else ()
        return {k: float(np.mean([e[k] / max(min(e.values()), 1e-12) for e in errors])) for k in names}


def measure(spec: DatasetSpec, lake: Lake, stage: Stage) -> Facts:
    """Seasonal strength and the ladder of forecasts, from a published harmonized stage with a dense signal."""
    view = load(spec, lake, stage)
    strength = _strength(view)
    rows = [
        {"channel": name, "steps": s, "strength": strength[s][k]}
        for k, name in enumerate(spec.channel_names)
        for s in strength
    ]
    pool = view.values.shape[1]
    followed = f"the {min(NEIGHBOURS, pool - 1)} of {pool - 1} series looked at that it follows most on train"
    neighbours = "training edges" if view.weight is not None else followed if pool > 1 else ""
    found = [_ladder(view, k, name, spec) for k, name in enumerate(spec.channel_names)]
    whole = [ladder for ladder in found if ladder is not None]
    return Facts(view.sample, neighbours, spec.task.loss, rows, whole if None not in found else [])


def _gain(before: float, after: float) -> float:
    """By how much the second error is smaller, relative to the first."""
    return 1 - after / before if before > 0 else 0.0


def _strength(view: View) -> dict[int, list[float | None]]:
    """Strength of each season per channel, median over the series that are forecast."""
    out: dict[int, list[float | None]] = {}
    values, observed = view.values[view.train][:, view.target], view.observed[view.train][:, view.target]
    zone = view.zone[view.target]
    for season, phase in view.phases.items():
        found = np.full(values.shape[1:], np.nan)
        for z in np.unique(zone):
            here = zone == z
            found[here] = strengths(values[:, here], observed[:, here], season, phase[view.train, z])[0]
        known = [column[np.isfinite(column)] for column in found.T]
        out[season] = [float(np.median(k)) if len(k) else None for k in known]
    return out


@dataclass(frozen=True)
class Shown:
    """One channel as the ridges see it: anomalies from the climatology, 0 where unobserved, and the levels below it."""

    x: NDArray[np.float32]
    seen: Mask
    anomaly: NDArray[np.float32]
    levels: list[NDArray[np.float32]]
    medians: list[NDArray[np.float32]]
    target: Index


def _ladder(view: View, k: int, name: str, spec: DatasetSpec) -> Ladder | None:
    look_back, horizon = spec.task.look_back, spec.task.horizon
    levels = climatologies(view, k)
    seen = view.observed[..., k]
    anomaly = np.where(seen, view.values[..., k] - levels[-1], np.float32(0))
    shown = Shown(view.values[..., k], seen, anomaly, levels, medians(view, k), view.target)
    reach = min(look_back, view.train.stop - horizon)
    train, val = (origins(s, reach, horizon, spec.task.clip) for s in (view.train, view.val))
    fit_on = train[evenly(len(train), max(TRAIN_ROWS // len(view.target), 1))]
    score_on = val[evenly(len(val), max(VAL_ROWS // len(view.target), 1))]
    steps = sorted({1, (horizon + 1) // 2, horizon})
    lags, seasons = ([k for k in steps_back if k <= reach] for steps_back in (LAGS, view.phases))
    weight = view.weight
    if weight is None and view.values.shape[1] > 1:
        # Who leads is looked for in other windows than both ridges are fitted on: the best of many follow by chance.
        look_in, fit_on = np.array_split(fit_on, 2)
        left = []
        for h in steps:
            x, y, known = _own(shown, look_in, h, lags, reach, seasons)
            if known.sum() < LEAST_ROWS:
                return None
            left.append(np.where(known, y - Ridge.fit(x[known], y[known])(x), 0).reshape(len(look_in), -1))
        weight = _leaders(shown, look_in, lags, left)
    totals: dict[str, Floats] = {}
    for h in steps:
        x, y, known = _own(shown, fit_on, h, lags, reach, seasons)
        if known.sum() < LEAST_ROWS:
            return None
        forecasts, truth, cells = _simple(shown, score_on, h, reach, seasons)
        tx, _, _ = _own(shown, score_on, h, lags, reach, seasons)
        base = levels[-1][score_on + h - 1][:, view.target].ravel()
        forecasts["own"] = base + Ridge.fit(x[known], y[known])(tx)
        if weight is not None:
            near, tnear = (_near(shown, o, lags, weight) for o in (fit_on, score_on))
            both = Ridge.fit(np.hstack([x, near])[known], y[known])
            forecasts["neighbours"] = base + both(np.hstack([tx, tnear]))
        for key, forecast in forecasts.items():
            error = np.where(cells, forecast - truth, 0).reshape(len(score_on), -1)
            sums = np.stack([cells.reshape(len(score_on), -1).sum(1), np.abs(error).sum(1), (error**2).sum(1)])
            totals[key] = totals.get(key, 0) + sums
    if not totals["own"][0].sum():
        return None
    mae, mse = ({key: float(s[i].sum() / s[0].sum()) for key, s in totals.items()} for i in (1, 2))
    gain, noise = _jackknife(totals["own"][2], totals["neighbours"][2]) if weight is not None else (None, None)
    return Ladder(name, int(totals["own"][0].sum()), mae, mse, gain, noise)


def _own(
    shown: Shown, origins: Index, h: int, lags: list[int], reach: int, seasons: list[int]
) -> tuple[Floats, Floats, Mask]:
    """Features (w s, f), targets as anomalies and whether they were observed, of the step `h` ahead of each origin.

    An unobserved lag enters as the climatology; how many were observed is a feature of its own. The climatology itself
    is none: with a cell's own value left out of its mean, it would give the value away.
    """
    s = shown.target
    at = origins + h - 1
    seen = [shown.seen[origins - lag][:, s] for lag in lags]
    columns: list[Any] = [shown.anomaly[origins - lag][:, s] for lag in lags]
    columns += [seen[0], np.mean(seen, axis=0)]
    sums = [
        np.concatenate([np.zeros((1, len(s))), np.cumsum(a[:, s], axis=0, dtype=np.float64)])
        for a in (shown.anomaly, shown.seen)
    ]
    total, count = (a[origins] - a[origins - reach] for a in sums)
    columns.append(total / np.maximum(count, 1))
    columns += [shown.anomaly[at - _season_lag(h, season)][:, s] for season in seasons]
    features = np.stack([np.asarray(c, np.float64).ravel() for c in columns], axis=1)
    return features, shown.anomaly[at][:, s].astype(np.float64).ravel(), shown.seen[at][:, s].ravel()


def _season_lag(h: int, season: int) -> int:
    """Whole seasons back from a step `h` ahead to what was known."""
    return -(-h // season) * season


def _near(shown: Shown, origins: Index, lags: list[int], weight: Floats) -> Floats:
    """Features (w s, f): the neighbours' weighted mean anomaly at each lag over those observed, and how much was."""
    columns, shares = [], []
    whole = np.maximum(np.abs(weight).sum(axis=1), 1e-12)
    for lag in lags:
        seen = shown.seen[origins - lag] @ np.abs(weight).T
        columns.append((shown.anomaly[origins - lag] @ weight.T) / np.where(seen > 0, seen, 1))
        shares.append(seen / whole)
    return np.stack([c.ravel() for c in [*columns, np.mean(shares, axis=0)]], axis=1)


def _leaders(shown: Shown, origins: Index, lags: list[int], left: list[Floats]) -> Floats:
    """Signed weights (s, p): the series whose recent values best follow what a series' own ridge left on train."""
    best = np.zeros((len(shown.target), shown.x.shape[1]))
    rest = np.mean(left, axis=0)
    known = np.any(left, axis=0).astype(np.float64)
    for lag in lags:
        anomaly, seen = shown.anomaly[origins - lag].astype(np.float64), shown.seen[origins - lag].astype(np.float64)
        size = ((rest**2).T @ seen) * (known.T @ anomaly**2)
        found = (rest.T @ anomaly) / np.sqrt(np.where(size > 0, size, 1))
        best = np.where(np.abs(found) > np.abs(best), found, best)
    best[np.arange(len(best)), shown.target] = 0
    least = -np.sort(-np.abs(best), axis=1)[:, min(NEIGHBOURS, best.shape[1]) - 1, None]
    return np.where(np.abs(best) >= least, best, 0)


@dataclass(frozen=True)
class Ridge:
    """A ridge regression in closed form; features that never vary are left out."""

    mean: Floats
    scale: Floats
    slope: Floats
    level: float

    @classmethod
    def fit(cls, x: Floats, y: Floats) -> Ridge:
        mean, std = x.mean(axis=0), x.std(axis=0)
        scale = np.where(std > 1e-9, 1 / np.where(std > 1e-9, std, 1), 0)
        z = (x - mean) * scale
        gram = z.T @ z / len(z) + PENALTY * np.eye(x.shape[1])
        return cls(mean, scale, np.linalg.solve(gram, z.T @ (y - y.mean()) / len(z)), float(y.mean()))

    def __call__(self, x: Floats) -> Floats:
        return np.asarray((x - self.mean) * self.scale @ self.slope + self.level)


def _simple(
    shown: Shown, origins: Index, h: int, reach: int, seasons: list[int]
) -> tuple[dict[str, Floats], Floats, Mask]:
    """Forecasts that need no fit, with truth and mask (w s,); what they lack is filled with the climatology."""
    s, at = shown.target, origins + h - 1
    x, seen = shown.x[:, s], shown.seen[:, s]
    base = shown.levels[-1][at][:, s]
    steps = np.where(seen, np.arange(len(x))[:, None], -1)
    last = np.maximum.accumulate(steps, axis=0)[origins - 1]
    recent = last >= origins[:, None] - reach
    out = {
        "constant": shown.medians[0][at],
        "last-value": np.where(recent, np.take_along_axis(x, np.maximum(last, 0), axis=0), base),
        "historical-average": base,
        "historical-median": shown.medians[-1][at],
    }
    truth, cells = x[at], seen[at]
    ago = [at - _season_lag(h, season) for season in seasons]
    # As the system does: where no season fits into the look-back, it repeats the last step.
    options = [np.where(seen[t], x[t], base) for t in ago] or [out["last-value"]]
    out["seasonal-naive"] = min(options, key=lambda o: float(np.abs(np.where(cells, o - truth, 0)).sum()))
    return {k: v.astype(np.float64).ravel() for k, v in out.items()}, truth.astype(np.float64).ravel(), cells.ravel()


def _jackknife(before: Floats, after: Floats) -> tuple[float, float | None]:
    """Relative gain over windows in time order, and its standard error by leaving out one block of them at a time."""
    whole = _gain(float(before.sum()), float(after.sum()))
    blocks = [b for b in np.array_split(np.arange(len(before)), BLOCKS) if len(b)]
    if len(blocks) < BLOCKS // 2:
        return whole, None
    without = [_gain(float(before.sum() - before[b].sum()), float(after.sum() - after[b].sum())) for b in blocks]
    m = len(blocks)
    return whole, float(np.sqrt((m - 1) / m * np.square(np.array(without) - np.mean(without)).sum()))
