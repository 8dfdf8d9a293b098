from __future__ import annotations

from pathlib import Path

from stfm_pipeline.datasets import etth1
from stfm_pipeline.harmonize.run import check_raw


def test_the_csv_becomes_one_entity_with_seven_channels_in_utc(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    hours = [f"2016-07-01 {h:02d}:00:00" for h in range(24)]
    rows = [f"{t},{','.join(str(k + i / 10) for k in range(7))}" for i, t in enumerate(hours)]
    path.write_text("date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n" + "\n".join(rows) + "\n")
    tables = check_raw(etth1.SPEC, etth1.read({"ETTh1.csv": path}))
    observations = tables["observations"]
    assert observations["time"][0].isoformat() == "2016-06-30T16:00:00+00:00"
    assert observations["OT"].to_list() == [6 + i / 10 for i in range(24)]
    assert tables["entities"]["entity"].to_list() == ["transformer-1"]


def test_the_protocol_is_the_published_one() -> None:
    spec = etth1.SPEC
    assert spec.split.counts == (8640, 2880, 0, 2880)
    assert (spec.task.look_back, spec.task.horizon, spec.task.loss) == (336, 96, "mse")
