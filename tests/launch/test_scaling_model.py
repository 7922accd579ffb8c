"""The scaling model against what is known in closed form, against ``plan``, and against itself on
clusters where there is nothing to model.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from fewstep.errors import UserError
from fewstep.planning.cluster import Cluster
from fewstep.planning.plan import Plan, plan_on_gpus
from fewstep.planning.rehearsal import Rehearsal
from fewstep.planning.scaling import Block, ClusterLayout, Load, blocks_in_order, estimate, load_of, memory_of
from fewstep.planning.sketch import sketch
from fewstep.planning.timeline import Stretch, Task, bounds, pass_through, played
from fewstep.recipes import DistillRecipe, load_recipe

MODES = ("ddp", "fsdp")
FREE: dict[str, Any] = {"hop_inside": 0.0, "hop_between": 0.0}
LOAD = Load(
    blocks=tuple(Block(parameters, 10**11) for parameters in (10**7, 3 * 10**7, 2 * 10**7, 10**6)),
    trained=2.0,
    untrained=2.0,
    networks=2,
    state=10**9,
    largest=12 * 10**7,
    weights=4 * 61 * 10**6,
    activations={False: 4e8, True: 1e8},
    checkpoint=8 * 10**8,
)


def seconds(blocks: list[Stretch], trained: bool = False) -> float:
    return played(pass_through(blocks, trained))


# Two queues


@pytest.mark.parametrize(("compute", "gather"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_equal_blocks_hide_all_but_one(compute, gather):
    """Forward: g + (L - 1) max(c, g) + c, whichever is slower."""
    blocks = [Stretch(compute, 0.0, gather, 0.0)] * 7
    assert seconds(blocks) == gather + 6 * max(compute, gather) + compute


def test_the_backward_pass_where_computing_is_slower_hides_all_but_its_ends():
    """The first gather of each direction, and the last scatter."""
    blocks = [Stretch(3.0, 9.0, 1.0, 2.0)] * 5
    assert seconds(blocks, trained=True) == (1 + 15) + (1 + 45 + 2)


def test_the_backward_pass_where_exchanges_are_slower_is_their_sum_and_one_block():
    """The exchanges of the last block of the forward and of the first of the backward are waited
    for; what is computed meanwhile is free.
    """
    blocks = [Stretch(1.0, 2.0, 10.0, 20.0)] * 5
    forward, backward = 5 * 10 + 1, 5 * 30
    assert seconds(blocks, trained=True) == pytest.approx(forward + backward, abs=2)


def test_replicas_exchange_while_they_compute():
    """DDP gathers nothing, so that no block waits: computing, and the last block's exchange, or a
    first block and all exchanges.
    """
    assert seconds([Stretch(1.0, 2.0, 0.0, 1.5)] * 4, trained=True) == 4 + 8 + 1.5
    assert seconds([Stretch(1.0, 2.0, 0.0, 5.0)] * 4, trained=True) == 4 + 2 + 20


def test_a_long_exchange_of_replicas_holds_no_block_up():
    """The last block's, begun first: all others compute meanwhile."""
    assert seconds([*[Stretch(1.0, 2.0, 0.0, 0.0)] * 3, Stretch(1.0, 2.0, 0.0, 10.0)], trained=True) == 4 + 2 + 10


def test_the_backward_pass_begins_with_the_last_block():
    """Forward: both gathers.

    Backward: the last block's gather (4) and computing (1), behind which the first one's gather
    hides, and its computing (5).
    """
    assert seconds([Stretch(0.0, 5.0, 1.0, 0.0), Stretch(0.0, 1.0, 4.0, 0.0)], trained=True) == 5 + 4 + 1 + 5


@pytest.mark.parametrize("trained", [False, True])
def test_any_blocks_lie_between_all_hidden_and_nothing_hidden(trained):
    chance = random.Random(0)
    for _ in range(200):
        blocks = [
            Stretch(*(chance.choice((0.0, chance.random(), 10 * chance.random())) for _ in range(4)))
            for _ in range(chance.randint(1, 12))
        ]
        low, high = bounds(blocks, trained)
        assert low - 1e-9 <= seconds(blocks, trained) <= high + 1e-9


def test_without_exchanges_it_is_computing_and_without_computing_exchanges():
    blocks = [Stretch(1.0, 2.0, 0.0, 0.0), Stretch(3.0, 4.0, 0.0, 0.0)]
    assert seconds(blocks, trained=True) == 10
    assert seconds([Stretch(0.0, 0.0, block.forward, block.backward) for block in blocks], trained=True) == 4 + 4 + 6


def test_a_queue_keeps_its_order():
    """The second exchange could begin at 0, and waits for the first."""
    assert played([Task("compute", 5.0), Task("exchange", 1.0, after=(0,)), Task("exchange", 1.0)]) == 7
    assert played([]) == 0


# Exchanges


