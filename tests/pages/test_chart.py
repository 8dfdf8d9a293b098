"""Axes have ticks where people count; charts place marks by the axes and escape text."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pytest

from stfm_pipeline.pages.axis import DAY_US, HOUR_US, Axis, dates, duration, linear, logarithmic, periods
from stfm_pipeline.pages.base import percent
from stfm_pipeline.pages.chart import Chart


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (-0.31, 0.12, ["-0.3", "-0.2", "-0.1", "0.0", "0.1"]),
        (48.4461, 48.4578, ["48.448", "48.450", "48.452", "48.454", "48.456"]),
        (0, 120, ["0", "25", "50", "75", "100"]),
        (0, 52_000_000, ["0", "1e+07", "2e+07", "3e+07", "4e+07", "5e+07"]),
        (3.0, 3.0, ["2.6", "2.8", "3.0", "3.2", "3.4"]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    axis = linear(low, high)
    assert [text for _, text in axis.ticks] == labels
    for value, text in axis.ticks:
        assert float(text.replace(",", "")) == pytest.approx(value, abs=1e-9)


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    axis = logarithmic(3e-6, 40)
    assert [text for _, text in axis.ticks] == ["10⁻⁴", "0.01", "1"]
    assert axis.share([3e-6, 40, 0]) == pytest.approx([0, 1, 0])


def test_periods_and_lengths_of_time_are_those_people_use() -> None:
    assert [duration(v) for v in (30e6, 15 * 60e6, 90 * 60e6, 12 * HOUR_US, 3.5 * DAY_US, 400 * DAY_US)] == [
        "30 s", "15 min", "1.5 h", "12 h", "3.5 d", "400 d",
    ]  # fmt: skip
    assert [text for _, text in periods(2 * HOUR_US, 219 * DAY_US).ticks] == ["3 h", "12 h", "3.5 d", "30 d", "91 d"]


@pytest.mark.parametrize(
    ("start", "end", "labels"),
    [
        ("2013-01-01T05", "2014-01-01T05", ["Mar 2013", "May", "Jul", "Sep", "Nov", "2014"]),
        ("2014-01-01", "2016-01-01", ["2014", "Apr", "Jul", "Oct", "2015", "Apr", "Jul", "Oct", "2016"]),
        ("2012-03-01", "2012-03-08", ["1 Mar 2012", "2 Mar", "3 Mar", "4 Mar", "5 Mar", "6 Mar", "7 Mar", "8 Mar"]),
        ("2012-02-28T18", "2012-02-29T07", ["18:00", "21:00", "29 Feb", "03:00", "06:00"]),
        ("1990-06-01", "2020-06-01", ["1995", "2000", "2005", "2010", "2015", "2020"]),
    ],
)
def test_dates_are_at_their_places(start: str, end: str, labels: list[str]) -> None:
    ends = [datetime.fromisoformat(s).replace(tzinfo=UTC).timestamp() * 1e6 for s in (start, end)]
    axis = dates(*ends)
    assert [text for _, text in axis.ticks] == labels
    assert all(0 <= float(axis.share(v)) <= 1 for v, _ in axis.ticks)


def test_lines_break_at_gaps_and_text_is_escaped() -> None:
    chart = Chart("<b>", '"><script>', Axis(0, 4), Axis(0, 1, ((0.5, "<i>"),)))
    html = chart.line([0, 1, 2, 3, 4], [0, 1, np.nan, 0.5, 1], "t0", "<u>").note(1, 1, "<s>", "right").html()
    assert re.search('class="line t0" d="(.*?)"', html)[1] == "M0 1000L250 0M750 500L1000 0"  # type: ignore[index]
    assert not re.search("<(b|script|i|u|s)>", html)
    assert "&lt;s&gt;" in html


def test_histograms_stand_on_the_foot_of_a_logarithmic_axis() -> None:
    chart = Chart("x", "x", Axis(0, 2), logarithmic(0.01, 1)).steps([0, 1, 2], [0.1, 0], "area t0", "h")
    assert 'd="M0 1000L0 500L500 500L500 1000L1000 1000L1000 1000"' in chart.html()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0%"), (1, "100.0%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (0.123, "12.3%"), (None, "–"), (1.5, "150.0%")],
)
def test_shares_are_never_rounded_to_nothing_or_all(share: float | None, text: str) -> None:
    assert percent(share) == text
