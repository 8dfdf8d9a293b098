"""The fit loop: Lightning drives; checkpoints are safetensors and JSON, and resume after a kill."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.memory import peak_mb
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import check_forecast, forecast_of, hide, masked_loss
from stfm_pipeline.windows import Panel, Window, drop_side_information

log = logging.getLogger("stfm")


@dataclass(frozen=True)
class Budget:
    """How much training a run may spend: epochs at most, patience in epochs, seeds, share of training windows."""

    name: str
    epochs: int
    patience: int
    seeds: int
    stride: int


BUDGETS = {
    "quick": Budget("quick", epochs=6, patience=2, seeds=1, stride=2),
    "standard": Budget("standard", epochs=20, patience=4, seeds=3, stride=1),
    "full": Budget("full", epochs=60, patience=8, seeds=5, stride=1),
}


@dataclass(frozen=True)
class Fitted:
    """A trained module with what it cost and how it got there; `precision` is that of its training steps."""

    module: nn.Module
    seconds: float
    peak_mb: float
    epochs: int
    curve: list[dict[str, float]]
    val_loss: float
    precision: str = "fp32"


def pick_device(device: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU; a named device that is not there is an error."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there.get(device, False):
        raise StfmError(f"device '{device}' is not available", found=", ".join(d for d in there if there[d]))
    return device


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices itself; elsewhere bf16 is emulated, and slower than fp32."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def pick_precision(asked: str, wish: str, device: str) -> str:
    """`auto` takes what the system wishes for where the device is made for it, else fp32; a named one is used."""
    if asked not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision '{asked}' is not known", expected="auto, fp32 or bf16")
    if asked == "auto":
        return "bf16" if wish == "bf16" and native_bf16(device) else "fp32"
    return asked


class Bf16Steps(Precision):
    """Training steps in bf16: each weight is cast once a step and activations stay narrow.

    Master weights, gradients, optimiser and loss stay fp32, and so does validation: what is ranked on val, saved and
    asked for forecasts is the fp32 module.
    """

    precision: Literal["bf16-mixed"] = "bf16-mixed"

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            yield

    @contextmanager
    def val_step_context(self) -> Generator[None, None, None]:
        yield


def flatten(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON with every tensor of a checkpoint moved into `tensors` and named by its path."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous().clone()
        return {"__tensor__": path}
    if isinstance(tree, dict):
        return {"__dict__": [[k, flatten(v, tensors, f"{path}/{k}")] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        return [flatten(v, tensors, f"{path}/{i}") for i, v in enumerate(tree)]
    if isinstance(tree, Path):
        return str(tree)
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise StfmError(f"a checkpoint holds a {type(tree).__name__} at {path}", expected="tensors and JSON values")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    if isinstance(tree, list):
        return [unflatten(v, tensors) for v in tree]
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tensors[tree["__tensor__"]]
        return {k: unflatten(v, tensors) for k, v in tree["__dict__"]}
    return tree


class SafeCheckpointIO(CheckpointIO):
    """A checkpoint is a folder with `tensors.safetensors` and `state.json`, put in place by one rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        state = flatten(checkpoint, tensors)
        save_file(tensors, scratch / "tensors.safetensors")
        (scratch / "state.json").write_text(json.dumps(state))
        self.remove_checkpoint(target)
        scratch.rename(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        folder = Path(path)
        tensors = load_file(folder / "tensors.safetensors")
        checkpoint: dict[str, Any] = unflatten(json.loads((folder / "state.json").read_text()), tensors)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class Batches:
    """Windows of a part as an iterable of batches; a shuffled order depends on seed and epoch alone, so it resumes."""

    def __init__(self, panel: Panel, origins: Tensor, size: int, needs: tuple[str, ...], seed: int | None) -> None:
        self.panel, self.origins, self.size, self.needs, self.seed = panel, origins, size, needs, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.origins) // self.size)

    def __iter__(self) -> Iterator[Window]:
        order = self.origins
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
            order = order[torch.randperm(len(order), generator=generator)]
        for _, window in self.panel.batches(order, self.size, self.needs):
            yield window


class Fit(pl.LightningModule):
    """A system's module under its objective. Any module that maps `Inputs` to (b, h, n, c) will do."""

    weight: Tensor

    def __init__(self, module: nn.Module, panel: Panel, training: Training, name: str) -> None:
        super().__init__()
        self.module, self.rule, self.name = module, training, name
        self.look_back, self.kind = panel.problem.look_back, panel.problem.loss
        self.register_buffer("weight", panel.problem.tensors["weight"], persistent=False)
        self._loss, self._windows = torch.zeros(()), 0

    @property
    def train_loss(self) -> float:
        """Mean over the windows of the epoch so far."""
        return float(self._loss / self._windows)

    def training_step(self, window: Window, index: int) -> Tensor:
        inputs, target = hide(drop_side_information(window, self.rule.side_dropout), self.look_back)
        prediction, _ = forecast_of(self.module(inputs), target, self.name)
        loss = masked_loss(prediction, target, self.kind, self.weight)
        # `self.log` would take a third of the loop's own time, and for this sum alone.
        self._loss = self._loss + loss.detach() * len(inputs.x)
        self._windows += len(inputs.x)
        return loss

    def validation_step(self, window: Window, index: int) -> None:
        inputs, target = hide(window, self.look_back)
        prediction, _ = forecast_of(self.module(inputs), target, self.name)
        check_forecast(prediction, self.name)
        self.log("val_loss", masked_loss(prediction, target, self.kind, self.weight), batch_size=len(inputs.x))

    def transfer_batch_to_device(self, batch: Window, device: torch.device, index: int) -> Window:
        if device.type == "cpu":
            return batch
        return Window(**{k: v.to(device, non_blocking=True) for k, v in vars(batch).items()})

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=self.rule.learning_rate, weight_decay=self.rule.weight_decay, fused=True
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=self.rule.learning_rate / 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng: Tensor | None = checkpoint["rng"]

    def on_train_epoch_start(self) -> None:
        loader = self.trainer.train_dataloader
        assert isinstance(loader, Batches)
        loader.epoch = self.current_epoch
        self._loss, self._windows = torch.zeros((), device=self.device), 0
        if getattr(self, "_rng", None) is not None:
            torch.set_rng_state(self._rng)  # type: ignore[arg-type]
            self._rng = None


