"""Whatever a dataset asks of its harmonized stage, what is continued is bit for bit what is computed whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.live import begin, check_whole, down_the_road, land, rows
from fixtures.synthetic import make_spec

from stfm_pipeline.datasets.rules import Coarsen, Correlation, Decompose, Hampel, Spikes, Stuck
from stfm_pipeline.datasets.spec import Harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

STUCK = Stuck(kind="stuck", steps=2, channels=("count",), besides=(0,))
SPIKES = Spikes(kind="spikes", change=5, within=3, channels=("level",))
HAMPEL = Hampel(kind="hampel", window=9, threshold=3)
DAILY = tuple(
    c.model_copy(update={"aggregate": a, "at_least": 2})
    for c, a in zip(make_spec().channels, ("sum", "mean"), strict=True)
)
RULES: dict[str, dict[str, Any]] = {
    "stuck": {"harmonize": Harmonize(step="1h", filters=(STUCK,))},
    "spikes": {"harmonize": Harmonize(step="1h", filters=(SPIKES,))},
    "hampel": {"harmonize": Harmonize(step="1h", filters=(HAMPEL,))},
    "one after the other": {"harmonize": Harmonize(step="1h", filters=(HAMPEL, SPIKES, STUCK, HAMPEL))},
    "min_observed": {"harmonize": Harmonize(step="1h", min_observed=0.852)},
    "adjacency": {
        "harmonize": Harmonize(
            step="1h",
            filters=(HAMPEL,),
            adjacency=Correlation(kind="correlation", k=2, lag=1, directed=True, isolated="allowed"),
        )
    },
    "decompose": {
        "harmonize": Harmonize(
            step="1h", filters=(HAMPEL,), climatology=("tod",), decompose=Decompose(period=24, levels=4)
        )
    },
    "aggregate": {"harmonize": Harmonize(step="3h"), "channels": DAILY, "joins": (), "seasons": (8,)},
    "coarsen": {
        "harmonize": Harmonize(step="1h", filters=(SPIKES,), coarsen=Coarsen(by=2, at_least=0.6)),
        "grid": True,
    },
}


def filtered(lake: Lake) -> int:
    """How many values the stage's own steps masked."""
    facts = lake.require("live", "harmonized").facts
    lost = [f["before"][c] - f["after"][c] for f in facts.get("filtered", []) for c in f["before"]]
    more = [m.get(k, 0) for m in facts["masked"].values() for k in ("few_observed", "too_few_rows")]
    return sum(lost) + sum(more)


@pytest.mark.parametrize("name", RULES)
def test_what_lands_is_harmonized_as_the_whole_is(name: str, lake: Lake, settings: Settings) -> None:
    rng = np.random.default_rng(1)
    begin(stop=54, **{"joins": ()} | RULES[name])
    down_the_road(lake, settings)
    before = filtered(lake)
    for number, (start, stop) in enumerate([(54, 55.1), (52, 52.3), (57, 58)]):
        found = rows("observations", start, stop)
        jumps = pl.Series(np.where(rng.random(len(found)) < 0.1, 80.0, 0.0))
        found = found.with_columns(level=pl.col("level") + jumps)
        assert land(found, f"observations-{number}.csv", lake, settings)[0].accepted
        down_the_road(lake, settings)
        assert lake.require("live", "harmonized").since is not None, "it goes on"
    assert filtered(lake) > before > 0
    check_whole(lake, settings)
