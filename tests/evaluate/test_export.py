"""Exported tables: csv holds everything exactly, LaTeX is whole, escaped and marks what it should."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.synthetic import make_spec
from hypothesis import given
from hypothesis import strategies as st

from stfm_pipeline import reproduce
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Benchmark, Channel, DatasetSpec, Published
from stfm_pipeline.errors import UsageError
from stfm_pipeline.evaluate import export
from stfm_pipeline.evaluate.export import check_suffix, write_benchmark, write_leaderboard
from stfm_pipeline.evaluate.latex import Cell, Line, Table, escape, latex
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

NASTY = r"a_b%c&d#e${f}~g^h\i<j>|k--l[m]*"
RULE = Benchmark(
    metrics=("mae", "rmse", "mape"),
    channel="level",
    notes=("0 means missing",),
    published=(
        Published(
            model="HA_1", source="a & b", system="constant", scores={3: (1.25, 2.0, 11.7), 12: (1.5, None, 12.0)}
        ),
        Published(model="Other", source="a paper", look_back=96, scores={3: (0.5, 1.0, 9.3), 12: (0.75, 1.5, 10.0)}),
    ),
)


def row(system: str, mae: float, **more: Any) -> dict[str, Any]:
    """A leaderboard row as the evaluated stage gives it."""
    base = {"dataset": "synthetic", "task": "forecasting", "system": system, "split": "test", "scale": "data"}
    scores = {"mse": mae**2 * 2, "mae": mae, "rmse": mae * math.sqrt(2), "mape": None, "r2": 0.5}
    return {**base, "channel": "count", "horizon": "avg", **scores, "n": 1000, "windows": 77, "seeds": 1, **more}


def board(
    scores: dict[str, float], channels: tuple[str, ...] = ("count", "level"), **more: Any
) -> list[dict[str, Any]]:
    """Rows of every scale, channel and horizon; val is better than test, so that a mix-up shows."""
    out = []
    for system, mae in scores.items():
        for split, factor in (("val", 0.01), ("test", 1.0)):
            for at in ("avg", 1, 3, 12):
                for k, channel in enumerate(channels):
                    value = mae * factor * (k + 1) * (1 if at == "avg" else 1 + at / 10)
                    out.append(row(system, value, channel=channel, split=split, horizon=at, **more))
                    out.append({**out[-1], "scale": "standardised", "mae": value / 10})
                whole = row(system, mae * factor / 5, channel=None, split=split, horizon=at, **more)
                out.append({**whole, "scale": "standardised"})
    return out


def facts(*order: str, warning: str | None = None) -> dict[str, Any]:
    return {"ranking": [{"system": s} for s in order], "candidate": {"system": order[0]}, "warning": warning}


def cells_of(line: str) -> list[str]:
    return [c.strip() for c in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))]


def tables_of(text: str) -> list[dict[str, Any]]:
    """Each table's columns, lines of cells with the span of each, and caption; every line must fill every column."""
    found = []
    for block in re.findall(r"\\begin{table}.*?\\end{table}", text, re.S):
        (columns,) = re.findall(r"\\begin{tabular}{([lr]+)}", block)
        body = block.split(r"\toprule")[1].split(r"\bottomrule")[0]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        spans = [sum(int(m) for m in re.findall(r"\\multicolumn{(\d+)}", line)) for line in lines]
        for line, wide in zip(lines, spans, strict=True):
            multi = len(re.findall(r"\\multicolumn", line))
            assert len(cells_of(line)) - multi + wide == len(columns), line
        for name in ("table", "tabular"):
            assert block.count(rf"\begin{{{name}}}") == block.count(rf"\end{{{name}}}") == 1
        plain = re.sub(r"\\[{}\\]", "", block)
        assert plain.count("{") == plain.count("}")
        assert r"\sbox0{\begin{tabular}" in block
        assert r"\end{tabular}}" in block
        (caption,) = re.findall(r"\\caption{(.*)}", block)
        found.append({"columns": columns, "rows": [cells_of(line) for line in lines], "caption": caption})
    return found


