"""Tables keep every digit however narrow the terminal is."""

from __future__ import annotations

import pytest

from stfm_pipeline.console import table


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_cuts_no_number_name_or_heading(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    numbers = [f"0.{k}{k + 1}4567" for k in range(8)]
    heads = [f"metric {k} RMSE" for k in range(8)]
    table("scores", ["system", *heads, "why"], [["historical-median", *numbers, "a long reason in many words"]], heads)
    printed = capsys.readouterr().out
    for text in ("historical-median", *numbers, *heads):
        assert text in printed
    assert all(word in printed for word in ("long", "reason", "many", "words"))
