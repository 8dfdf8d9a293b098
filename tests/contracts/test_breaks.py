"""Every contract of every stage is broken once, and stopped by its own check before anything is published."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from assets.data import CHECKS
from bench.contracts import BREAKS, Break, House, known


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The sound dataset at the end of the road; made once, since a break leaves no trace."""
    home = tmp_path_factory.mktemp("contracts")
    before = os.environ.get("STFM_HOME")
    os.environ["STFM_HOME"] = str(home)
    try:
        yield House(home)
    finally:
        os.environ.pop("STFM_HOME") if before is None else os.environ.__setitem__("STFM_HOME", before)


def test_no_check_is_decoration() -> None:
    """A check that is in `CHECKS` and in no break of bench/contracts.py could pass whatever happens."""
    checks = {(stage, check) for stage, names in CHECKS.items() for check in names}
    assert checks - {(b.stage, b.check) for b in BREAKS} == set()


@pytest.mark.parametrize(
    "broken",
    [pytest.param(b, id=f"{b.stage}-{b.check}-{b.what}") for b in BREAKS if known(b, CHECKS)],
)
def test_a_broken_contract_is_stopped_and_nothing_is_published(house: House, broken: Break) -> None:
    found = house.take(broken)
    assert (found.stage, found.published) == (broken.stage, ()), found
    assert broken.check in found.checks, found
    assert found.said