def unescape(text: str) -> str:
    """What LaTeX prints for escaped text."""
    words = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<", "textgreater": ">"}
    words |= {"textbar": "|"}
    text = re.sub(r"\\(text[a-z]+){}", lambda m: f"\0{ord(words[m[1]])}\0", text)
    text = re.sub(r"\\([{}$&#%_])", lambda m: f"\0{ord(m[1])}\0", text)
    assert not re.search(r"[\\$&#%_^~]", text), "something special is left"
    text = text.replace("{}", "").replace("{[}", "[").replace("{]}", "]").replace("{*}", "*")
    assert not re.search(r"[{}]", text)
    return re.sub("\0(\\d+)\0", lambda m: chr(int(m[1])), text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_any_text_comes_through_latex_as_it_was(text: str) -> None:
    assert unescape(escape(text)) == re.sub(r"\s+", " ", text).strip()


def test_line_ends_and_control_characters_become_spaces() -> None:
    assert escape(" a\n\n\\end\tb\x00\x7f ") == r"a \textbackslash{}end b"
    assert unescape(escape(NASTY)) == NASTY


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz", ".csv"])
def test_an_unknown_ending_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in .csv or .tex"):
        check_suffix(tmp_path / name)
    with pytest.raises(UsageError, match=r"ends in .csv or .tex"):
        write_leaderboard(board({"a": 1.0}), None, make_spec(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_endings_count_in_either_case_and_a_folder_is_no_file(tmp_path: Path) -> None:
    assert check_suffix(Path("T.CSV")) == ".csv"
    assert check_suffix(Path("T.TeX")) == ".tex"
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_suffix(tmp_path / "x.csv")


def test_csv_holds_every_row_bit_for_bit(tmp_path: Path) -> None:
    rows = board({"a": 1 / 3, 'b,c\n"d"': 0.1 + 0.2})
    path = write_leaderboard(rows, facts("a"), make_spec(), tmp_path / "new" / "t.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(rows[0])
    assert len(read) == len(rows)
    for back, was in zip(read, rows, strict=True):
        for key, value in was.items():
            assert back[key] == "" if value is None else type(value)(back[key]) == value, key


def test_the_table_of_a_leaderboard(tmp_path: Path) -> None:
    rows = board({"slow": 3.0, "best": 1.0, "next": 2.0}, seeds=3)
    path = write_leaderboard(rows, facts("next", "best", "slow"), make_spec(), tmp_path / "t.tex")
    (found,) = tables_of(path.read_text())
    assert found["columns"] == "ll" + "r" * 6
    groups, heads, *lines = found["rows"]
    assert groups == [
        "",
        "",
        r"\multicolumn{2}{c}{count (events per hour)}",
        r"\multicolumn{2}{c}{level (metres)}",
        r"\multicolumn{2}{c}{all channels, standardised}",
    ]
    assert heads == ["System", "Seeds", "MAE", "RMSE", "MAE", "RMSE", "MSE", "MAE"]
    assert [line[0] for line in lines] == ["next", "best", "slow"], "in the order of val"
    assert lines[1][1:4] == ["3", r"\textbf{1.000}", r"\textbf{1.414}"]
    assert lines[0][1:4] == ["3", r"\underline{2.000}", r"\underline{2.828}"]
    assert lines[2][1:4] == ["3", "3.000", "4.243"]
    assert "test, 77 windows" in found["caption"]
    assert "next was chosen" in found["caption"]
    assert r"\cmidrule(lr){3-4}\cmidrule(lr){5-6}\cmidrule(lr){7-8}" in path.read_text()


def test_rows_without_facts_come_by_their_score_and_other_parts_can_be_asked_for(tmp_path: Path) -> None:
    rows = board({"slow": 3.0, "best": 1.0})
    path = write_leaderboard(rows, None, make_spec(), tmp_path / "t.tex", part="val", notes=["one week, 10 % of it"])
    (found,) = tables_of(path.read_text())
    assert [line[:2] for line in found["rows"][2:]] == [
        ["best", r"\textbf{0.01000}"],
        ["slow", r"\underline{0.03000}"],
    ]
    assert r"Note: one week, 10 \% of it." in found["caption"]
    with pytest.raises(UsageError, match="no row is about gate"):
        write_leaderboard(rows, None, make_spec(), tmp_path / "t.tex", part="gate")


def test_a_warning_stands_in_the_caption(tmp_path: Path) -> None:
    path = write_leaderboard(
        board({"a": 1.0}), facts("a", warning="too short to rank"), make_spec(), tmp_path / "t.tex"
    )
    assert "Note: too short to rank." in tables_of(path.read_text())[0]["caption"]


def test_many_channels_get_tables_of_their_own(tmp_path: Path) -> None:
    names = tuple(f"c_{i}" for i in range(7))
    spec = make_spec().model_copy(update={"channels": tuple(Channel(name=n, unit="%") for n in names)})
    path = write_leaderboard(board({"a": 1.0, "b": 2.0}, names), facts("a", "b"), spec, tmp_path / "t.tex")
    found = tables_of(path.read_text())
    assert [len(t["columns"]) - 1 for t in found] == [2, 6, 6, 2]
    assert found[3]["rows"][0][1] == r"\multicolumn{2}{c}{c\_6 (\%)}"
    assert len(set(re.findall(r"\\label{(.*?)}", path.read_text()))) == 4


def test_mape_is_printed_in_percent_where_every_system_has_one(tmp_path: Path) -> None:
    rows = board({"a": 1.0, "b": 2.0}, ("level",), mape=0.125)
    (found,) = tables_of(write_leaderboard(rows, facts("a", "b"), make_spec(), tmp_path / "t.tex").read_text())
    assert found["rows"][1] == ["System", "MAE", "RMSE", r"MAPE [\%]", "MSE", "MAE"]
    assert found["rows"][2][3] == r"\textbf{12.50}"


def test_a_dataset_with_a_protocol_gets_the_published_rows_beside_ours(tmp_path: Path) -> None:
    spec = make_spec(benchmark=RULE)
    rows = board({"stid": 0.3, "constant": 0.5}, mape=0.1)
    main, protocol = tables_of(write_leaderboard(rows, facts("stid", "constant"), spec, tmp_path / "t.tex").read_text())
    assert len(main["rows"]) == 4
    groups, heads, *lines = protocol["rows"]
    assert groups[3:] == [r"\multicolumn{3}{c}{step 3}", r"\multicolumn{3}{c}{step 12}"]
    assert heads[:3] == ["Model", "Look-back", "Source"]
    assert [line[:3] for line in lines] == [
        [r"HA\_1", "48", r"a \& b"],
        ["Other", "96", "a paper"],
        ["stid", "48", "ours"],
        ["constant", "48", "ours"],
    ]
    assert lines[0][3:] == ["1.25", "2.0", "11.7", "1.50", "--", r"\underline{12.0}"]
    assert lines[1][3:6] == [r"\textbf{0.50}", r"\textbf{1.0}", r"\textbf{9.3}"]
    assert lines[2][3] == r"\underline{0.78}", "0.3 * 2 * 1.3, with the decimals that were published"
    assert [line[8] for line in lines] == [r"\underline{12.0}", *[r"\textbf{10.0}"] * 3], "equal as shown is equal"
    assert "0 means missing" in protocol["caption"]
    assert "level in metres" in protocol["caption"]


def measured(system: str, length: int, mse: float, spread: float | None = None, seeds: int = 3) -> dict[str, Any]:
    scores = {str(length): {"mse": mse, "mae": mse + 0.03}}
    out = {"system": system, "look_back": 336, "scores": scores, "seeds": seeds, "windows": 2785, "seconds": 1.5}
    return out if spread is None else {**out, "deviations": {str(length): {"mse": spread, "mae": spread}}}


def test_a_protocol_of_lengths_has_a_group_each_with_the_deviation_over_seeds(tmp_path: Path) -> None:
    spec = get_dataset("etth1").spec
    ours = [
        measured("dlinear", 96, 0.37449, 0.0004),
        measured("dlinear", 720, 0.4701, 0.0012),
        measured("patchtst", 96, 0.3691, 0.0021),
        measured("constant", 96, 1.1, 0.0, seeds=1),
    ]
    path = write_benchmark(spec, ours, [], tmp_path / "t.tex")
    (found,) = tables_of(path.read_text())
    groups, _, *lines = found["rows"]
    assert [re.sub(r".*{(.*)}", r"\1", g) for g in groups[3:]] == [f"horizon {h}" for h in (96, 192, 336, 720)]
    by = {(line[0], line[2]): line[3:] for line in lines}
    assert by["dlinear", "ours, 3 seeds"][0] == r"0.374\,{\scriptsize$\pm$\,0.000}"
    assert by["dlinear", "ours, 3 seeds"][6] == r"0.470\,{\scriptsize$\pm$\,0.001}"
    assert by["dlinear", "ours, 3 seeds"][2] == "--"
    assert by["patchtst", "ours, 3 seeds"][0] == r"\textbf{0.369}\,{\scriptsize$\pm$\,0.002}"
    assert by["PatchTST/64", "PatchTST"][0] == r"\underline{0.370}"
    assert by["constant", "ours"][0] == "1.100"
    assert len(lines) == len(spec.benchmark.published) + 3  # type: ignore[union-attr]
    assert path.read_text().count(r"\midrule") == 2, "published and ours are apart"


def test_deviations_may_come_with_the_comparison_alone(tmp_path: Path) -> None:
    spec = get_dataset("etth1").spec
    ours = [measured("dlinear", 96, 0.374)]
    compared = reproduce.reproduction(spec, "dlinear", 336, {96: {"mse": (0.374, 0.0049), "mae": (0.404, 0.002)}})
    text = write_benchmark(spec, ours, compared, tmp_path / "t.tex").read_text()
    assert r"0.374}\,{\scriptsize$\pm$\,0.005}" in text


def test_csv_of_a_protocol_has_ours_with_the_verdict_and_what_was_published(tmp_path: Path) -> None:
    spec = get_dataset("etth1").spec
    value = 0.1 + 0.2
    compared = reproduce.reproduction(spec, "dlinear", 336, {96: {"mse": (value, 0.0049), "mae": (0.33, 0.002)}})
    path = write_benchmark(spec, [measured("dlinear", 96, value, 0.0049)], compared, tmp_path / "t.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    mse = read[0]
    assert (mse["model"], mse["source"], mse["at"], mse["metric"]) == ("dlinear", "ours", "96", "mse")
    assert float(mse["value"]) == value
    assert (mse["deviation"], mse["seeds"], mse["windows"]) == ("0.0049", "3", "2785")
    assert (mse["published"], mse["verdict"]) == ("0.375", "better")
    published = [r for r in read if r["source"] != "ours"]
    assert len(published) == sum(len(p.scores) * 2 for p in spec.benchmark.published)  # type: ignore[union-attr]
    assert {r["verdict"] for r in published} == {""}


def test_without_a_protocol_there_is_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no published protocol"):
        write_benchmark(make_spec(), [], [], tmp_path / "t.tex")


def only(cells: list[list[float | None]], decimals: tuple[int | None, ...] = ()) -> list[list[str]]:
    """The cells of a table with these values, row by row."""
    lines = tuple(
        Line((f"s{i}",), tuple(None if v is None else Cell(v) for v in values)) for i, values in enumerate(cells)
    )
    table = Table("c", "tab:x", ("System",), (("g", ("mae",) * len(cells[0])),), (lines,), decimals)
    (found,) = tables_of(latex([table]))
    return [line[1:] for line in found["rows"][2:]]


def test_ties_share_the_mark_and_gaps_get_none() -> None:
    assert only([[1.0], [1.0], [2.0], [3.0]]) == [
        [r"\textbf{1.000}"],
        [r"\textbf{1.000}"],
        [r"\underline{2.000}"],
        ["3.000"],
    ]
    assert only([[1.001], [1.004], [1.02]], (2,)) == [[r"\textbf{1.00}"], [r"\textbf{1.00}"], [r"\underline{1.02}"]]
    assert only([[None, 2.0], [float("nan"), None], [0.5, 1.0]]) == [
        ["--", r"\underline{2.000}"],
        ["--", "--"],
        [r"\textbf{0.5000}", r"\textbf{1.000}"],
    ]
    assert only([[None], [None]]) == [["--"], ["--"]]
    assert only([[0.0], [1234.5]]) == [[r"\textbf{0}"], [r"\underline{1234}"]]


def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    spec = make_spec(title=NASTY).model_copy(update={"channels": (Channel(name=NASTY, unit=NASTY),)})
    text = write_leaderboard(board({NASTY: 1.0}, (NASTY,)), facts(NASTY), spec, tmp_path / "t.tex").read_text()
    (found,) = tables_of(text)
    assert unescape(found["rows"][2][0]) == NASTY
    assert unescape(re.sub(r"^\\multicolumn\{2\}\{c\}\{(.*)\}$", r"\1", found["rows"][0][1])) == f"{NASTY} ({NASTY})"
    assert unescape(found["caption"]).startswith(f"{NASTY}: test")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    write_leaderboard(board({"a": 1.0}), None, make_spec(), path)
    before = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "replace", full)
    with pytest.raises(UsageError, match="cannot be written"):
        write_leaderboard(board({"b": 2.0}), None, make_spec(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(UsageError, match="cannot be written"):
        write_leaderboard(board({"b": 2.0}), None, make_spec(), path / "below.csv")


def test_a_real_evaluation_is_exported_whole(trained: tuple[Settings, Lake], tmp_path: Path) -> None:
    _, lake = trained
    stage = lake.require("trained", "evaluated")
    rows = lake.read(stage, "leaderboard").to_dicts()
    spec: DatasetSpec = make_spec("trained")
    (found,) = tables_of(write_leaderboard(rows, stage.facts, spec, tmp_path / "t.tex").read_text())
    assert [line[0] for line in found["rows"][2:]] == [r["system"] for r in stage.facts["ranking"]]
    for column in range(1, len(found["columns"])):
        assert sum(r"\textbf" in line[column] for line in found["rows"][2:]) >= 1
    with write_leaderboard(rows, stage.facts, spec, tmp_path / "t.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
