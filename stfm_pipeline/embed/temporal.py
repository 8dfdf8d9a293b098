"""Civil time: time of day, day of week, holidays, month and week in the zone and country where an entity is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import DAY_US

HOLIDAY = ("working day", "public holiday", "day before a holiday")
MONTHS, WEEKS = 12, 53


def civil_places(entities: pl.DataFrame) -> pl.DataFrame:
    """The calendars that entities live by: `code`, `zone`, `country` (null: no holidays), one per pair of both."""
    pairs = entities.select("zone", "country").unique().sort("zone", "country", nulls_last=False)
    return pairs.with_row_index("code").cast({"code": pl.Int32})


def civil_codes(entities: pl.DataFrame, places: pl.DataFrame) -> NDArray[np.int64]:
    """(n,) which of the calendars in `places` each entity lives by."""
    found = entities.join(places, on=["zone", "country"], how="left", nulls_equal=True, maintain_order="left")
    return found["code"].cast(pl.Int64).to_numpy()


def calendar(
    times: NDArray[np.datetime64], zones: Sequence[str], step_us: int, countries: Sequence[str | None]
) -> pl.DataFrame:
    """Calendar of each step start in each zone with its country's holidays, ordered by time then zone.

    Columns: `tod` (step of the civil day), `dow` (0 = Monday), `holiday` (index into HOLIDAY, 0 where no country is
    given), `month` (0 = January), `week` (of the ISO year, from 0), `offset` (zone's offset from UTC in steps), and
    sine / cosine of day, week and year.
    """
    utc = pl.Series("time", times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    frames = []
    for code, (zone, country) in enumerate(zip(zones, countries, strict=True)):
        local = pl.col("time").dt.convert_time_zone(zone)
        civil = local.dt.replace_time_zone(None)
        micros = (civil - civil.dt.truncate("1d")).dt.total_microseconds()
        frame = utc.to_frame().select(
            "time",
            zone=pl.lit(code, pl.Int32),
            tod=(micros // step_us).cast(pl.Int32),
            dow=(local.dt.weekday() - 1).cast(pl.Int32),
            month=(local.dt.month() - 1).cast(pl.Int32),
            week=(local.dt.week() - 1).cast(pl.Int32),
            offset=((civil - pl.col("time").dt.replace_time_zone(None)).dt.total_microseconds() / step_us)
            .round()
            .cast(pl.Int32),
            day=civil.dt.date(),
            day_angle=micros / DAY_US,
            week_angle=(local.dt.weekday() - 1 + micros / DAY_US) / 7,
            year_angle=(local.dt.ordinal_day() - 1) / 365.25,
        )
        days = frame["day"].unique().to_list()
        codes = holiday_codes(days, country)
        holiday = pl.col("day").replace_strict(days, [codes[d] for d in days], return_dtype=pl.Int32)
        frames.append(frame.with_columns(holiday=holiday))
    table = pl.concat(frames).sort("time", "zone", maintain_order=True)
    angles = {unit: pl.col(f"{unit}_angle") * 2 * np.pi for unit in ("day", "week", "year")}
    waves = {f"{unit}_sin": angle.sin().cast(pl.Float32) for unit, angle in angles.items()}
    waves |= {f"{unit}_cos": angle.cos().cast(pl.Float32) for unit, angle in angles.items()}
    return table.with_columns(**waves).drop("day", "day_angle", "week_angle", "year_angle")


def holiday_codes(days: Sequence[Any], country: str | None) -> dict[Any, int]:
    """Index into HOLIDAY for each civil date; unknown countries are a `ContractError`."""
    if country is None or not days:
        return dict.fromkeys(days, 0)
    import datetime

    import holidays

    years = range(min(days).year, max(days).year + 2)
    try:
        known = holidays.country_holidays(country, years=list(years))
    except NotImplementedError as error:
        raise ContractError(f"no holiday calendar for country '{country}'", fix="use an ISO 3166 code") from error
    eve = datetime.timedelta(days=1)
    return {d: 1 if d in known else 2 if d + eve in known else 0 for d in days}


def steps_per_day(step_us: int) -> int:
    """Distinct times of day; 1 where a step is a day or longer."""
    return max(1, DAY_US // step_us)


def vocabulary(table: pl.DataFrame, until: Any, step_us: int) -> pl.DataFrame:
    """How often each calendar category occurs before `until`; a model's unseen categories contribute nothing."""
    train = table.filter(pl.col("time") < until)
    counts = []
    sizes = {"tod": steps_per_day(step_us), "dow": 7, "holiday": len(HOLIDAY), "month": MONTHS, "week": WEEKS}
    for feature, size in sizes.items():
        seen = train.group_by(feature).len()
        full = pl.DataFrame({feature: np.arange(size, dtype=np.int32)}).join(seen, on=feature, how="left")
        counts.append(
            full.select(
                feature=pl.lit(feature), code=pl.col(feature), count=pl.col("len").fill_null(0).cast(pl.Int64)
            ).sort("code")
        )
    return pl.concat(counts)
