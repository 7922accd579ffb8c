"""What a network takes, found without running it, against a real pass and counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.condition import Condition
from fewstep.networks import build
from fewstep.networks.kernels import attend
from fewstep.planning.footprint import KeptBytes, bytes_of, measure_footprint

NETWORKS = {
    "unet": ({"kind": "small-unet", "channels": 1, "width": 8, "depth": 2, "classes": 3}, (1, 8, 8)),
    "mlp": ({"kind": "residual-mlp", "dim": 2, "width": 16, "depth": 2, "classes": 3}, (2,)),
}


def call(network, shape, rows):
    # Class probabilities: what is on the meta device has no values to be checked against a range.
    return network(torch.zeros(rows, *shape), torch.zeros(rows), Condition(labels=torch.zeros(rows, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_without_computing_is_what_is_kept(name):
    description, shape = NETWORKS[name]
    with torch.device("meta"):
        network = build(description)
        found = measure_footprint(network, lambda rows: call(network, shape, rows))
    real = build(description)
    kept = []
    for rows in (3, 5):
        with KeptBytes(real) as watched:
            emitted = call(real, shape, rows)
            kept.append(watched.now)
        assert watched.peak == watched.now
        emitted.sum().backward()
        assert watched.now == 0
    assert found.kept == (kept[1] - kept[0]) / 2 > 0
    assert found.parameters == found.trained == sum(p.numel() for p in real.parameters())
    assert found.weights == bytes_of(real)


def test_counts_by_hand():
    """Two layers: 2 (3 x 5 + 5 x 4) operations; kept are the input, 3 numbers, and the activations,
    5, before and after the ReLU, of which torch keeps the result.
    """
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
        found = measure_footprint(network, lambda rows: network(torch.zeros(rows, 3)))
    assert found.operations == 2 * (3 * 5 + 5 * 4)
    assert found.kept == 4 * (3 + 5)
    assert found.parameters == 3 * 5 + 5 + 5 * 4 + 4
    assert found.largest == 4 * (5 * 4 + 4)


def test_frozen_weights_want_no_gradient():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)).requires_grad_(False)
        network[1].requires_grad_(True)
        found = measure_footprint(network, lambda rows: network(torch.zeros(rows, 3)))
    assert (found.trained, found.kept) == (5 * 4 + 4, 4 * 5)


def test_the_peak_is_of_what_is_alive_together():
    layer = nn.Linear(2, 3)
    with KeptBytes(layer) as kept:
        for _ in range(4):
            layer(torch.zeros(7, 2)).sum().backward()
        one = kept.peak
        together = [layer(torch.zeros(7, 2)) for _ in range(4)]
        assert (one, kept.peak) == (4 * 7 * 2, 4 * one)
        del together
        assert kept.now == 0


def test_a_tensor_that_is_saved_twice_counts_once():
    x = torch.ones(5, requires_grad=True)
    with KeptBytes() as kept:
        product = x * x
        assert kept.now == 5 * 4
        del product
    assert kept.now == 0


def test_attentions_operations_are_those_of_its_two_products():
    with torch.device("meta"):
        q = torch.zeros(2, 3, 16, 8)
        found = measure_footprint(nn.Identity(), lambda rows: attend(q[:rows], q[:rows], q[:rows]))
    assert found.operations == 2 * (2 * 3 * 16 * 16 * 8)


def test_a_derivative_keeps_nothing_after_its_backward_pass():
    """Forward-mode differentiation has the graph of the derivative as well, which goes with it."""
    layer, x = nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 2)), torch.ones(7, 2)
    with KeptBytes(layer) as kept:
        peaks = []
        for _ in range(3):
            estimate, slope = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
            del slope
            estimate.sum().backward()
            peaks.append(kept.peak)
            del estimate
            assert kept.now == 0
    assert len(set(peaks)) == 1
