"""The fit loop and the precision of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stfm_pipeline import train
from stfm_pipeline.errors import UsageError
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs, hide, masked_loss
from stfm_pipeline.train import Budget, Fitted, fit, pick_precision
from stfm_pipeline.windows import Panel, load_panel

BRIEF = Budget("brief", epochs=3, patience=3, seeds=1, stride=4)
BF16 = Training(learning_rate=2e-3, batch_size=8, precision="bf16")


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


def fitted(panel: Panel, **options: object) -> Fitted:
    return fit(get_system("stid"), panel, BRIEF, device="cpu", progress=False, **options)  # type: ignore[arg-type]


def loss(module: nn.Module, panel: Panel, part: str, stride: int = 1, side: tuple[str, ...] = ()) -> float:
    """Mean over windows of the loss of batches of 32, in fp32."""
    total, windows = 0.0, 0
    weight = panel.problem.tensors["weight"]
    for origins, window in panel.batches(panel.origins(part)[::stride], 32, side):  # type: ignore[arg-type]
        with torch.inference_mode():
            inputs, target = hide(window, panel.problem.look_back)
            total += float(masked_loss(module(inputs), target, panel.problem.loss, weight)) * len(origins)
        windows += len(origins)
    return total / windows


@pytest.mark.parametrize(
    ("asked", "wish", "native", "expected"),
    [
        ("auto", "bf16", True, "bf16"),
        ("auto", "bf16", False, "fp32"),
        ("auto", "fp32", True, "fp32"),
        ("fp32", "bf16", True, "fp32"),
        ("bf16", "fp32", False, "bf16"),
    ],
)
def test_the_precision_is_the_one_asked_for_or_what_the_device_does_natively(
    asked: str, wish: str, native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "native_bf16", lambda device: native)
    assert pick_precision(asked, wish, "cpu") == expected


def test_an_unknown_precision_is_refused(panel: Panel) -> None:
    with pytest.raises(UsageError, match="'fp16' is not known"):
        fitted(panel, precision="fp16")


class Watched(nn.Module):
    """Notes in which type its layer answered."""

    def __init__(self, problem: object) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 12)
        self.seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def forward(self, inputs: Inputs) -> torch.Tensor:
        out: torch.Tensor = self.layer(inputs.x.movedim(1, -1))
        self.seen[self.training].add(out.dtype)
        return out.movedim(-1, 1)


def plain(training: Training) -> System:
    facts = dict.fromkeys(("title", "summary", "reference", "objective", "backbone"), "x")
    return System(
        name="plain", branch="primitive", dependencies="temporal", build=Watched, training=training, **facts
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(("precision", "narrow"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_only_training_steps_are_narrow(precision: str, narrow: torch.dtype, panel: Panel) -> None:
    module = fit(plain(BF16), panel, BRIEF, device="cpu", progress=False, precision=precision).module  # type: ignore[arg-type]
    assert isinstance(module, Watched)
    assert module.seen == {True: {narrow}, False: {torch.float32}}
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_a_system_that_wishes_for_bf16_trains_in_fp32_where_the_device_is_not_made_for_it(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "native_bf16", lambda device: False)
    result = fitted(panel, training=BF16)
    assert result.precision == "fp32"
    assert result.curve == fitted(panel, training=BF16, precision="fp32").curve


def test_bf16_steps_learn_what_fp32_steps_learn_and_are_judged_in_fp32(panel: Panel, tmp_path: Path) -> None:
    wide, narrow = (fitted(panel, training=BF16, precision=p) for p in ("fp32", "bf16"))
    assert (wide.precision, narrow.precision) == ("fp32", "bf16")
    assert narrow.curve != wide.curve
    assert narrow.val_loss == pytest.approx(wide.val_loss, rel=0.03)
    assert narrow.val_loss == pytest.approx(loss(narrow.module, panel, "val", side=("past", "ahead")), rel=1e-5)
    forecaster = Forecaster("stid", panel.problem, narrow.module, {})
    window = panel.arrays.gather(panel.origins("test")[:4], panel.problem, ("past", "ahead"))
    answer = forecaster.forecast(window).values
    assert answer.dtype == torch.float32
    assert torch.equal(Forecaster.load(forecaster.save(tmp_path / "model")).forecast(window).values, answer)


def test_a_killed_training_in_bf16_resumes_and_ends_where_it_would_have(panel: Panel, tmp_path: Path) -> None:
    whole = fitted(panel, training=BF16, precision="bf16", work=tmp_path / "whole")

    def kill(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fitted(panel, training=BF16, precision="bf16", work=tmp_path / "cut", report=kill)
    resumed = fitted(panel, training=BF16, precision="bf16", work=tmp_path / "cut")
    assert resumed.curve == whole.curve
    pairs = zip(resumed.module.state_dict().values(), whole.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_training_loss_is_the_mean_over_the_epochs_windows(panel: Panel) -> None:
    frozen = Training(learning_rate=0.0, weight_decay=0.0)
    result = fit(plain(frozen), panel, BRIEF, device="cpu", progress=False)
    one, two, three = (row["train_loss"] for row in result.curve)
    # Batches are drawn anew each epoch, and channels weigh by what a batch has of them: equal up to that.
    expected = loss(result.module, panel, "train", BRIEF.stride)
    assert [one, two, three] == pytest.approx([expected] * 3, rel=1e-3)
