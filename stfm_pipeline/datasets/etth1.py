"""ETTh1: load and oil temperature of one electricity transformer, hourly (Zhou et al., Informer, AAAI 2021).

Protocol as published: 12 / 4 / 4 months of 30 days, windows may look back across a boundary, z-score per channel.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Facts, Harmonize, RawTables, Split, Task
from stfm_pipeline.sources import HttpSource
from stfm_pipeline.tables import to_utc

LOADS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL")

SPEC = DatasetSpec(
    name="etth1",
    title="Electricity transformer temperature, station 1, hourly",
    kind="graph",
    licence="CC BY-ND 4.0",
    homepage="https://github.com/zhouhaoyi/ETDataset",
    description="Six power loads and the oil temperature of one transformer in China, July 2016 to June 2018.",
    sources=(
        HttpSource(
            url="https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",
            sha256="f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
            size=2_589_657,
        ),
    ),
    channels=(
        *(Channel(name=c, unit="unstated", description="power load") for c in LOADS),
        Channel(name="OT", unit="degC", description="oil temperature"),
    ),
    zone="Asia/Shanghai",
    seasons=(24, 168),
    harmonize=Harmonize(step="1h"),
    split=Split(ratios=None, counts=(8640, 2880, 0, 2880)),
    task=Task(look_back=336, horizon=96, loss="mse"),
    facts=Facts(steps=17420, entities=1),
)


def read(files: dict[str, Path]) -> RawTables:
    """One entity, seven channels; the file's naive times are read in the station's zone."""
    table = pl.read_csv(files["ETTh1.csv"], try_parse_dates=True)
    return {
        "observations": table.select(
            entity=pl.lit("transformer-1"),
            time=to_utc(pl.col("date"), SPEC.zone),
            **{c: pl.col(c).cast(pl.Float64) for c in SPEC.channel_names},
        ),
        "entities": pl.DataFrame(
            {"entity": ["transformer-1"], "zone": [SPEC.zone], "text": ["An electricity transformer station in China."]}
        ),
    }
