from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stfm_pipeline
from stfm_pipeline.fingerprint import code_version, fingerprint

PACKAGE = Path(stfm_pipeline.__file__).parent
PLAIN = "LIMIT = 3\n\n\nclass Box:\n    size = 1\n\n    def area(self, side):\n        return side * self.size\n"


@pytest.fixture
def version_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Code version of a package made of the given files."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(**files: str) -> str:
        made.append(f"stfm_probe_{tmp_path.parent.name}_{tmp_path.name}_{len(made)}".replace("-", "_"))
        folder = tmp_path / made[-1]
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, text in files.items():
            file = folder / (name.replace("__", "/") + ".py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return code_version(made[-1])

    return make


@pytest.mark.parametrize(
    "same",
    [
        "# Why three?\n" + PLAIN,
        '"""A module."""\n' + PLAIN,
        PLAIN.replace("    size", '    """A box."""\n\n    size'),
        PLAIN.replace("        return", '        """Its area."""\n        return'),
        PLAIN.replace("side * self.size", "(\n            side  *  self.size\n        )"),
        PLAIN.replace("\n", "\r\n"),
    ],
    ids=["comment", "module docstring", "class docstring", "function docstring", "layout", "line ends"],
)
def test_words_and_layout_do_not_change_the_code_version(version_of: Callable[..., str], same: str) -> None:
    assert version_of(box=same) == version_of(box=PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("LIMIT = 3", "LIMIT = 4"),
        PLAIN.replace("LIMIT = 3", "LIMIT = 3.0"),
        PLAIN.replace("size = 1", "size = '1'"),
        PLAIN.replace("side * ", "side + "),
        PLAIN.replace("(self, side)", "(self, side=1)"),
        PLAIN + "\nTEXT = 'kept'\n",
        PLAIN + "\ndef more():\n    'docstring'\n    x = 'not one'\n",
    ],
)
def test_a_changed_constant_operator_or_default_changes_the_code_version(
    version_of: Callable[..., str], other: str
) -> None:
    assert version_of(box=other) != version_of(box=PLAIN)


def test_every_file_below_a_package_counts(version_of: Callable[..., str]) -> None:
    alone = version_of(box=PLAIN)
    assert version_of(box=PLAIN, lid="X = 1\n") != alone
    deep = version_of(box=PLAIN, inner__deep="X = 1\n")
    assert version_of(box=PLAIN, inner__deep="X = 2\n") != deep


def test_the_order_in_which_modules_are_named_does_not_matter() -> None:
    pair = ("stfm_pipeline.tables", "stfm_pipeline.stage")
    assert code_version(*pair) == code_version(*reversed(pair)) != code_version(pair[0])


def test_a_module_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        code_version("stfm_pipeline.nothing_of_the_kind")


def test_a_readme_beside_the_code_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("stfm_probe_bare", "stfm_probe_readme"):
        shutil.copytree(PACKAGE / "embed", tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stfm_probe_readme" / "README.md").write_text("# Words\n")
    assert code_version("stfm_probe_bare") == code_version("stfm_probe_readme") == code_version("stfm_pipeline.embed")


def test_a_fingerprint_depends_on_each_of_its_parts_and_not_on_the_order_of_keys() -> None:
    base = fingerprint({"a": 1, "b": [2]}, "code", {"raw": "x", "harmonized": "y"})
    assert base == fingerprint({"b": [2], "a": 1}, "code", {"harmonized": "y", "raw": "x"})
    others = [
        fingerprint({"a": 1, "b": [3]}, "code", {"raw": "x", "harmonized": "y"}),
        fingerprint({"a": 1, "b": [2]}, "edoc", {"raw": "x", "harmonized": "y"}),
        fingerprint({"a": 1, "b": [2]}, "code", {"raw": "z", "harmonized": "y"}),
        fingerprint({"a": 1, "b": [2]}, "code", {"raw": "y", "harmonized": "x"}),
    ]
    assert len({base, *others}) == 5
