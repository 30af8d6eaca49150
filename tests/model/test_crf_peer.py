"""The CRF without constraints against pytorch-crf."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertkit.model.crf import Crf

torchcrf = pytest.importorskip("torchcrf", reason="pytorch-crf is not installed")

SHAPES = [([7, 7, 7], 9), ([12, 1, 5, 9, 12, 2], 5), ([1], 3), ([30, 17], 31)]


def padded(x: Tensor, counts: list[int]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(x.split(counts)), batch_first=True)


@pytest.mark.parametrize(("counts", "c"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_pytorch_crf(counts: list[int], c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(c)
    theirs = torchcrf.CRF(c, batch_first=True).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(10)
    ours = Crf(c).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    emissions = (3 * torch.randn(sum(counts), c, dtype=dtype)).requires_grad_()
    tags = torch.randint(c, (sum(counts),))
    mask = padded(torch.ones(sum(counts), dtype=torch.bool), counts)

    found = ours.log_likelihood(emissions, tags, torch.tensor(counts))
    wanted = theirs(padded(emissions, counts), padded(tags, counts), mask, reduction="none")
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    weights = torch.linspace(-1, 1, len(counts), dtype=dtype)
    grads = [
        torch.autograd.grad(
            (values * weights).sum(),
            [emissions, *module.parameters()],
            allow_unused=True,
            materialize_grads=True,
        )
        for values, module in ((found, ours), (wanted, theirs))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)

    best = ours.decode(emissions, torch.tensor(counts)).split(counts)
    assert [tags.tolist() for tags in best] == theirs.decode(padded(emissions, counts), mask)
