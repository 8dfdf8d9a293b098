"""Files that land while things go wrong: each is taken once and whole, set aside, or still where it was dropped."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from fixtures.changes import changes
from fixtures.live import begin, check_whole, day, down_the_road, rows, write

from stfm_pipeline import landing
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import SourceError
from stfm_pipeline.lake import Lake
from stfm_pipeline.parts import ACCEPTED, ASIDE, FACTS, accepted, folder, name_of
from stfm_pipeline.settings import Settings

SCRIPT = Path(__file__).with_name("take.py")


@pytest.fixture
def place(lake: Lake, settings: Settings) -> Path:
    """The landing folder of the observations of `live`, whose tables reach up to day 55."""
    begin(stop=55)
    down_the_road(lake, settings)
    sources = get_dataset("live").spec.sources
    found = folder(next(name_of(s) for s in sources if name_of(s).startswith("observations.csv")), settings)
    found.mkdir(parents=True)
    return found


def drop(path: Path, start: float = 55, stop: float = 56, seconds: float = 60) -> Path:
    """A file of these days that was written so many seconds ago."""
    write(path, rows("observations", start, stop))
    past = time.time() - seconds
    os.utime(path, (past, past))
    return path


def taken_once(lake: Lake, settings: Settings, place: Path) -> None:
    """Taken in once more, the file is there once, and nothing else is."""
    landing.take_in(lake, settings)
    assert [p.name for p in accepted(place.name, settings)] == ["observations-55.csv"]
    assert sorted(p.name for p in place.iterdir()) == [ACCEPTED]
    assert sorted(p.name for p in (place / ACCEPTED).iterdir()) == ["000001"]


def comes_to_its_end(lake: Lake, settings: Settings, place: Path) -> None:
    taken_once(lake, settings, place)
    assert down_the_road(lake, settings)["harmonized"].facts["steps"] == 56 * 24


def again(place: Path) -> None:
    """As if nothing had been taken, and the file dropped."""
    shutil.rmtree(place / ACCEPTED, ignore_errors=True)
    drop(place / "observations-55.csv")


def take(*arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_killed_before_and_after_a_file_is_taken(lake: Lake, settings: Settings, place: Path) -> None:
    again(place)
    code, seen = take()
    assert code == 0
    for before in ("os.rename", "os.remove"):
        again(place)
        at = next(i for i, change in enumerate(seen, start=1) if change.startswith(before))
        assert take(str(at)) == (-signal.SIGKILL, seen[:at])
        taken_once(lake, settings, place)
    comes_to_its_end(lake, settings, place)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_before_any_change(lake: Lake, settings: Settings, place: Path) -> None:
    again(place)
    code, seen = take()
    assert code == 0
    for at in range(1, len(seen) + 1):
        again(place)
        assert take(str(at)) == (-signal.SIGKILL, seen[:at])
        taken_once(lake, settings, place)
    comes_to_its_end(lake, settings, place)


def test_a_disk_that_fails_at_any_change_leaves_the_file_where_it_is(
    lake: Lake, settings: Settings, place: Path
) -> None:
    failed: list[str] = []
    for at in itertools.count():
        again(place)
        seen: list[str] = []

        def full(change: str, at: int = at, seen: list[str] = seen) -> None:
            seen.append(change)
            if len(seen) == at + 1:
                failed.append(change)
                raise OSError(errno.ENOSPC, "No space left on device", change)

        with changes(settings.landing, full):
            (taken,) = landing.take_in(lake, settings)
        assert taken.accepted or "it stays where it is: [Errno 28] No space left" in taken.reason
        taken_once(lake, settings, place)
        if len(failed) == at:
            break
    assert {change.split()[0] for change in failed} >= {"os.mkdir", "open", "os.rename", "os.remove"}
    comes_to_its_end(lake, settings, place)


def test_what_is_no_fault_of_the_file_does_not_set_it_aside(lake: Lake, settings: Settings, place: Path) -> None:
    path = drop(place / "observations-55.csv")
    archive = settings.root / "datasets" / "live" / "plan.csv"
    away = archive.rename(archive.with_suffix(".away"))
    (taken,) = landing.take_in(lake, settings)
    assert not taken.accepted
    assert "it stays where it is" in taken.reason
    assert "plan.csv" in taken.reason
    assert path.exists()
    away.rename(archive)
    comes_to_its_end(lake, settings, place)


def test_another_file_in_its_place_while_it_is_read(lake: Lake, settings: Settings, place: Path) -> None:
    path = drop(place / "observations-55.csv", 55, 55.5)
    other = drop(settings.root / "dropped" / "observations-55.csv", 55, 56, seconds=0)

    def exchange(change: str) -> None:
        if change.startswith("open") and ACCEPTED in change and other.exists():
            other.replace(path)

    with changes(settings.landing, exchange):
        (taken,) = landing.take_in(lake, settings)
    assert "it changed while it was read" in taken.reason
    assert landing.take_in(lake, settings) == [], "it is no longer known to be whole"
    past = time.time() - 60
    os.utime(path, (past, past))
    comes_to_its_end(lake, settings, place)


def test_a_link_is_taken_as_what_it_points_to(lake: Lake, settings: Settings, place: Path) -> None:
    target = drop(settings.root / "elsewhere.csv")
    (place / "observations-55.csv").symlink_to(target)
    assert landing.take_in(lake, settings)[0].accepted
    target.unlink()
    (part,) = accepted(place.name, settings)
    assert part.path.is_file()
    assert not part.path.is_symlink()
    comes_to_its_end(lake, settings, place)


def test_on_another_file_system_a_kill_makes_no_repeat(lake: Lake, settings: Settings, place: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == place.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=shared) as other:
        (place / ACCEPTED).symlink_to(other)
        drop(place / "observations-55.csv")
        take(str(10**6))
        copy = Path(other, "000001", "observations-55.csv")
        assert copy.is_file()
        shutil.copy2(copy, place / copy.name)
        comes_to_its_end(lake, settings, place)


def test_names_that_cannot_be_kept_are_set_aside(lake: Lake, settings: Settings, place: Path) -> None:
    for name in ("observations-\n.csv", os.fsdecode(b"observations-\xff.csv"), FACTS):
        content = drop(settings.root / "dropped.csv").read_bytes()
        (settings.root / "dropped.csv").rename(place / name)
        (taken,) = landing.take_in(lake, settings)
        assert not taken.accepted
        assert "cannot be named" in taken.reason
        assert "rename it" in taken.reason
        assert (place / ASIDE / name).read_bytes() == content
    assert accepted(place.name, settings) == []


def test_what_is_no_file_is_left_alone(lake: Lake, settings: Settings, place: Path) -> None:
    (place / "observations-folder.csv").mkdir()
    (place / "observations-nowhere.csv").symlink_to(place / "gone")
    os.mkfifo(place / "observations-pipe.csv")
    hidden = drop(place / "observations-unreadable.csv", 56, 57)
    hidden.chmod(0)
    if os.access(hidden, os.R_OK):
        hidden.unlink()
    drop(place / "observations-55.csv")
    assert [t.name for t in landing.take_in(lake, settings) if t.accepted] == ["observations-55.csv"]


def test_two_at_once_take_each_file_once(lake: Lake, settings: Settings, place: Path) -> None:
    drop(place / "observations-55.csv", 55, 56)
    drop(place / "observations-56.csv", 56, 57)
    found: list[landing.Taken] = []
    both = [threading.Thread(target=lambda: found.extend(landing.take_in(lake, settings))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted((t.name, t.accepted) for t in found) == [
        ("observations-55.csv", True),
        ("observations-56.csv", True),
    ]
    assert not (place / ASIDE).exists()


def test_two_at_once_drop_files_of_one_name_and_both_land_whole(settings: Settings, place: Path) -> None:
    first, other = (settings.root / "dropped" / name / "observations-55.csv" for name in "ab")
    for path in (first, other):
        path.parent.mkdir(parents=True)
        path.write_text(path.parent.name)
    beside = threading.Thread(target=landing.put, args=("live", [other], settings))

    def start(change: str) -> None:
        if change.startswith("os.rename") and beside.ident is None:
            beside.start()
            beside.join(1)

    with changes(settings.landing, start):
        landing.put("live", [first], settings)
        beside.join()
    assert sorted(p.read_text() for p in place.glob("*.csv")) == ["a", "b"]
    assert not list(place.glob(".*"))


def test_a_clock_that_goes_back_does_not_change_the_order(lake: Lake, settings: Settings, place: Path) -> None:
    drop(place / "observations-55.csv")
    landing.take_in(lake, settings)
    facts = place / ACCEPTED / "000001" / FACTS
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"taken_at": "2999-01-01T00:00:00+00:00"}))
    down_the_road(lake, settings)
    drop(place / "observations-56.csv", 56, 57)
    landing.take_in(lake, settings)
    assert down_the_road(lake, settings)["raw"].since == day(56), "it goes on after the first"


@pytest.mark.parametrize("harm", ["truncated", "gone", "other bytes"])
def test_a_taken_file_that_is_damaged_is_named_and_can_be_dropped_again(
    lake: Lake, settings: Settings, place: Path, harm: str
) -> None:
    for start in (55, 56):
        drop(place / f"observations-{start}.csv", start, start + 1)
    landing.take_in(lake, settings)
    first = place / ACCEPTED / "000001"
    content = (first / "observations-55.csv").read_bytes()
    if harm == "truncated":
        (first / FACTS).write_text((first / FACTS).read_text()[:40])
    elif harm == "gone":
        (first / "observations-55.csv").unlink()
    else:
        (first / "observations-55.csv").write_bytes(content[:-200])
    with pytest.raises(SourceError, match="not as it was") as caught:
        down_the_road(lake, settings)
    assert "000001" in str(caught.value)
    first.rename(settings.root / "moved-out")
    (place / "observations-again.csv").write_bytes(content)
    (taken,) = landing.take_in(lake, settings, settled=0)
    assert taken.accepted, taken.reason
    assert [p.number for p in accepted(place.name, settings)] == [2, 3]
    assert down_the_road(lake, settings)["harmonized"].facts["steps"] == 57 * 24
    check_whole(lake, settings)
