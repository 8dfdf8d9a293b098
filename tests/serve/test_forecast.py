"""Forecasts over HTTP are `predict()`'s, and what cannot be answered says why."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pyarrow as pa
import pytest
from serve.conftest import ARROW, JSON, Site, text
from typer.testing import CliRunner

from stfm_pipeline import registry
from stfm_pipeline.cli import app
from stfm_pipeline.forecasts import latest
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

Start = Callable[..., Site]


def arrow(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_ipc_stream(sink)
    return sink.getvalue()


@pytest.fixture
def expected(registered: tuple[Settings, Lake], frame: pl.DataFrame) -> pl.DataFrame:
    out = registry.load_model("models:/trained@champion", registered[0]).predict(frame)
    assert isinstance(out, pl.DataFrame)
    return out


def test_rows_columns_and_arrow_give_what_predict_gives_also_many_at_once(
    start: Start, registered: tuple[Settings, Lake], frame: pl.DataFrame, expected: pl.DataFrame
) -> None:
    site = start()
    rows = site.post(json.dumps(text(frame).to_dicts()).encode())
    assert rows.status == 200, rows.body
    assert pl.from_dicts(rows.json()["forecast"]).equals(text(expected))
    columns = site.post(json.dumps(text(frame).to_dict(as_series=False)).encode()).json()
    assert pl.DataFrame(columns["forecast"]).equals(text(expected))
    with ThreadPoolExecutor(8) as many:
        answers = list(many.map(lambda _: site.post(arrow(frame), ARROW), range(24)))
    for answer in answers:
        assert answer.headers["content-type"] == ARROW["Content-Type"]
        assert pl.read_ipc_stream(answer.body).equals(expected)
    facts = json.loads(pa.ipc.open_stream(answers[0].body).schema.metadata[b"stfm"])
    champion = registry.show(registered[0], "trained")
    for found in (facts, rows.json(), columns):
        assert (found["model"], found["version"]) == ("trained", champion["version"])
        assert (found["run_id"], found["system"]) == (champion["run_id"], "dlinear")
        assert found["tables"]["enriched"] == registered[1].require("trained", "enriched").data_version
        assert found["origin"] == text(expected)["ds"][0]


def test_the_latest_data_is_forecast_without_a_body(start: Start, registered: tuple[Settings, Lake]) -> None:
    settings, lake = registered
    site = start()
    site.wait(lambda: site.get("/forecast").status == 200)
    known = latest(registry.load_model("models:/trained@champion", settings), "trained", lake, settings)
    answer = site.get("/forecast").json()
    assert pl.from_dicts(answer["forecast"]).equals(text(known.forecast))
    assert answer["data"] == known.tables
    some = site.get("/forecast?entity=b&entity=e").json()["forecast"]
    assert [r["unique_id"] for r in some[::12]] == ["b", "e"]
    assert site.get("/forecast?entity=Atlantis").json()["offenders"] == ["Atlantis"]
    assert site.metric("stfm_data_age_seconds") > 0


def test_version_page_and_document_say_what_a_frame_holds(start: Start, registered: tuple[Settings, Lake]) -> None:
    site = start()
    version = site.get("/version").json()
    assert version["channels"] == ["count", "level"]
    assert (version["look_back"], version["horizon"], version["entities"]) == (48, 12, 6)
    assert version["lineage"] == registry.load_model("models:/trained@champion", registered[0]).lineage
    page = site.get("/docs").body.decode()
    assert "<code>level</code>" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://HOST:PORT/forecast", "")
    document = site.get("/openapi.json").json()
    assert set(document["paths"]) == {"/forecast", "/health", "/ready", "/version", "/metrics"}
    assert {"Answer", "Trouble"} <= set(document["components"]["schemas"])


NO_FRAMES = [
    b"",
    b"\x00\xff\xfe",
    b"[1",
    b"[" * 100_000,
    b"{}",
    b"[]",
    b"3",
    b'"frame"',
    b"[1, 2]",
    b'{"unique_id": "a"}',
    b'{"unique_id": ["a"], "ds": []}',
    b'[{"unique_id": "a", "ds": "2023-04-01T00:00:00Z", "count": "many", "level": 1}]',
    b'[{"unique_id": "a", "ds": "2023-04-01T00:00:00Z", "count": 1e999, "level": 123456789012345678901234567890}]',
    b'[{"unique_id": ["a"], "ds": {"at": 1}, "count": [1], "level": null}]',
    b'[{"unique_id": "a", "ds": "9999-12-31T23:00:00Z", "count": 1, "level": 1}]',
    b'[{"unique_id": "a", "ds": "-262000-01-01T00:00:00Z", "count": 1, "level": 1}]',
    b'[{"unique_id": null, "ds": null, "count": null, "level": null}]',
    b'[{"unique_id": "Atlantis", "ds": "2023-04-01T00:00:00Z", "count": 1, "level": 1}]',
]


def test_a_body_that_is_no_frame_is_refused_with_its_reason(start: Start) -> None:
    site = start()
    for body in NO_FRAMES:
        for headers in (JSON, ARROW):
            answer = site.post(body, headers)
            assert answer.status == 422, (body[:80], answer.body)
            assert answer.json()["problem"]
            assert b"Traceback" not in answer.body
    assert site.get("/ready").status == 200


def test_a_damaged_arrow_stream_is_refused(start: Start, frame: pl.DataFrame) -> None:
    site, whole = start(), arrow(frame)
    for cut in range(0, len(whole), len(whole) // 12):
        assert site.post(whole[:cut], ARROW).status == 422
        damaged = bytearray(whole)
        damaged[cut : cut + 8] = b"\xff" * 8
        assert site.post(bytes(damaged), ARROW).status in (200, 422)
    assert site.post(whole, ARROW).status == 200


def test_errors_of_predict_come_as_fields(start: Start, frame: pl.DataFrame) -> None:
    site = start()
    wrong = site.post(json.dumps(text(frame).rename({"level": "levell"}).to_dicts()).encode())
    assert wrong.status == 422
    assert wrong.json()["offenders"] == ["level"]
    assert "'levell' for 'level'" in wrong.json()["fix"]
    naive = frame.with_columns(pl.col("ds").dt.replace_time_zone(None))
    assert "no time zone" in site.post(arrow(naive), ARROW).json()["problem"]
    assert site.post(arrow(naive), ARROW, "/forecast?zone=UTC").status == 200
    assert site.post(arrow(naive), ARROW, "/forecast?zone=Nowhere/Town").status == 422


def test_bodies_rows_and_types_have_their_limits(start: Start, frame: pl.DataFrame) -> None:
    site = start(body_mb=0.1, rows=100)
    assert site.post(b" " * 100_001).status == 413
    few = site.post(arrow(frame), ARROW)
    assert (few.status, few.json()["expected"]) == (413, "at most 100 rows")
    one = pa.RunEndEncodedArray.from_arrays(pa.array([2_000_000_000], pa.int32()), pa.array([1.0]))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("level", one.type)])) as stream:
        stream.write_table(pa.table({"level": one}))
    assert site.post(sink.getvalue(), ARROW).status == 413, "small, until it is spelled out"
    for kind in ("lz4", "zstd"):
        sink, flat = io.BytesIO(), pa.table({"level": pa.array(["0"] * 90).dictionary_encode()})
        with pa.ipc.new_stream(sink, flat.schema, options=pa.ipc.IpcWriteOptions(compression=kind)) as stream:
            stream.write_table(flat)
        packed = site.post(sink.getvalue(), ARROW)
        assert (packed.status, packed.json()["problem"]) == (422, "compressed Arrow buffers are not read")
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as raw:
        raw.sendall(b"POST /forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + b"C350\r\n" + b" " * 50_000 + b"\r\n")
        raw.sendall(b"EA60\r\n" + b" " * 60_000 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert site.post(b"a,b", {"Content-Type": "text/csv"}).status == 415
    assert site.post(b"x", {**JSON, "Content-Encoding": "gzip"}).status == 415
    assert site.get("/nothing").status == 404
    assert site.call("DELETE", "/forecast").status == 405
    assert site.metric("stfm_requests_in_flight") == 1, "the one that asks"


def test_a_name_under_which_no_model_could_appear_is_refused(registered: tuple[Settings, Lake]) -> None:
    found = CliRunner().invoke(app, ["serve", "traind"])
    assert found.exit_code != 0
    assert "did you mean 'trained'?" in found.output


def test_a_client_that_never_ends_its_body_is_let_go(start: Start) -> None:
    site = start(seconds=0.5)
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as raw:
        raw.sendall(b"POST /forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: 1000\r\n\r\n[")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
    assert site.get("/ready").status == 200


def test_a_full_queue_sends_away_and_goes_on(start: Start, frame: pl.DataFrame, expected: pl.DataFrame) -> None:
    site = start(workers=1, queue=1)
    body = json.dumps(text(frame).to_dicts()).encode()
    with ThreadPoolExecutor(16) as many:
        answers = list(many.map(lambda _: site.post(body), range(64)))
    away = [a for a in answers if a.status == 503]
    assert away
    assert all(a.headers["retry-after"] == "1" and a.json()["problem"] == "the queue is full" for a in away)
    good = [a for a in answers if a.status == 200]
    assert len(good) + len(away) == 64
    assert all(pl.from_dicts(a.json()["forecast"]).equals(text(expected)) for a in good)
    assert site.post(body).status == 200
    assert site.metric("stfm_queue_waiting") == 0