class Curve(Callback):
    """Learning curve: kept, handed to `report`, and said in a log line per epoch."""

    def __init__(self, name: str, report: Any) -> None:
        self.name, self.report = name, report
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics["val_loss"])
        row = {"epoch": float(trainer.current_epoch), "val_loss": value}
        self.rows.append(row)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        row = self.rows[-1]
        assert isinstance(module, Fit)
        row["train_loss"] = module.train_loss
        if self.report is not None:
            self.report(row)
        log.info("%s epoch %d: train %.4f, val %.4f", self.name, row["epoch"] + 1, row["train_loss"], row["val_loss"])


def fit(
    system: System,
    panel: Panel,
    budget: Budget,
    *,
    seed: int = 0,
    device: str = "auto",
    work: Path | None = None,
    report: Any = None,
    progress: bool | None = None,
    training: Training | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    weights: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """Build and fit a system on the training part, stopping early on val.

    `work` keeps a checkpoint per epoch and resumes from it after a kill. Closed-form systems call their own `fit`.
    `weights` are parameters to start from (see `misfit`) instead of the seed's own; what a module keeps of its problem
    stays the new one's. `precision` is that of the training steps: `auto` is the system's own wish where the device
    runs bf16 natively.
    On a CPU it uses torch's threads (`OMP_NUM_THREADS`): one is often faster than two where the batches are small.
    Raises `MetricError` on a forecast that is not finite or has another shape.
    """
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = system.module(panel.problem)
        rule = training or system.training
        if rule is None:
            module.fit(panel)  # type: ignore[operator]
            module.eval()
            return Fitted(module, time.perf_counter() - began, peak_mb(), 0, [], float("nan"))
        if weights is not None:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(weights[name])
        device = pick_device(device)
        chosen = pick_precision(precision, rule.precision, device)
        curve, val = _drive(system, module, panel, budget, rule, seed, device, chosen, work, report, progress)
    module.eval()
    return Fitted(module, time.perf_counter() - began, peak_mb(), len(curve), curve, val, chosen)


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why a module cannot start from these parameters, or None."""
    wanted, given = ({k: tuple(v.shape) for k, v in w.items()} for w in (dict(module.named_parameters()), weights))
    other = [k for k in sorted(wanted.keys() | given.keys()) if wanted.get(k) != given.get(k)]
    if not other:
        return None
    first = other[0]
    return f"its weights do not fit: {first} is {given.get(first, 'not there')}, now {wanted.get(first, 'not there')}"


def _drive(
    system: System,
    module: nn.Module,
    panel: Panel,
    budget: Budget,
    rule: Training,
    seed: int,
    device: str,
    precision: str,
    work: Path | None,
    report: Any,
    progress: bool | None,
) -> tuple[list[dict[str, float]], float]:
    import tempfile

    terminal = sys.stderr.isatty() if progress is None else progress
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder = work or Path(tempfile.mkdtemp(prefix="stfm-fit-"))
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    keep = ModelCheckpoint(
        dirpath=folder, filename="best", monitor="val_loss", save_top_k=1, enable_version_counter=False
    )
    resume = ModelCheckpoint(
        dirpath=folder, filename="last", monitor=None, save_top_k=1, enable_version_counter=False, every_n_epochs=1
    )
    curve = Curve(f"{panel.problem.dataset} {system.name} seed {seed}", report)
    if last.is_dir():
        log.info("%s goes on from its last checkpoint", curve.name)
    bars: list[Callback] = []
    if terminal:
        from lightning.pytorch.callbacks import RichProgressBar

        bars.append(RichProgressBar(leave=False))
    wrapped = Fit(module, panel, rule, system.name)
    origins = panel.origins("train")[:: budget.stride]
    train = Batches(panel, origins, rule.batch_size, system.needs, seed)
    val = Batches(panel, panel.origins("val"), 4 * rule.batch_size, system.needs, None)
    with warnings.catch_warnings():
        # Batches are gathered from memory faster than worker processes could hand them over (STACK: 3 to 20 times).
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=budget.epochs,
            logger=False,
            plugins=[SafeCheckpointIO(), *([Bf16Steps(device)] if precision == "bf16" else [])],
            callbacks=[
                curve,
                EarlyStopping("val_loss", patience=budget.patience, check_finite=True),
                keep,
                resume,
                *bars,
            ],
            enable_progress_bar=terminal,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=rule.clip,
        )
        trainer.fit(wrapped, train, val, ckpt_path=str(last) if last.is_dir() else None, weights_only=True)
    state = SafeCheckpointIO().load_checkpoint(best)["state_dict"]
    wrapped.load_state_dict(state)
    wrapped.cpu()
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return curve.rows, float(keep.best_model_score) if keep.best_model_score is not None else float("nan")
