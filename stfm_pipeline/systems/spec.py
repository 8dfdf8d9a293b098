"""What a system says about itself: the survey's taxonomy, what it may look at, how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

if TYPE_CHECKING:
    from torch import nn

    from stfm_pipeline.windows import Problem

Branch = Literal["baseline", "primitive", "transferred"]
Dependencies = Literal["temporal", "spatial", "both"]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Training:
    """Gradient training. The survey's defaults (batch 32, learning rate 1e-4, AdamW) where a system states none.

    `precision` is that of the training steps where the device runs it natively; say bf16 only where it was measured
    to help.
    """

    learning_rate: Size = 1e-4
    batch_size: Annotated[int, Field(ge=1)] = 32
    weight_decay: Size = 1e-4
    clip: Size = 5.0
    side_dropout: Share = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class System:
    """A named system: `build(problem)` gives any `torch.nn.Module` whose forward maps `Inputs` to (b, h, n, c).

    A module may return `(forecast, fallback)` instead, where fallback marks cells that it had no value of its own for.
    Without `training`, the module has a method `fit(panel)` that sets its buffers from the training part (and may
    choose among declared candidates on val).
    """

    name: str
    title: str
    summary: str
    reference: str
    branch: Branch
    objective: str
    backbone: str
    dependencies: Dependencies
    build: Callable[[Problem], nn.Module]
    kinds: tuple[str, ...] = ("graph", "grid")
    tasks: tuple[str, ...] = ("forecasting",)
    needs: tuple[str, ...] = ()
    training: Training | None = None

    @property
    def key(self) -> str:
        """The name as an identifier."""
        return self.name.replace("-", "_")

    def module(self, problem: Problem) -> nn.Module:
        """What is trained and asked: the module as built, or shown how far values are from what is usual.

        Baselines and closed forms see the values themselves.
        """
        built = self.build(problem)
        if "climatology" not in problem.tensors or self.training is None or self.branch == "baseline":
            return built
        from stfm_pipeline.backbones.anomaly import Anomaly

        return Anomaly(built, problem)

    def describe(self) -> dict[str, Any]:
        """Facts for listings, without the code."""
        keep = ("name", "title", "summary", "reference", "branch", "objective", "backbone", "dependencies")
        row: dict[str, Any] = {k: getattr(self, k) for k in keep}
        return {**row, "kinds": list(self.kinds), "tasks": list(self.tasks), "needs": list(self.needs)}
