"""Edges by distance, place and correlation: against plain formulas, from the training part alone, and as declared."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import START, make_spec, tables
from pydantic import TypeAdapter, ValidationError

from stfm_pipeline.datasets.rules import Adjacency, Correlation, Gaussian, Lattice, Nearest
from stfm_pipeline.datasets.spec import Facts, Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize import adjacency
from stfm_pipeline.harmonize.adjacency import EARTH_KM, gaussian, lattice, nearest
from stfm_pipeline.harmonize.correlation import strongest
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.stage import Result


def run(rule: dict[str, Any], raw: dict[str, pl.DataFrame] | None = None, **changes: Any) -> Result:
    found: Adjacency = TypeAdapter(Adjacency).validate_python(rule)
    spec = make_spec(harmonize=Harmonize(step="1h", adjacency=found), **changes)
    return harmonize(spec, tables() if raw is None else raw)


def failed(result: Result) -> dict[str, Any]:
    return {c.name: c.details for c in result.checks if not c.passed}


def dense(pairs: adjacency.Pairs, n: int) -> np.ndarray:
    out = np.zeros((n, n))
    source, target, weight = pairs
    assert len({*zip(source.tolist(), target.tolist(), strict=True)}) == len(source), "no edge stands twice"
    out[source, target] = weight
    return out


def places(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.deg2rad(np.stack([rng.uniform(-60, 60, n), rng.uniform(-180, 180, n)], axis=1))


def distances(p: np.ndarray) -> np.ndarray:
    """Great circles between places (n, 2) in kilometres, from their directions in space."""
    lat, lon = p.T
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    return EARTH_KM * np.arccos(np.clip(xyz @ xyz.T, -1, 1))


@pytest.mark.parametrize("sigma", [None, 900.0])
def test_gaussian_weights_are_those_of_the_formula(sigma: float | None) -> None:
    p = places(40)
    d = distances(p)
    width = sigma or d[np.triu_indices(40, 1)].std()
    expected = np.exp(-((d / width) ** 2))
    np.fill_diagonal(expected, 0)
    expected[expected < 0.2] = 0
    found = dense(gaussian(p, Gaussian(kind="gaussian", sigma_km=sigma, threshold=0.2)), 40)
    assert np.allclose(found, expected, atol=1e-6)
    assert 0 < (found > 0).sum() < 40 * 39


def test_the_nearest_are_those_with_the_smallest_distance() -> None:
    p = places(60, seed=3)
    d = distances(p)
    np.fill_diagonal(d, np.inf)
    found = dense(nearest(p, Nearest(kind="nearest", k=4, directed=True)), 60)
    for target in range(60):
        assert set(np.flatnonzero(found[:, target])) == set(np.argsort(d[:, target])[:4])
    both = dense(nearest(p, Nearest(kind="nearest", k=4)), 60)
    assert np.array_equal(both, np.maximum(found, found.T))


def test_places_at_one_point_are_neighbours_and_ties_go_to_the_first() -> None:
    p = np.deg2rad([[0.0, 0.0]] * 3 + [[0.0, 1.0], [0.0, -1.0]])
    found = dense(nearest(p, Nearest(kind="nearest", k=2, directed=True)), 5)
    assert [np.flatnonzero(found[:, t]).tolist() for t in range(5)] == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert dense(gaussian(p, Gaussian(kind="gaussian", sigma_km=10)), 5)[0].tolist() == [0, 1, 1, 0, 0]


def test_sixty_thousand_cells_take_seconds() -> None:
    lat, lon = np.divmod(np.arange(60_000), 300)
    p = np.deg2rad(np.stack([lat * 0.25 - 25, lon * 0.25], axis=1))
    began = time.perf_counter()
    assert len(nearest(p, Nearest(kind="nearest", k=4))[0]) >= 4 * 60_000
    assert len(gaussian(p, Gaussian(kind="gaussian", sigma_km=30))[0]) > 60_000
    assert len(lattice((200, 300), np.arange(60_000), Lattice(kind="grid"))[0]) == 2 * (199 * 300 + 200 * 299)
    assert time.perf_counter() - began < 60
    with pytest.raises(ContractError, match="too many distances"):
        gaussian(p, Gaussian(kind="gaussian"))


@pytest.mark.parametrize(("neighbours", "reach"), [(4, 1), (8, 2)])
def test_cells_are_linked_to_those_that_touch_them(neighbours: Any, reach: int) -> None:
    there = np.array([0, 1, 2, 3, 5, 6, 8, 9, 10, 11])
    found = dense(lattice((3, 4), there, Lattice(kind="grid", neighbours=neighbours)), 12)
    for a in range(12):
        for b in range(12):
            (y, x), (v, u) = divmod(a, 4), divmod(b, 4)
            near = max(abs(y - v), abs(x - u)) == 1 and abs(y - v) + abs(x - u) <= reach
            assert found[a, b] == (near and a in there and b in there)


@pytest.mark.parametrize("lag", [0, 2])
def test_correlations_are_those_of_numpy_over_what_both_observe(lag: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, (400, 9)) + rng.normal(0, 1, (400, 1)) * np.arange(9)).astype(np.float32) * 50 + 1000
    observed = rng.random(values.shape) < 0.8
    expected = np.zeros((9, 9))
    for source in range(9):
        for target in range(9):
            early, late = slice(0, 400 - lag), slice(lag, None)
            both = observed[early, source] & observed[late, target]
            r = np.corrcoef(values[early, source][both], values[late, target][both])[0, 1]
            expected[source, target] = r if source != target else 0
    rule = Correlation(kind="correlation", threshold=0.1, lag=lag, directed=True)
    found = dense(strongest(values, observed, rule), 9)
    assert np.allclose(found, np.where(expected >= 0.1, expected, 0), atol=1e-6)
    if not lag:
        k = Correlation(kind="correlation", k=2, directed=True)
        top = dense(strongest(values, observed, k), 9)
        for target in range(9):
            assert set(np.flatnonzero(top[:, target])) == set(np.argsort(-expected[:, target])[:2])
        both = dense(strongest(values, observed, k.model_copy(update={"directed": False})), 9)
        assert np.allclose(both, np.maximum(top, top.T), atol=1e-6)


def test_a_source_that_leads_is_found_by_its_lag() -> None:
    rng = np.random.default_rng(1)
    lead = rng.normal(0, 1, 500)
    values = np.stack([lead, np.roll(lead, 3)], axis=1).astype(np.float32)
    rule = Correlation(kind="correlation", threshold=0.9, lag=3, directed=True)
    source, target, weight = strongest(values, np.ones(values.shape, np.bool_), rule)
    assert (source.tolist(), target.tolist()) == ([0], [1])
    assert weight[0] > 0.95


@pytest.mark.parametrize("rule", [{"threshold": 0.05}, {"k": 2}, {"k": 1, "lag": 3, "directed": True}])
def test_correlation_knows_the_training_part_alone(rule: dict[str, Any]) -> None:
    rule = {"kind": "correlation", "channel": "level", "isolated": "allowed", **rule}
    first = run(rule)
    assert failed(first) == {}
    assert len(first.frame("edges")) == first.facts["edges"] > 0
    raw, end = tables(), first.frame("split").filter(part="train")["end"][0]
    noise = pl.Series(np.random.default_rng(0).normal(0, 50, len(raw["observations"])))
    late = pl.when(pl.col("time") >= end).then(noise).otherwise("level")
    raw["observations"] = raw["observations"].with_columns(level=late)
    assert run(rule, raw).frame("edges").equals(first.frame("edges"))


@pytest.mark.parametrize(
    "rule", [{"kind": "gaussian", "threshold": 0.01, "sigma_km": 60.0}, {"kind": "nearest", "k": 2}]
)
def test_the_stage_links_entities_by_distance(rule: dict[str, Any]) -> None:
    result = run(rule)
    assert failed(result) == {}
    sides = [set("abc"), set("def")]
    pairs = result.frame("edges").select("source", "target").rows()
    assert all(any({s, t} <= side for side in sides) for s, t in pairs), "an ocean lies between them"
    assert pairs == sorted(pairs)


def test_edges_that_are_not_as_declared_are_not_published() -> None:
    assert failed(harmonize(make_spec(), tables())) == {}, "without a rule, what is given is taken as it is"
    broken = failed(run({"kind": "given"}))
    assert broken["adjacency_as_declared"]["not symmetric, and not declared directed"].startswith("6: a to b (1)")
    assert failed(run({"kind": "given", "directed": True})) == {}
    raw = tables()
    raw["edges"] = raw["edges"].filter(pl.col("source") != "c", pl.col("target") != "c")
    assert failed(run({"kind": "given", "directed": True}, raw)) == {
        "adjacency_as_declared": {"without an edge, and not declared isolated": "1: c"}
    }
    assert failed(run({"kind": "given", "directed": True, "isolated": ["c"]}, raw)) == {}
    raw["edges"] = raw["edges"].with_columns(weight=pl.lit(0.0))
    assert (
        "weights not finite and above 0"
        in failed(run({"kind": "given", "directed": True, "isolated": ["c"]}, raw))["adjacency_as_declared"]
    )


def test_nobody_links_to_what_training_never_saw_and_it_may_be_alone() -> None:
    raw = tables()
    late = START + timedelta(days=40)
    raw["observations"] = raw["observations"].filter((pl.col("entity") != "b") | (pl.col("time") > late))
    channels = tuple(c.model_copy(update={"absent": None}) for c in make_spec().channels)
    result = run({"kind": "nearest", "k": 1}, raw, channels=channels)
    assert failed(result) == {}
    assert "b" not in {*result.frame("edges")["source"], *result.frame("edges")["target"]}
    assert ("a", "c") in result.frame("edges").select("source", "target").rows()


def test_what_a_rule_needs_has_to_be_there() -> None:
    raw = tables()
    raw["entities"] = raw["entities"].with_columns(lon=pl.when(pl.col("entity") != "d").then("lon"))
    with pytest.raises(ContractError, match="without coordinates") as caught:
        run({"kind": "nearest", "k": 2}, raw)
    assert caught.value.offenders == ["d"]
    with pytest.raises(ContractError, match="no edges are given"):
        run({"kind": "given"}, {k: v for k, v in tables().items() if k != "edges"}, joins=())
    wide = np.zeros((3, 10_001), np.float32)
    with pytest.raises(ContractError, match="correlating 10001 entities"):
        strongest(wide, wide == 0, Correlation(kind="correlation", k=1))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"kind": "correlation"}, "state a `threshold` or `k`"),
        ({"kind": "correlation", "k": 1, "threshold": 0.5}, "and not both"),
        ({"kind": "correlation", "k": 1, "lag": 1}, "has a direction"),
        ({"kind": "correlation", "k": 1, "channel": "speed"}, "names the channel 'speed'"),
        ({"kind": "grid"}, "links the cells of a grid"),
        ({"kind": "grid", "neighbours": 6}, "4 or 8"),
        ({"kind": "gaussian", "threshold": 0}, "greater than 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        type(make_spec()).model_validate(make_spec().model_dump() | {"harmonize": {"step": "1h", "adjacency": rule}})


def test_a_coarse_grid_is_linked_by_its_blocks() -> None:
    cells = tables()["entities"].with_columns(
        row=pl.Series([0, 0, 0, 1, 1, 1]), col=pl.Series([0, 1, 2] * 2), zone=None
    )
    raw = {"observations": tables()["observations"], "entities": cells, "edges": tables()["edges"]}
    rule = {"step": "1h", "coarsen": {"by": 2}, "adjacency": {"kind": "grid"}}
    spec = make_spec(kind="grid", joins=(), facts=Facts(), harmonize=Harmonize.model_validate(rule))
    result = harmonize(spec, raw)
    assert failed(result) == {}
    assert result.frame("edges").rows() == [("block 0-0", "block 0-1", 1.0), ("block 0-1", "block 0-0", 1.0)]
