from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stfm_pipeline.embed.tokens import bins, codebook, inner_edges, patches, quantise, to_bins
from stfm_pipeline.embed.written import Style, from_sentence, from_text, to_sentence, to_text
from stfm_pipeline.errors import UsageError
from stfm_pipeline.tables import Signal

TRAIN, VAL = slice(0, 1200), slice(1200, 1600)
ONE = np.ones((2, 1))


def signal_of(values: np.ndarray, observed: np.ndarray | None = None) -> Signal:
    times = (np.datetime64("2024-01-01", "h") + np.arange(len(values))).astype("datetime64[us]")
    names = tuple("ab"[: values.shape[1]])
    seen = np.ones(values.shape, bool) if observed is None else observed
    return Signal(times, names, ("x",), np.where(seen, values, 0).astype(np.float32), seen)


def waves(t: int = 1600) -> np.ndarray:
    """Two shapes of twelve steps, in random order, with a little noise."""
    rng = np.random.default_rng(0)
    shapes = np.stack([np.sin(np.arange(12) * np.pi / 6), np.linspace(-1, 1, 12), np.zeros(12)])
    order = rng.integers(0, 3, (2, t // 12 + 1))
    return (shapes[order].reshape(2, -1)[:, :t].T + rng.normal(0, 0.05, (t, 2)))[..., None]


def test_bins_share_the_training_values_evenly_and_give_values_back() -> None:
    values = np.random.default_rng(0).lognormal(size=(1600, 2, 1))
    values[TRAIN.stop :] = 1e6
    signal = signal_of(values)
    table = bins(signal, TRAIN, 16)
    assert table["count"].sum() == 2400
    assert table["count"].to_numpy() == pytest.approx(150, abs=2)
    assert (table["low"][0], table["high"][-1]) == (None, None)
    assert table["low"][1:].to_list() == table["high"][:-1].to_list()
    known = signal.values[TRAIN].ravel().astype(np.float64)
    codes = to_bins(known, inner_edges(table, "x"))
    assert np.bincount(codes).tolist() == table["count"].to_list()
    error = np.abs(table["mean"].to_numpy()[codes] - known).mean()
    assert error < 0.2 * np.abs(known - known.mean()).mean()


def test_a_channel_of_few_values_has_as_many_bins_and_gaps_are_no_zeros() -> None:
    values = np.zeros((1600, 2, 1))
    values[::10] = 3.0
    seen = np.ones(values.shape, bool)
    seen[1::10] = False
    table = bins(signal_of(values, seen), TRAIN, 64)
    assert table.select("low", "high", "mean", "count").rows() == [(None, 3.0, 0.0, 1920), (3.0, None, 3.0, 240)]
    none = bins(signal_of(values, np.zeros(values.shape, bool)), TRAIN, 64)
    assert none.select("low", "high", "mean", "count").rows() == [(None, None, None, 0)]


def test_a_codebook_finds_the_shapes_and_says_what_it_misses() -> None:
    signal = signal_of(waves())
    book = codebook(signal, {"train": TRAIN, "val": VAL}, 0 * ONE, ONE, 3, 12)
    for part in ("train", "val"):
        error = book.facts["error"][part]
        assert error["codebook"] == pytest.approx(0.05**2, rel=0.15), "what is left is the noise"
        assert error["codebook"] < 0.2 * error["one_component"] < 0.2 * error["mean"]
    assert (book.facts["dead"], book.facts["unused_in_val"]) == (0, 0)
    assert book.facts["patches"] == {"train": 200, "val": 66}
    assert (book.counts.sum(), (book.counts > 40).all()) == (200, True)


def test_more_codes_never_miss_more_and_codes_nobody_uses_in_val_are_counted() -> None:
    values = waves()
    values[VAL.start :] = 0.0
    errors = []
    for size in (1, 2, 3, 16):
        book = codebook(signal_of(values), {"train": TRAIN, "val": VAL}, 0 * ONE, ONE, size, 12)
        errors.append(book.facts["error"]["train"]["codebook"])
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(book.facts["error"]["train"]["mean"], abs=1e-5)
    assert book.facts["unused_in_val"] == 15


def test_a_codebook_is_the_same_again_and_knows_nothing_after_the_training_part() -> None:
    values = waves()
    first = codebook(signal_of(values), {"train": TRAIN, "val": VAL}, 0 * ONE, ONE, 8, 12)
    values[TRAIN.stop :] = 50
    other = codebook(signal_of(values), {"train": TRAIN, "val": VAL}, 0 * ONE, ONE, 8, 12)
    assert np.array_equal(first.codes, other.codes)
    assert first.facts["error"]["train"] == other.facts["error"]["train"]


def test_patches_with_a_gap_are_left_out_and_lie_in_their_part() -> None:
    values = np.arange(40.0)[:, None, None]
    seen = np.ones(values.shape, bool)
    seen[13] = False
    found = patches(signal_of(values, seen), slice(5, 38), np.array([[10.0]]), np.array([[2.0]]), 8)
    assert found[:, 0].tolist() == [(5 - 10) / 2, (21 - 10) / 2, (29 - 10) / 2]
    never = codebook(
        signal_of(values, seen & False), {"train": slice(0, 30), "val": slice(30, 40)}, ONE[:1], ONE[:1], 4, 8
    )
    assert (len(never.codes), never.facts["codes"]) == (0, 0)


def test_the_nearest_code_is_the_nearest() -> None:
    rng = np.random.default_rng(1)
    points, codes = rng.normal(size=(9000, 5)), rng.normal(size=(7, 5))
    brute = np.linalg.norm(points[:, None] - codes, axis=2).argmin(axis=1)
    assert np.array_equal(quantise(points, codes), brute)


numbers = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(numbers, st.sampled_from(["plain", "scientific", "digits", "integers"]), st.integers(0, 5))
def test_what_is_written_is_read_back_as_it_was_rounded(
    values: list[float | None], style: Style, decimals: int
) -> None:
    kind = "e" if style == "scientific" else "f"
    rounded = [None if v is None else float(f"{v:.{decimals}{kind}}") for v in values]
    assert from_text(to_text(values, style, decimals), style, decimals) == rounded


@given(numbers)
def test_a_sentence_is_read_back(values: list[float | None]) -> None:
    sentence = to_sentence(values, "2013-01-01 05:00", "2013-01-01 06:00", "mean delay of JFK", "minutes")
    assert from_sentence(sentence) == [None if v is None else float(f"{v:.2f}") for v in values]


def test_numbers_look_as_their_style_says() -> None:
    values = [12.34, -0.05, None, -0.001]
    assert to_text(values, "plain") == "12.34, -0.05, NaN, 0.00"
    assert to_text(values, "scientific", 3) == "1.234e+01, -5.000e-02, NaN, -1.000e-03"
    assert to_text(values, "integers") == "1234, -5, NaN, 0"
    assert to_text(values, "digits") == "1 2 3 4 , - 5 , NaN , 0"


@pytest.mark.parametrize("text", ["12, about 5", "1e5", "12;13", "--3", "1 2"])
def test_text_that_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="not a number in style 'plain'"):
        from_text(text, "plain")
    with pytest.raises(UsageError, match="not a sentence"):
        from_sentence(f"The weather was {text} degrees.")
