from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from stfm_pipeline.datasets.spec import Embed
from stfm_pipeline.embed import geoclip
from stfm_pipeline.embed.places import PARTS, features, place_table
from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings

PARIS, VERSAILLES, TOKYO = (48.8566, 2.3522), (48.8049, 2.1204), (35.6762, 139.6503)
NO_EDGES = pl.DataFrame(schema={"source": pl.String, "target": pl.String, "weight": pl.Float64})


def entities(*places: tuple[float | None, float | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "entity": [f"e{i}" for i in range(len(places))],
            "lat": pl.Series([p[0] for p in places], dtype=pl.Float64),
            "lon": pl.Series([p[1] for p in places], dtype=pl.Float64),
        }
    )


def table_of(*parts: str, settings: Settings, places: pl.DataFrame | None = None) -> pl.DataFrame:
    places = entities(PARIS, VERSAILLES, TOKYO, (None, 8.0)) if places is None else places
    return place_table(places, NO_EDGES, Embed.model_validate({"spatial": parts, "eigenvectors": 2}), settings)[0]


def test_every_form_of_a_place_is_masked_where_there_is_none(settings: Settings) -> None:
    parts = [p for p in PARTS if p != "geoclip"]
    table = table_of(*parts, settings=settings)
    assert table["located"].to_list() == [True, True, True, False]
    made_of_coordinates = [c for c in table.columns if c not in ("entity", "located", "patch", "eig_1", "eig_2")]
    assert {"x", "y", "sphere_x", "fourier", "h3", "h3_code", "geoclip_random"} <= set(made_of_coordinates)
    assert table.select(made_of_coordinates).null_count().row(0) == (1,) * len(made_of_coordinates)
    found = features(table)
    assert found.shape == (4, 1 + 2 + 2 * 2 * 4 + 3 + 2 + 512)
    assert (found[3] == 0).all(), "zeros, and a flag that says so"
    assert found[:, 0].tolist() == [1, 1, 1, 0]


def test_points_on_the_sphere_are_as_far_apart_as_on_earth(settings: Settings) -> None:
    points = table_of("sphere", settings=settings).select(pl.selectors.float()).to_numpy()[:3]
    kilometres = 6371 * np.arccos(points @ points.T)
    assert kilometres[0, 1] == pytest.approx(17.9, abs=0.3)
    assert kilometres[0, 2] == pytest.approx(9712, abs=20)


def test_fourier_features_have_the_stated_frequencies(settings: Settings) -> None:
    table = table_of("coordinates", "fourier", settings=settings)
    x, y, waves = (np.array(table[c].to_list()[1]) for c in ("x", "y", "fourier"))
    angle = np.pi * np.outer([x, y], [1, 2, 4, 8]).ravel()
    assert waves == pytest.approx(np.concatenate([np.sin(angle), np.cos(angle)]), abs=1e-5)


def test_h3_cells_are_shared_by_neighbours_and_numbered(settings: Settings) -> None:
    coarse = place_table(entities(TOKYO, PARIS, VERSAILLES), NO_EDGES, Embed(spatial=("h3",), resolution=3), settings)[
        0
    ]
    assert coarse["h3"][1] == coarse["h3"][2] != coarse["h3"][0]
    assert sorted(set(coarse["h3_code"])) == [0, 1]
    vocabulary = sorted(set(coarse["h3"]))
    assert [vocabulary[c] for c in coarse["h3_code"]] == coarse["h3"].to_list()


def test_the_parts_are_named_once_each_and_known() -> None:
    with pytest.raises(ValidationError, match="'sphere' stands twice"):
        Embed.model_validate({"spatial": ["sphere", "sphere"]})
    with pytest.raises(ValidationError, match="spatial"):
        Embed.model_validate({"spatial": ["planet"]})


def test_equal_earth_keeps_areas_and_spans_one_along_the_equator() -> None:
    edge = geoclip.equal_earth(torch.tensor([[0.0, 180.0], [0.0, -180.0], [0.0, 0.0]], dtype=torch.float64))
    assert edge.numpy() == pytest.approx(np.array([[1, 0], [-1, 0], [0, 0]]), abs=1e-12)
    lat = torch.tensor([0.0, 30.0, 60.0, 80.0], dtype=torch.float64).requires_grad_()
    lon = torch.full_like(lat, 20.0).detach().requires_grad_()
    x, y = geoclip.equal_earth(torch.stack([lat, lon], dim=1)).unbind(dim=1)
    across, up = torch.autograd.grad(x.sum(), lon, retain_graph=True)[0], torch.autograd.grad(y.sum(), lat)[0]
    area = (across * up / torch.cos(torch.deg2rad(lat))).detach().numpy()
    assert area == pytest.approx(area[0], rel=1e-5)


def test_an_encoder_with_random_weights_says_so_and_is_the_same_again(settings: Settings) -> None:
    rule = Embed(spatial=("geoclip-random",))
    table, made = place_table(entities(PARIS, TOKYO), NO_EDGES, rule, settings)
    state = torch.get_rng_state()
    again, _ = place_table(entities(PARIS, TOKYO), NO_EDGES, rule, settings)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are touched"
    assert table.equals(again)
    assert made["geoclip-random"]["encoder"] == "geoclip_random"
    assert made["geoclip-random"]["weights"] != geoclip.PINNED
    assert "geoclip" not in table.columns
    assert np.linalg.norm(table["geoclip_random"].to_list(), axis=1) == pytest.approx(1, abs=1e-5)


def test_random_weights_in_the_place_of_the_pretrained_are_refused(settings: Settings) -> None:
    path = settings.cache / "weights" / f"geoclip-{geoclip.SOURCE.sha256[:16]}.safetensors"
    path.parent.mkdir(parents=True)
    save_file(geoclip.weights(False, settings), path)
    with pytest.raises(SourceError, match="does not hold the pretrained weights") as error:
        geoclip.weights(True, settings)
    assert geoclip.PINNED in str(error.value)


@pytest.mark.network
def test_the_pretrained_encoder_knows_its_neighbours(settings: Settings) -> None:
    table, made = place_table(
        entities(PARIS, VERSAILLES, TOKYO), NO_EDGES, Embed(spatial=("geoclip", "geoclip-random")), settings
    )
    known, random = (np.array(table[c].to_list()) for c in ("geoclip", "geoclip_random"))
    near, far = known[0] @ known[1], known[0] @ known[2]
    assert near > far + 0.1
    assert near == pytest.approx(0.397, abs=0.01), "as the published code has it"
    assert not np.allclose(known, random, atol=0.1)
    assert made["geoclip"]["weights"] == geoclip.PINNED
    converted = next(Path(settings.cache, "weights").iterdir())
    assert converted.suffix == ".safetensors"
    assert geoclip.digest(load_file(converted)) == geoclip.PINNED
    fewer = {k: v for k, v in load_file(converted).items() if "head" not in k}
    with pytest.raises(RuntimeError, match="Missing key"):
        geoclip.encode(np.array([0.0]), np.array([0.0]), fewer)
