"""A Python file with a plain torch module joins as a system, and its model answers where the file is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from stfm_pipeline.cli import app
from stfm_pipeline.errors import UsageError
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems import own
from stfm_pipeline.systems.catalog import all_systems, built_in, get_system, module_names
from stfm_pipeline.systems.spec import Training
from stfm_pipeline.train import Budget, fit
from stfm_pipeline.training import training_plan
from stfm_pipeline.windows import Panel, load_panel

BRIEF = Budget("brief", epochs=2, patience=2, seeds=1, stride=8)
PLAIN = '''\
import torch


class Ridge(torch.nn.Module):
    """One linear map from look-back to horizon."""

    def __init__(self, problem):
        super().__init__()
        self.map = torch.nn.Linear(problem.look_back, problem.horizon)

    def forward(self, x):
        return self.map(x.movedim(1, -1)).movedim(-1, 1)


TRAINING = {"learning_rate": 1e-2}
'''

GIVEN = """\
from stfm_pipeline.systems.constant import SYSTEM

SYSTEM = SYSTEM.__class__(**vars(SYSTEM))
vars(SYSTEM).update({changes})
"""


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


def join(folder: Path, text: str, name: str = "my_ridge.py") -> str:
    path = folder / name
    path.write_text(text)
    return own.install(path, set(built_in()))


def test_the_module_of_the_guide_joins_and_trains(panel: Panel, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    code = guide.split("## A PyTorch module of your own")[1].split("```python\n")[1].split("```")[0]
    system = get_system(join(tmp_path, code, "my_net.py"))
    fitted = fit(system, panel, BRIEF, device="cpu", progress=False)
    assert fitted.curve[-1]["train_loss"] < fitted.curve[0]["train_loss"]


def test_a_plain_module_joins_trains_and_answers_without_its_file(panel: Panel, tmp_path: Path) -> None:
    assert join(tmp_path, PLAIN) == "my-ridge"
    system = get_system("my-ridge")
    assert system.training == Training(learning_rate=1e-2)
    assert system.summary == "One linear map from look-back to horizon."
    assert "my_ridge" in module_names()
    assert "my-ridge" in all_systems()
    fitted = fit(system, panel, BRIEF, device="cpu", progress=False)
    assert fitted.curve[-1]["train_loss"] < fitted.curve[0]["train_loss"]
    forecaster = Forecaster("my-ridge", panel.problem, fitted.module, {})
    folder = forecaster.save(tmp_path / "model")
    window = panel.arrays.gather(panel.origins("test")[:3], panel.problem)
    before = forecaster.forecast(window).values
    (own.folder() / "my_ridge.py").unlink()
    with pytest.raises(UsageError, match="no system is called 'my-ridge'"):
        get_system("my-ridge")
    assert torch.equal(Forecaster.load(folder).forecast(window).values, before)


def test_a_module_that_asks_for_inputs_gets_them_all(panel: Panel, tmp_path: Path) -> None:
    text = PLAIN.replace("forward(self, x)", "forward(self, inputs)").replace(
        "self.map(x.", "self.map((inputs.x * inputs.observed)."
    )
    join(tmp_path, text)
    assert fit(get_system("my-ridge"), panel, BRIEF, device="cpu", progress=False).curve


def test_a_changed_file_is_another_system_and_a_comment_is_not(
    enriched: Lake, tmp_path: Path, settings: Settings
) -> None:
    def mark(text: str) -> str:
        join(tmp_path, text)
        return training_plan(enriched, "synthetic", get_system("my-ridge"), "quick").mark

    first = mark(PLAIN)
    assert mark(PLAIN + "# a remark\n") == first
    assert mark(PLAIN.replace("1e-2", "1e-3")) != first
    assert mark(PLAIN.replace("self.map(", "2 * self.map(")) != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nx = 1 / 0\n", r"cannot be imported[\s\S]*ZeroDivisionError: division by zero \(line 2\)"),
        ("def f(:\n", r"cannot be imported[\s\S]*SyntaxError"),
        ("x = 1\n", r"defines 0 models[\s\S]*one torch\.nn\.Module"),
        (PLAIN + PLAIN.replace("Ridge", "Other"), r"defines 2 models[\s\S]*Ridge, Other[\s\S]*`Model`"),
        (PLAIN.replace("learning_rate", "lerning_rate"), r"TRAINING is not understood[\s\S]*learning_rate"),
        (PLAIN + "TRAINING = None\n", r"TRAINING is not understood[\s\S]*a dict such as learning_rate"),
        (
            PLAIN + "TRAINING = dict(learning_rate='fast', batch_size=-3, clip=float('nan'), precision='fp8')\n",
            r"expected: a dict such as learning_rate=0\.0001[\s\S]*"
            r"learning_rate='fast': [\s\S]*batch_size=-3: [\s\S]*clip=nan: [\s\S]*precision='fp8': ",
        ),
        ("raise SystemExit(3)\n", r"cannot be imported[\s\S]*SystemExit: 3 \(line 1\)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--nope'])\n", r"SystemExit: 2 \(line 2\)"),
        (PLAIN + "Ridge.__signature__ = 3\n", r"cannot be imported[\s\S]*__signature__"),
        # In tests types are checked as soon as a System is made; in use nothing stops these there.
        (GIVEN.format(changes={"branch": "mighty"}), r"SYSTEM is not understood[\s\S]*found: branch='mighty'"),
        (GIVEN.format(changes={"kinds": None}), r"SYSTEM is not understood[\s\S]*found: kinds=None"),
        (GIVEN.format(changes={"training": {"batch_size": 8}}), r"SYSTEM is not understood[\s\S]*found: training="),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_not_kept(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        join(tmp_path, text)
    assert not own.folder().exists()


@pytest.mark.parametrize("name", ["stid.py", "raw.py", "My Model.py", "evaluated.py"])
def test_a_name_that_is_taken_or_unsafe_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a system cannot be called"):
        join(tmp_path, PLAIN, name)


def test_one_broken_file_leaves_the_others_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    join(tmp_path, PLAIN)
    (own.folder() / "broken.py").write_text("import nothing_of_this_name\n")
    assert {"my-ridge", "stid"} <= set(all_systems())
    assert "broken" not in all_systems()
    assert "broken.py cannot be imported" in caplog.text


def test_what_lies_there_and_is_no_system_is_said_and_takes_nothing_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    join(tmp_path, PLAIN)
    there = own.folder()
    (there / "syntax.py").write_text("def (:\n")
    (there / "ends.py").write_text("raise SystemExit(3)\n")
    (there / "coded.py").write_bytes(f"x = '{'é'}'\n{PLAIN}".encode("latin-1"))
    (there / "raw.py").write_text(PLAIN)
    (there / "stid.py").write_text(PLAIN)
    (there / "heap.py").mkdir()
    (there / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (there / ".#my_ridge.py").symlink_to("an editor's lock")
    assert [n for n in all_systems() if n not in {b.replace("_", "-") for b in built_in()}] == ["my-ridge"]
    assert len({r.getMessage() for r in caplog.records if r.levelname == "WARNING"}) == 7
    reasons = {
        "syntax": "SyntaxError",
        "ends": "SystemExit: 3",
        "coded": "codec can't decode",
        "raw": "a system cannot be called 'raw'",
        "heap": "no file at .*heap.py",
        "gone": "no file at .*gone.py",
    }
    for name, reason in reasons.items():
        with pytest.raises(UsageError, match=reason):
            get_system(name)
    assert "raw" not in module_names()
    assert get_system("stid").reference != "stid.py"
    shown = CliRunner().invoke(app, ["systems", "list"])
    assert (shown.exit_code, "my-ridge" in shown.output) == (0, True)


@pytest.mark.parametrize(
    "source",
    ["# -*- coding: latin-1 -*-\n# é\n".encode("latin-1") + PLAIN.encode(), b"\xef\xbb\xbf" + PLAIN.encode()],
    ids=["coding cookie", "byte order mark"],
)
def test_a_file_is_read_as_python_reads_it_and_saved_as_it_is(source: bytes, panel: Panel, tmp_path: Path) -> None:
    (tmp_path / "my_ridge.py").write_bytes(source)
    system = get_system(own.install(tmp_path / "my_ridge.py", built_in()))
    folder = Forecaster("my-ridge", panel.problem, system.build(panel.problem), {}).save(tmp_path / "model")
    assert (folder / "system.py").read_bytes() == source
    assert Forecaster.load(folder).trainable


def test_what_is_saved_is_what_was_trained_whatever_became_of_its_file(panel: Panel, tmp_path: Path) -> None:
    join(tmp_path, PLAIN)
    module = fit(get_system("my-ridge"), panel, BRIEF, device="cpu", progress=False).module
    window = panel.arrays.gather(panel.origins("test")[:3], panel.problem)
    trained = Forecaster("my-ridge", panel.problem, module, {})
    expected = trained.forecast(window).values
    join(tmp_path, PLAIN.replace("self.map(x", "-self.map(x"))
    loaded = Forecaster.load(trained.save(tmp_path / "edited"))
    assert torch.equal(loaded.forecast(window).values, expected)
    (own.folder() / "my_ridge.py").unlink()
    again = Forecaster.load(loaded.save(tmp_path / "deleted"))
    assert torch.equal(again.forecast(window).values, expected)


def test_what_a_file_sets_for_the_process_ends_with_its_import(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STFM_PROBE", "mine")

    def state() -> tuple[object, ...]:
        torch_state = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
        return (*torch_state, torch.get_rng_state().tolist(), Path.cwd(), dict(os.environ))

    before = state()
    text = """\
import os, torch
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.manual_seed(7)
os.chdir("/")
del os.environ["STFM_PROBE"]
os.environ["STFM_HOME"] = os.environ["STFM_NEW"] = "/elsewhere"
"""
    join(tmp_path, text + PLAIN)
    assert state() == before
    with pytest.raises(UsageError, match="cannot be imported"):
        join(tmp_path, text + "raise SystemExit\n", "broken.py")
    assert state() == before
    assert fit(get_system("dlinear"), panel, BRIEF, device="cpu", progress=False).curve


def test_a_second_name_for_a_class_is_not_a_second_model(tmp_path: Path) -> None:
    join(tmp_path, PLAIN + "Other = Ridge\n")
    assert get_system("my-ridge").backbone == "Ridge"
    join(tmp_path, PLAIN + PLAIN.replace("Ridge", "Helper") + "Model = Ridge\n")
    assert get_system("my-ridge").backbone == "Ridge"


def test_replacing_a_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "stfm")
    for text, said in [(PLAIN, "joins as"), (PLAIN, "joins as"), (PLAIN + "x = 1\n", "replaces another file as")]:
        caplog.clear()
        join(tmp_path, text)
        assert f"my_ridge.py {said} the system 'my-ridge'" in caplog.text
