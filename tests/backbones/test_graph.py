"""Walks, learned adjacencies and their convolution against explicit matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stfm_pipeline.backbones import graph
from stfm_pipeline.backbones.graph import DiffusionConv, SelfAdaptive, Transition
from stfm_pipeline.backbones.graph_wavenet import GatedConv, taps

N = 9


def some_edges() -> tuple[Tensor, Tensor]:
    """Asymmetric, weighted, two side by side. Node 3 only receives, node 5 only sends, 7 and 8 stand alone."""
    ends = [(0, 1), (0, 2), (1, 0), (2, 3), (4, 3), (5, 4), (5, 6), (6, 0), (0, 1)]
    weights = [1.0, 3.0, 0.5, 2.0, 0.25, 1.0, 4.0, 0.1, 2.0]
    return torch.tensor(ends).T, torch.tensor(weights)


def walks() -> tuple[Tensor, Tensor]:
    """D^-1 A and D^-1 A^T of `some_edges`, written out cell by cell."""
    matrix = torch.zeros(N, N)
    for (source, target), weight in zip(some_edges()[0].T.tolist(), some_edges()[1].tolist(), strict=True):
        matrix[source, target] += weight
    out = []
    for a in (matrix, matrix.T):
        walk = torch.zeros(N, N)
        for i in range(N):
            if a[i].sum() > 0:
                walk[i] = a[i] / a[i].sum()
        out.append(walk)
    return out[0], out[1]


@pytest.fixture(params=["sparse", "dense", "other device"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(graph, "DENSE_SHARE", 0.0 if request.param == "dense" else 1.0)
    if request.param == "other device":
        monkeypatch.setattr(graph, "SPARSE_DEVICES", ())
    return str(request.param)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_walk_is_the_normalised_matrix_and_its_gradient_the_transpose(form: str, reverse: bool) -> None:
    support = Transition(*some_edges(), N, reverse=reverse).double()
    assert support.dense == (form == "dense")
    walk = walks()[reverse].double()
    base, x = (torch.randn(4, N, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = support(base, x)
    assert torch.allclose(out, base + walk @ x, atol=1e-6)
    grad = torch.randn_like(out)
    of_base, of_x = torch.autograd.grad(out, (base, x), grad)
    assert torch.equal(of_base, grad)
    assert torch.allclose(of_x, walk.T @ grad, atol=1e-6)


def test_a_node_without_edges_gets_zero(form: str) -> None:
    x = torch.randn(2, N, 3)
    ahead, against = (Transition(*some_edges(), N, reverse=r)(torch.zeros_like(x), x) for r in (False, True))
    assert not ahead[:, [3, 7, 8]].any()
    assert not against[:, [5, 7, 8]].any()
    assert ahead[:, 0].all()
    silent = Transition(some_edges()[0], torch.zeros(9), N)
    assert not silent(torch.zeros_like(x), x).any()


def test_an_edge_to_a_node_that_is_not_there_is_refused() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        Transition(torch.tensor([[0], [N]]), torch.ones(1), N)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_walk_agrees_with_torch_geometric() -> None:
    from torch_geometric.nn import SimpleConv

    index, weight = some_edges()
    x = torch.randn(N, 4)
    degree = torch.zeros(N).index_add_(0, index[1], weight)
    expected = SimpleConv(aggr="sum", combine_root=None)(x, index, weight / degree[index[1]])
    out = Transition(index, weight, N, reverse=True)(torch.zeros(1, N, 4), x[None])
    assert torch.allclose(out[0], expected, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_convolution_is_a_sum_over_powers_of_every_support(form: str, order: int) -> None:
    width = 4
    learned = SelfAdaptive(N)
    adjacency = torch.relu(learned.source @ learned.target).softmax(dim=1)
    conv = DiffusionConv(width, supports=3, order=order)
    x = torch.randn(3, N, 2, width)
    given = [Transition(*some_edges(), N, reverse=r) for r in (False, True)]
    blocks = iter(conv.terms.weight.split(width, dim=1))
    expected = x @ next(blocks).T + conv.terms.bias
    for matrix in (*walks(), adjacency):
        for k in range(1, order + 1):
            hops = torch.einsum("ij,tjbd->tibd", torch.linalg.matrix_power(matrix, k), x)
            expected = expected + hops @ next(blocks).T
    assert torch.allclose(conv(x, [*given, learned()]), expected, atol=1e-5)


def test_without_any_support_a_node_sees_itself_alone() -> None:
    conv = DiffusionConv(4, supports=0)
    x = torch.randn(3, N, 2, 4)
    assert torch.equal(conv(x, []), conv.terms(x))


@pytest.mark.parametrize("factored", [False, True])
def test_a_learned_adjacency_has_rows_that_sum_to_one_and_a_gradient(factored: bool) -> None:
    learned = SelfAdaptive(N, factored=factored)
    identity = torch.eye(N)[None]
    matrix = learned()(torch.zeros_like(identity), identity)[0]
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(dim=1), torch.ones(N), atol=1e-5)
    if not factored:
        assert torch.allclose(matrix, torch.relu(learned.source @ learned.target).softmax(dim=1))
    matrix.square().sum().backward()
    assert learned.source.grad.any()
    assert learned.target.grad.any()


def test_a_large_graph_is_never_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    n, k = 20_000, 40_000
    ends = torch.stack([torch.arange(k) % n, (torch.arange(k) * 7 + 1) % n])
    support, learned = Transition(ends, torch.ones(k), n), SelfAdaptive(n)
    assert not support.dense
    assert learned.factored
    held = sum(t.numel() for m in (support, learned) for t in (*m.buffers(), *m.parameters()))
    assert held < 100 * n
    x = torch.randn(1, n, 2)
    out = learned()(support(x, x), x)
    assert out.isfinite().all()


@pytest.mark.parametrize("dilations", [(1, 2) * 4, (1, 2, 4, 8), (1,), (2, 1, 1)])
def test_pruned_layers_give_the_last_step_of_the_whole_convolution(dilations: tuple[int, ...]) -> None:
    width, n, b = 3, 2, 2
    layers = nn.ModuleList(GatedConv(width, t) for t in taps(dilations))
    whole = torch.randn(1 + sum(dilations), n, b, width)
    pruned = whole
    for layer, dilation in zip(layers, dilations, strict=True):
        pruned, late = layer(pruned)
        assert late.shape == pruned.shape
        both = torch.cat([whole[:-dilation], whole[dilation:]], dim=-1)
        whole = torch.tanh(layer.filter(both)) * torch.sigmoid(layer.gate(both))
    assert len(pruned) == len(whole) == 1
    assert torch.allclose(pruned, whole, atol=1e-6)


def test_dilations_that_skip_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="dilations 3, 1 skip steps"):
        taps((3, 1))


def test_doubling_dilations_halve_the_steps() -> None:
    assert [len(range(16)[late]) for _, late in taps((1, 2, 4, 8))] == [8, 4, 2, 1]
