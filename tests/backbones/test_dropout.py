from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stfm_pipeline.backbones.dropout import Dropout, ReluDropoutLinear
from stfm_pipeline.backbones.mlp import ResidualMLP

WIDTHS = [torch.float32, torch.bfloat16]


class ReluDropout(nn.Module):
    """dropout(relu(x)), through the layer with the identity as its weights; leaves `x` as it is."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        with torch.random.fork_rng():
            layer = ReluDropoutLinear(width, width, self.p).to(x.dtype).train(self.training)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        out: Tensor = layer(x.clone())
        return out


Kind = type[Dropout] | type[ReluDropout]


def near(share: float, p: float, count: int) -> bool:
    """Within five standard deviations of a binomial share."""
    return abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("p", [0.003, 0.15, 0.3, 0.5, 0.999])
def test_each_byte_of_a_word_drops_its_share_and_the_rest_is_scaled(kind: Kind, dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    out = kind(p)(torch.ones(1000, 1003, dtype=dtype)).flatten()
    rounded = max(1, min(255, round(p * 256))) / 256
    scale = torch.tensor(1 / (1 - rounded), dtype=dtype)
    assert set(out.unique().tolist()) == {0.0, float(scale)}
    for lane in range(8):
        cells = out[lane::8]
        assert near(float((cells == 0).float().mean()), rounded, len(cells)), lane
    assert abs(rounded - p) <= 1 / 256


@pytest.mark.parametrize("dtype", WIDTHS)
def test_cells_are_dropped_independently_of_each_other_and_of_the_last_call(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Dropout(0.5)
    first, second = ((layer(torch.ones(400, 512, dtype=dtype)) > 0).float() for _ in range(2))
    for a, b in [
        (first, second),
        (first[:, 1:], first[:, :-1]),
        (first[1:], first[:-1]),
        (first[:, 8:], first[:, :-8]),
    ]:
        assert near(float((a == b).float().mean()), 0.5, a.numel())


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_gradient_passes_where_the_value_passed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(37, 19, dtype=dtype).requires_grad_()
    grad = torch.randn(37, 19).to(dtype)
    out = Dropout(0.25)(x)
    out.backward(grad)
    kept = out != 0
    assert torch.equal(x.grad, torch.where(kept, grad * (1 / 0.75), 0))
    assert torch.equal(out.detach(), torch.where(kept, x.detach() * (1 / 0.75), 0))

    x.grad = None
    out = ReluDropout(0.25)(x)
    out.backward(grad)
    assert x.grad is not None
    # Here the weights are scaled, in their own precision.
    close = 2 * torch.finfo(dtype).eps
    assert torch.allclose(x.grad, torch.where(out > 0, grad / 0.75, 0), rtol=close, atol=0)
    assert torch.allclose(out, torch.where(out > 0, x / 0.75, 0), rtol=close, atol=0)
    assert near(float((out[x > 0] == 0).float().mean()), 0.25, int((x > 0).sum()))


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
def test_in_evaluation_and_at_zero_nothing_is_dropped(kind: Kind) -> None:
    x = torch.randn(50, 8)
    expected = x if kind is Dropout else x.relu()
    state = torch.get_rng_state()
    assert torch.equal(kind(0.5).eval()(x), expected)
    assert torch.equal(kind(0.0)(x), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
def test_the_global_generator_alone_decides(kind: Kind) -> None:
    layer, x = kind(0.5), torch.ones(64, 64)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 5), (2, 3, 7)])
def test_any_shape_layout_and_width_will_do(kind: Kind, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    spaced = torch.ones(*shape[:-1], 2 * shape[-1])[..., ::2]
    for x in (torch.ones(shape), spaced, torch.ones(3, 5).mT, torch.ones(shape, dtype=torch.float64)):
        out = kind(0.5)(x)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert set(out.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_that_makes_no_sense_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        Dropout(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_layer_is_its_formula_in_value_and_gradient(dtype: torch.dtype) -> None:
    """Also where dropout is torch's own, for widths that no mask is made for."""
    torch.manual_seed(0)
    layer, x = ResidualMLP(16, 0.5).to(dtype), torch.randn(5, 3, 16, dtype=dtype)
    first, last = (m for m in layer.modules() if isinstance(m, nn.Linear))

    def formula(x: Tensor) -> Tensor:
        return x + nn.functional.linear(ReluDropout(0.5).train(layer.training)(first(x)), last.weight, last.bias)

    before = x.clone()
    for mode in (True, False):
        layer.train(mode)
        grads = []
        for f in (layer, formula):
            one = x.clone().requires_grad_()
            layer.zero_grad()
            torch.manual_seed(3)
            f(one).square().sum().backward()
            grads.append([one.grad, *(p.grad for p in layer.parameters())])
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads, strict=True))
    assert torch.allclose(layer(x), x + nn.functional.linear(first(x).relu(), last.weight, last.bias))
    assert torch.equal(x, before)
