"""A Python file with a plain torch module joins as a system, and its model answers where the file is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stfm_pipeline.errors import UsageError
from stfm_pipeline.experiment import training_plan
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems import own
from stfm_pipeline.systems.catalog import all_systems, built_in, get_system, module_names
from stfm_pipeline.systems.spec import Training
from stfm_pipeline.train import Budget, fit
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
