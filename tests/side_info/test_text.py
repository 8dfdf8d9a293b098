"""Sentences as vectors of a frozen encoder: a tiny one made here, and the real one from the package index."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fixtures.synthetic import make_spec, tables

from stfm_pipeline.datasets.spec import Dataset
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize, stale_stages
from stfm_pipeline.settings import Settings
from stfm_pipeline.side_info.text import text_vectors
from stfm_pipeline.steps import STEPS
from stfm_pipeline.windows import load_panel

transformers = pytest.importorskip("transformers", reason="the extra `lm` is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "place", "entity", "far", "away", *"abcdef"]


def make_encoder(folder: Path, seed: int = 0) -> Path:
    """A Bert of two narrow layers as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def vectors(folder: Path | str, *sentences: str) -> np.ndarray:
    texts = pl.DataFrame({"entity": [str(i) for i in range(len(sentences))], "text": sentences})
    found, facts = text_vectors(texts, str(folder))
    assert facts["sentences"] == len(set(sentences))
    return found["vector"].list.to_array(facts["width"]).to_numpy()


def test_a_vector_is_the_mean_over_the_tokens_of_length_one_whatever_stands_beside_it(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "tiny")
    alone = vectors(folder, "Place a.")
    beside = vectors(folder, "Place far far far away.", "Place a.", "Place a.")
    assert np.linalg.norm(beside, axis=1) == pytest.approx(1, abs=1e-4)
    assert beside[1] == pytest.approx(alone[0], abs=2e-5)
    assert (beside[1] == beside[2]).all()
    assert np.abs(beside[0] - beside[1]).max() > 0.01
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)("Place a.", return_tensors="pt")
    with torch.no_grad():
        mean = model(**batch).last_hidden_state[0].mean(0)
    assert alone[0] == pytest.approx((mean / mean.norm()).numpy(), abs=2e-5)


def test_what_is_no_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no text encoder[\s\S]*minilm, minilm-random") as caught:
        vectors(tmp_path / "nowhere", "a")
    assert caught.value.offenders == ["config.json", "model.safetensors"]
    folder = make_encoder(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"`transformers` is not installed[\s\S]*\[lm\]"):
        vectors(folder, "a")


def test_a_stage_holds_vectors_where_asked_and_is_made_again_with_other_weights(
    tmp_path: Path, lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    folder = make_encoder(tmp_path / "tiny")
    spec = make_spec(joins=(), embed_text=str(folder))
    add_dataset(Dataset(spec=spec, read=lambda _: tables(), module="stfm_pipeline.datasets.nyc_airports"))
    for stage in STEPS:
        assert materialize("synthetic", stage, lake, settings).stage is not None
    assert lake.require("synthetic", "enriched").facts["text_encoder"]["width"] == 8
    panel = load_panel(lake, "synthetic", settings.cache)
    assert panel.problem.tensors["text"].shape == (6, 8)
    assert stale_stages("synthetic", lake) == []
    make_encoder(folder, seed=1)
    assert stale_stages("synthetic", lake) == ["enriched"]
    materialize("synthetic", "enriched", lake, settings)
    again = load_panel(lake, "synthetic", settings.cache).problem.tensors["text"]
    assert not torch.equal(again, panel.problem.tensors["text"])


@pytest.mark.network
def test_minilm_knows_what_sentences_mean_and_its_random_twin_less() -> None:
    said = ("A cat sits on the mat.", "A kitten rests on a rug.", "Stock prices fell sharply.")
    close = {name: v[0] @ v[1] - v[0] @ v[2] for name in ("minilm", "minilm-random") for v in [vectors(name, *said)]}
    assert close["minilm"] > 0.4
    assert close["minilm-random"] < 0.2