def test_an_all_reduce_is_a_scatter_and_a_gather():
    cluster = Cluster(64, **FREE)
    assert cluster.reduced(1e9) == pytest.approx(2 * cluster.gathered(1e9, 64))


def test_in_one_node_its_links_count_and_among_several_their_cards():
    """(k - 1) / k S over the slower of the two; among many it tends to S over the bus."""
    assert Cluster(8, **FREE).gathered(8e9, 8) == pytest.approx(7e9 / 360e9)
    assert Cluster(64, **FREE, between=10e9).gathered(64e9, 64) == pytest.approx(63e9 / 80e9)
    assert Cluster(64, **FREE, between=100e9).gathered(64e9, 64) == pytest.approx(63e9 / 360e9)
    assert Cluster(2**20, **FREE).gathered(1e9, 2**20) == pytest.approx(1e9 / 320e9, rel=1e-5)
    assert Cluster(1).reduced(1e9) == Cluster(1).gathered(1e9, 1) == 0


def test_by_nodes_is_what_a_flat_ring_takes_between_nodes():
    """Scattering in the node leaves an eighth for each card: together as much as a ring brings
    through all eight.
    """
    cluster = Cluster(1024, **FREE, inside=1e30)
    assert cluster.reduced_across(1e9, 128) == pytest.approx(cluster.reduced(1e9), rel=0.01)


def test_sharding_exchanges_half_as_much_again_in_one_precision():
    """Two gathers and a scatter for a trained pass, an all-reduce being a gather and a scatter; in
    bf16 the gathers are half as long, and it is the same.
    """
    load, cluster = replace(LOAD, untrained=0.0, networks=0), Cluster(64, **FREE)
    ddp, fsdp = (estimate(load, cluster, ClusterLayout(mode, 1)).exchanging for mode in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp)
    four = replace(load, blocks=tuple(Block(2 * block.parameters, block.operations) for block in load.blocks))
    gathers = (estimate(four, cluster, ClusterLayout("fsdp", 1)).exchanging - fsdp) / 2
    assert fsdp + gathers == pytest.approx(1.5 * ddp)


# A step


@pytest.mark.parametrize("mode", MODES)
def test_one_gpu_exchanges_nothing(mode):
    """Its step is its operations over its rate, and what optimizers move; but for the latter
    nothing is lost.
    """
    found = estimate(LOAD, Cluster(1), ClusterLayout(mode, 6, recompute=False))
    moved = 61e6 * (2 * 28 + 12) / Cluster(1).memory_rate
    assert found.exchanging == 0
    assert found.seconds == found.computing == pytest.approx(6 * 4e11 * (2 * 3 + 2) / Cluster(1).operations + moved)
    assert found.efficiency == pytest.approx(1 - moved / found.seconds)


def test_copies_within_one_gpu_each_are_what_replicas_exchange():
    """HSDP with a copy on every GPU is DDP: nothing is gathered, gradients are reduced."""
    cluster = Cluster(8, **FREE)
    ddp, hsdp = (
        estimate(LOAD, cluster, layout) for layout in (ClusterLayout("ddp", 4), ClusterLayout("fsdp", 4, replicas=8))
    )
    assert hsdp.seconds == pytest.approx(ddp.seconds)
    assert hsdp.memory == ddp.memory


def test_one_copy_a_node_gathers_inside_and_reduces_between():
    """Cards count for the gradients' shards alone: an eighth of them, twice."""
    cluster, load = Cluster(64, **FREE), replace(LOAD, networks=0)
    hsdp = estimate(load, cluster, ClusterLayout("fsdp", 4, replicas=8))
    inside = estimate(load, Cluster(8, **FREE), ClusterLayout("fsdp", 4))
    assert hsdp.memory == inside.memory
    assert hsdp.exchanging - inside.exchanging == pytest.approx(
        load.trained * 2 * (7 / 8) * 4 * 61e6 / 8 / cluster.between
    )


@pytest.mark.parametrize("mode", MODES)
def test_slower_links_never_help_and_free_ones_leave_computing(mode):
    layout = ClusterLayout(mode, 2)
    fast, slow = (estimate(LOAD, Cluster(64, inside=rate, between=rate), layout) for rate in (1e12, 1e9))
    assert fast.seconds < slow.seconds
    assert slow.efficiency < 0.1
    free = estimate(replace(LOAD, networks=0), Cluster(64, inside=1e30, between=1e30, **FREE), layout)
    assert free.seconds == pytest.approx(free.computing)


def test_accumulation_exchanges_gradients_once():
    """DDP's exchanges stay those of one micro-batch while computing grows; FSDP's gathers come with
    each.
    """
    cluster = Cluster(64, **FREE)
    for mode, exchanged in (("ddp", 1.0), ("fsdp", None)):
        one, four = (
            estimate(replace(LOAD, networks=0), cluster, ClusterLayout(mode, count, count)) for count in (1, 4)
        )
        if exchanged is not None:
            assert four.exchanging == pytest.approx(one.exchanging)
        else:
            gathers = 2 * (2 + 1) * cluster.gathered(2 * 61e6, 64)
            assert four.exchanging == pytest.approx(one.exchanging + 3 * gathers)


