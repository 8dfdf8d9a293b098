"""What is meant to bring the server down costs it little, and those who mean well are served meanwhile."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import polars as pl
import pyarrow as pa
import pytest
from serve.conftest import ARROW, JSON, Site, text

from stfm_pipeline.errors import FrameError
from stfm_pipeline.serve import bodies

Start = Callable[..., Site]
FORECAST = b"POST /forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue()


def runs(rows: int) -> pa.RunEndEncodedArray:
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([1.0]))


@pytest.mark.parametrize(
    ("form", "body", "found"),
    [
        (bodies.JSON, json.dumps([{f"c{k}": 1} for k in range(12_000)]).encode(), "12000 columns"),
        (bodies.JSON, json.dumps({f"c{k}": [1] for k in range(12_000)}).encode(), "12000 columns"),
        (bodies.JSON, json.dumps([{f"c{k % 1000}": 1} for k in range(5000)]).encode(), "5000 rows of 1000 keys"),
        (bodies.JSON, b"[" + b"{}," * 20_000 + b"{}]", "20001 rows"),
        (bodies.JSON, b'{"a": [' + b"[]," * 50_000 + b"[]]}", "50003 lists and objects"),
        (bodies.ARROW, stream(pa.table({f"c{k}": [1] for k in range(1001)})), "1001 columns"),
    ],
)
def test_no_frame_is_built_that_is_much_larger_than_its_body(
    form: str, body: bytes, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a frame was made")

    for name in ("from_dicts", "from_arrow", "DataFrame"):
        monkeypatch.setattr(pl, name, built)
    with pytest.raises(bodies.TooLarge) as error:
        bodies.read(body, form, 20_000)
    assert error.value.args[0].startswith(found)


def test_rows_that_leave_keys_out_are_read(frame: pl.DataFrame) -> None:
    rows = text(frame).to_dicts()
    sparse = [{k: v for k, v in row.items() if v is not None} for row in rows] * 200
    known = pl.from_dicts(rows * 200, infer_schema_length=None)
    found, kind = bodies.read(json.dumps(sparse).encode(), bodies.JSON, len(sparse))
    assert (kind, found.select(known.columns).equals(known)) == ("rows", True)


@pytest.mark.parametrize("shape", ['{"ds": ["x"], "unique_id": [%s]}', '[{"ds": "x", "unique_id": %s}]'])
def test_values_that_hold_values_are_refused_at_once(shape: str) -> None:
    for nested in ("[" * 900 + "]" * 900, "{}", '{"a": 1}', "[]"):
        with pytest.raises(FrameError) as error:
            bodies.read((shape % nested).encode(), bodies.JSON, 100)
        assert error.value.offenders == ["unique_id"]


def test_arrow_columns_that_hold_columns_are_refused() -> None:
    deep = pa.array([1])
    for _ in range(40):
        deep = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), deep)
    words = pa.array(["a"])
    for nested in (deep, runs(1), pa.array([{"a": 1}]), pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), deep)):
        with pytest.raises(FrameError, match="lists, objects or runs") as error:
            bodies.read(stream(pa.table({"ds": words, "unique_id": nested})), bodies.ARROW, 100)
        assert error.value.offenders == ["unique_id"]
    plain = pa.table({"ds": words, "unique_id": words.dictionary_encode(), "level": [1.0]})
    assert bodies.read(stream(plain), bodies.ARROW, 100)[0].rows() == [("a", "a", 1.0)]


def test_an_empty_zone_is_none(start: Start, frame: pl.DataFrame) -> None:
    naive = frame.with_columns(pl.col("ds").dt.replace_time_zone(None))
    answer = start().post(stream(naive.to_arrow()), ARROW, "/forecast?zone=")
    assert (answer.status, answer.json()["problem"]) == (422, "'ds' carries no time zone")


def test_an_error_does_not_say_all_that_was_sent_to_it(start: Start, frame: pl.DataFrame) -> None:
    site = start()
    many = site.post(json.dumps({f"column{k}": [1] for k in range(990)}).encode())
    assert many.json()["found"].startswith("column0, column1, ")
    assert many.json()["found"].endswith(" and 970 more")
    rows = text(frame).with_columns(pl.lit("A" * 100_000).alias("unique_id")).head(3)
    for body in (json.dumps({"x" * 100_000: [1]}).encode(), json.dumps(rows.to_dicts()).encode()):
        answer = site.post(body)
        assert answer.status == 422
        assert len(answer.body) < 5000
        assert b"100000 characters" in answer.body


@contextmanager
def half_sent(site: Site, *parts: bytes) -> Iterator[list[socket.socket]]:
    """A connection for each part, of which no more is sent."""
    with ExitStack() as opened:
        found = []
        for part in parts:
            found.append(opened.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=20)))
            found[-1].sendall(part)
        yield found


def test_bodies_take_their_places_before_they_arrive(start: Start, frame: pl.DataFrame) -> None:
    site, body = start(workers=1, queue=2), json.dumps(text(frame).to_dicts()).encode()
    with half_sent(site, *[FORECAST % len(body) + body[:100]] * 3):
        site.wait(lambda: site.metric("stfm_queue_waiting") == 2)
        began = time.monotonic()
        answer = site.post(body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - began < 10, "without waiting for the others"
        assert [site.get(path).status for path in ("/health", "/ready", "/metrics", "/version")] == [200] * 4
    site.wait(lambda: site.post(body).status == 200)
    assert site.metric("stfm_queue_waiting") == 0


def test_bodies_hold_so_many_bytes_together(start: Start, frame: pl.DataFrame) -> None:
    body = json.dumps(text(frame).to_dicts()).encode()
    site = start(body_mb=0.2, queue=60)
    with half_sent(site, *[FORECAST % 200_000 + b" " * 190_000] * 8):
        site.wait(lambda: site.metric("stfm_requests_in_flight") == 9)
        site.wait(lambda: site.post(b" " * 150_000).status == 503)
        assert site.get("/health").status == 200
    site.wait(lambda: site.post(body).status == 200)
    assert site.post(b" " * 150_000).status == 422


def test_a_head_that_never_ends_and_a_silent_client_are_let_go(start: Start) -> None:
    site, head = start(seconds=0.5), b"GET /health HTTP/1.1\r\nHost: x\r\n"
    with half_sent(site, b"", b"G", head, head + b"\r\n" + head, b"") as found:
        *half, answered = found
        answered.sendall(head + b"\r\n")
        assert answered.recv(1000).startswith(b"HTTP/1.1 200")
        answered.sendall(b"\r\n")
        for connection in (*half, answered):
            rest = b""
            while more := connection.recv(1000):
                rest += more
            assert rest.count(b"HTTP/1.1") == (connection is half[3])
    with half_sent(site, head[:9]) as (slow,):
        for byte in head[9:] + b"\r\n":
            time.sleep(0.005)
            slow.sendall(bytes([byte]))
        assert slow.recv(1000).startswith(b"HTTP/1.1 200"), "slow, but in time"
        assert site.post(b"[]", JSON).status == 422
