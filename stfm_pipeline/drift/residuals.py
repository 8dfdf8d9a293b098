"""The champion's errors, block by block, as a statistic that can drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stfm_pipeline.drift.blocks import FEWEST_CELLS, Record, Track

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.windows import Panel

BATCH = 64


def residual_tracks(record: Record, panel: Panel, champion: Forecaster) -> list[Track]:
    """Logarithm of the mean absolute error per block: whether it rose, and whether it changed.

    Windows do not overlap, and are shown as the champion's own split made it see. Val and gate, which did not train it,
    are the reference.
    """
    import torch

    from stfm_pipeline.forecaster import truth

    p = panel.problem
    start, stop = panel.parts["val"].start, panel.parts["gate"].stop
    origins = torch.arange(max(start, p.look_back), record.blocks * record.block - p.horizon + 1, p.horizon)
    total = np.zeros((record.blocks, p.n, p.c))
    count = np.zeros((record.blocks, p.n, p.c))
    std = p.tensors["std"]
    for chunk, window in panel.batches(origins, BATCH, ("past", "ahead"), champion.problem):
        target, observed = truth(window, champion.problem)
        error = ((champion.forecast(window).values - target).abs() / std * observed).numpy()
        block = ((chunk[:, None] + torch.arange(p.horizon)) // record.block).numpy().ravel()
        np.add.at(total, block, error.reshape(-1, p.n, p.c))
        np.add.at(count, block, observed.numpy().reshape(-1, p.n, p.c))
    member = record.member.astype(np.float64)
    cells, sums = (np.einsum("gn,bnc->bgc", member, a) for a in (count, total))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where((cells >= FEWEST_CELLS) & (sums > 0), np.log(sums / cells), np.nan)
    reference = slice(-(-start // record.block), stop // record.block)
    least, first = float(np.log(1.1)), -(-stop // record.block)
    return [
        Track("errors rose", values, reference, first, least, worse=True, ratio=True),
        Track("errors changed", values, reference, first, least, ratio=True),
    ]