def test_computing_again_is_a_forward_pass_more():
    plain, again = (
        estimate(
            replace(LOAD, untrained=0.0), Cluster(1, memory_rate=1e30), ClusterLayout("ddp", 2, recompute=on)
        ).seconds
        for on in (False, True)
    )
    assert again == pytest.approx(4 / 3 * plain)


# Memory, and what a recipe asks for


def _counted(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[DistillRecipe, Plan]:
    """A plan whose rehearsal costs nothing: 8 evaluations a step."""

    class Eight(dict[str, float]):
        def __missing__(self, _: str) -> float:
            return 8.0

    monkeypatch.setattr("fewstep.planning.plan.rehearse", lambda _: Rehearsal(Eight(), {}, 1.0, 0.8))
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    return recipe, plan_on_gpus(recipe, name, 8)


def test_memory_is_what_plan_says(monkeypatch):
    """For each of its settings in bf16, replicated and sharded, with and without computing
    again.
    """
    recipe, found = _counted("cifar10-diff-instruct", monkeypatch)
    load = load_of(recipe, "cifar10-diff-instruct")
    compared = 0
    for setting in found.settings:
        if setting.precision == "bf16" and not setting.offload:
            mode = "fsdp" if setting.mode == "fsdp2" else "ddp"
            ours = memory_of(
                load, Cluster(setting.gpus), ClusterLayout(mode, setting.batch, recompute=setting.recompute)
            )
            assert ours == pytest.approx(setting.memory, rel=1e-6)
            compared += 1
    assert compared == 2 * (1 + 2 * 3)


def test_passes_and_blocks_are_those_of_the_recipe(monkeypatch):
    """Diff-Instruct: student and fake score are trained, teacher and fake score looked at; the
    blocks make up the network.
    """
    recipe, found = _counted("cifar10-diff-instruct", monkeypatch)
    load = load_of(recipe, "cifar10-diff-instruct")
    assert (load.trained, load.untrained, load.networks) == (2, 2, 2)
    assert load.parameters == found.parts[0].parameters
    assert load.operations == found.operations
    assert len(load.blocks) > 20
    assert load.weights == found.parts[0].bytes


def test_blocks_of_a_wrapped_network_are_the_networks(tmp_path):
    """On digits: each block once, in the order of the walk, and nothing counted twice."""
    recipe = load_recipe("digits-diff-instruct")
    assert isinstance(recipe, DistillRecipe)
    teacher = sketch(recipe, tmp_path)[0].original
    assert sum(block.parameters for block in blocks_in_order(teacher)) == sum(
        parameter.numel() for parameter in teacher.parameters()
    )
    assert all(block.parameters >= 0 and block.operations >= 0 for block in blocks_in_order(teacher))


def test_accumulated_gradients_of_a_sharded_network_are_held_whole():
    cluster = Cluster(64)
    one, two = (memory_of(LOAD, cluster, ClusterLayout("fsdp", 2 * count, count)) for count in (1, 2))
    assert two - one == pytest.approx(1.1 * LOAD.weights, abs=2)
    one, two = (memory_of(LOAD, cluster, ClusterLayout("ddp", 2 * count, count)) for count in (1, 2))
    assert one == two


# Failures


def test_the_best_interval_loses_least():
    """Of all intervals; and with failures twice as often, checkpoints are more frequent by the root
    of two.
    """
    cluster = Cluster(1024)
    best = cluster.interval(30.0)
    assert all(cluster.lost(30.0, best) < cluster.lost(30.0, factor * best) for factor in (0.5, 0.9, 1.1, 2.0))
    assert best == pytest.approx(2**0.5 * Cluster(2048).interval(30.0))
    assert Cluster(1024).between_failures * 1024 == pytest.approx(Cluster(8).between_failures * 8)


def test_writers_share_what_the_file_system_can_take():
    """One writer is limited by itself, many by the file system."""
    cluster = Cluster(64, disk=20e9, writer=2e9)
    assert cluster.saved(40e9, 1) == 20
    assert cluster.saved(40e9, 5) == 4
    assert cluster.saved(40e9, 64) == 2


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="full nodes"):
        Cluster(12)
    with pytest.raises(UserError, match="a layout is 'ddp', or 'fsdp' with replicas"):
        ClusterLayout("zero", 4)
    with pytest.raises(UserError, match="cannot be taken in 3 micro-batches"):
        ClusterLayout("ddp", 4, 3)
    with pytest.raises(UserError, match="or 'fsdp' with replicas"):
        ClusterLayout("ddp", 4, replicas=2)
    with pytest.raises(UserError, match="3 replicas do not divide 64 GPUs"):
        memory_of(LOAD, Cluster(64), ClusterLayout("fsdp", 4, replicas=3))
