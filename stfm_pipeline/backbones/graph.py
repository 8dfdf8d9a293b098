"""Diffusion over graphs: a walk along given edges, a learned adjacency, and their convolution.

Supports act on (t, n, m), every step apart: a step's operands then stay in the cache. Measured at METR-LA's size (207
nodes, 1722 edges, 24576 columns, one thread), a sparse product takes 8 ms, a dense one 27 ms, and a gather and scatter
of messages, the default of message-passing libraries, 304 ms. torch-geometric's own sparse product is the one used
here and no faster, but takes two seconds to import; the tests compare with its message passing instead. Per cell of
the matrix the dense product is seven times cheaper, hence `DENSE_SHARE`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

DENSE_SHARE = 1 / 8
DENSE_NODES = 1024
GROUPS = 32
SPARSE_DEVICES = ("cpu", "cuda")
WAYS, PARTS = ("ahead", "back"), ("pointer", "cols", "share")

Support = Callable[[Tensor, Tensor], Tensor]
"""(base, x) -> base + P x, all of them (t, n, m)."""


class Transition(nn.Module):
    """A step of a random walk along the given edges, P = D^-1 A, or against them, D^-1 A^T.

    What arrives at a node is the mean over the nodes that its edges lead to, weighted by the edges (0 or more); a node
    without edges gets 0. Weights of parallel edges add up. Shapes: base and x (t, n, m) -> base + P x (t, n, m).
    """

    def __init__(
        self, edge_index: Int[Tensor, "2 k"], edge_weight: Float[Tensor, " k"], n: int, reverse: bool = False
    ) -> None:
        super().__init__()
        rows, cols = edge_index.flip(0) if reverse else edge_index
        degree = edge_weight.new_zeros(n).index_add_(0, rows, edge_weight)[rows]
        share = torch.where(degree > 0, edge_weight / degree, 0.0)
        walk = torch.sparse_coo_tensor(torch.stack([rows, cols]), share, (n, n), check_invariants=True).coalesce()
        self.dense = walk._nnz() > DENSE_SHARE * n * n
        if self.dense:
            self._hold(matrix=walk.to_dense())
        else:
            for way, matrix in zip(WAYS, (walk, walk.T.coalesce()), strict=True):
                rows = _compressed(matrix)
                parts = (rows.crow_indices(), rows.col_indices(), rows.values())
                self._hold(**{f"{way}_{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)})

    def _hold(self, **tensors: Tensor) -> None:
        # The edges belong to the problem, which is saved with every model, so they are not saved again.
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, base: Float[Tensor, "t n m"], x: Float[Tensor, "t n m"]) -> Float[Tensor, "t n m"]:
        if self.dense:
            return _add_dense(base, self.get_buffer("matrix"), x)
        parts = (self.get_buffer(f"{way}_{part}") for way in WAYS for part in PARTS)
        out: Tensor = _Walk.apply(base, x, *parts)  # type: ignore[no-untyped-call]
        return out


def _compressed(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # Said once a process, and here rather than in the first forward pass.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return matrix.to_sparse_csr()


class _Walk(torch.autograd.Function):
    """base + P x with a sparse P. The gradient is a product with its transpose, which is at hand by rows as well."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts[3:])
        return _add_sparse(base, x, *parts[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad, _add_sparse(None, grad, *ctx.saved_tensors), *(None,) * 6)


def _add_sparse(base: Tensor | None, x: Tensor, pointer: Tensor, cols: Tensor, share: Tensor) -> Tensor:
    n, share = x.shape[1], share.to(x.dtype)
    if x.device.type not in SPARSE_DEVICES:
        rows = torch.repeat_interleave(torch.arange(n, device=x.device), pointer.diff())
        return (torch.zeros_like(x) if base is None else base).index_add(1, rows, x[:, cols] * share[:, None])
    matrix = torch.sparse_csr_tensor(pointer, cols, share, (n, n), check_invariants=False)
    out = torch.empty_like(x)
    for t, step in enumerate(x):
        # On the CPU the reducing product is the quicker one.
        product = torch.sparse.mm(matrix, step, "sum") if x.device.type == "cpu" else matrix @ step
        if base is None:
            out[t] = product
        else:
            torch.add(base[t], product, out=out[t])
    return out


def _add_dense(base: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    return torch.baddbmm(base, matrix.expand(len(x), -1, -1), x)


class SelfAdaptive(nn.Module):
    """An adjacency learned from node embeddings alone (Wu et al., IJCAI 2019): softmax(relu(E1 E2)), rows sum to 1.

    It is dense by nature. Above `DENSE_NODES` nodes it is a product of two distributions instead, over `GROUPS` groups
    per node and over nodes per group, and never multiplied out: rows sum to 1 as well, nodes look at weighted groups,
    and cost and memory grow with n.
    """

    def __init__(self, n: int, size: int = 10, factored: bool | None = None) -> None:
        super().__init__()
        self.factored = n > DENSE_NODES if factored is None else factored
        width = GROUPS if self.factored else size
        self.source = nn.Parameter(torch.randn(n, width))
        self.target = nn.Parameter(torch.randn(width, n))

    def forward(self) -> Support:
        """The support of the present embeddings, made once a pass for all layers."""
        if self.factored:
            groups, members = self.source.softmax(dim=1), self.target.softmax(dim=1)
            return lambda base, x: _add_dense(base, groups, torch.bmm(members.expand(len(x), -1, -1), x))
        adjacency = F.relu(self.source @ self.target).softmax(dim=1)
        return lambda base, x: _add_dense(base, adjacency, x)


class DiffusionConv(nn.Module):
    """W_0 x + the sum over supports P and k = 1..order of P^k x W_Pk (Li et al., ICLR 2018).

    Weights come before walks, P(x W_1 + P(x W_2)), so that nothing wider than x is ever held.
    Shapes: (t, n, b, d) -> (t, n, b, d).
    """

    def __init__(self, width: int, supports: int, order: int = 2) -> None:
        super().__init__()
        self.order = order
        self.terms = nn.Linear((1 + supports * order) * width, width)

    def forward(self, x: Float[Tensor, "t n b d"], supports: Sequence[Support]) -> Float[Tensor, "t n b d"]:
        own, *terms = torch.split(self.terms.weight, x.shape[-1], dim=1)
        out = F.linear(x, own, self.terms.bias).flatten(2)
        for i, support in enumerate(supports):
            *nearer, inner = (F.linear(x, w).flatten(2) for w in terms[i * self.order : (i + 1) * self.order])
            for term in reversed(nearer):
                inner = support(term, inner)
            out = support(out, inner)
        return out.view_as(x)
