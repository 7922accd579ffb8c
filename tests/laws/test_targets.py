"""Laws of targets: a path is read as it was recorded or refused by name, backtracking walks it to
the teacher, and rules decide what they say.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised, tiny_denoiser
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, copy_of
from fewstep.errors import UserError
from fewstep.resumable import Resumable, find_resumable
from fewstep.schedule import KarrasVE
from fewstep.states import Prior
from fewstep.system.files import read_tensors, write_tensors
from fewstep.targets import (
    Backtracked,
    ByDistance,
    DegradationPath,
    Every,
    EverySteps,
    Fixed,
    Probes,
    RecordByDistance,
    SwitchAtPlateau,
    SwitchRule,
)
from fewstep.times import LogNormalTimes
from fewstep.training import MeasureSpacing

X, T = normals(5, 2, dtype=torch.float32), torch.full((5,), 0.02, dtype=torch.float64)


def _through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


def _recorded(folder: Path, nodes: int) -> DegradationPath:
    """A path whose node i is the teacher with other random weights."""
    teacher = tiny_denoiser(seed=100)
    path = DegradationPath(folder, teacher, {"recipe": "toy"})
    for index in range(1, nodes + 1):
        path.record(randomised(copy_of(teacher), seed=index), 10 * index)
    return path


def _output(path: DegradationPath, node: int) -> Tensor:
    model = path.teacher if node == 0 else randomised(copy_of(path.teacher), seed=node)
    return model(X, T).detach()


# The path


class _Shift(Denoiser):
    """A denoiser whose estimates are one number, its weight."""

    schedule = KarrasVE()
    shape = (2,)
    classes = 0

    def __init__(self, value: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.value + torch.zeros_like(x)


@pytest.mark.parametrize(
    ("places", "uneven"),
    [((1.0, 2.0, 3.0), ""), ((5.1, 7.0, 10.0), "51%, 70%, 100%"), ((0.0, 0.0, 0.0), ""), ((9.0, 10.0), "")],
)
def test_a_path_that_is_passed_in_one_jump_is_said(places: tuple[float, ...], uneven: str, tmp_path: Path) -> None:
    path, model = DegradationPath(tmp_path, _Shift(0.0)), _Shift(0.0)
    for step, place in enumerate(places, 1):
        path.record(_Shift(place), step)
    probes = Probes(_Shift(0.0), Prior(KarrasVE(), (2,), 0.5), LogNormalTimes(), path.teacher, rows=4)
    action = MeasureSpacing(path, model, probes)
    action.run()
    assert float(model.value.detach()) == (places[-1] if len(places) > 2 else 0.0)
    if len(places) > 2:
        assert path.ways == pytest.approx([b - a for a, b in itertools.pairwise((0.0, *places))], abs=1e-6)
    assert (uneven in action.remark) if uneven else action.remark == ""
    again = DegradationPath.open(tmp_path, path.teacher)
    assert (again.ways, again.uneven) == (path.ways, path.uneven)
    fresh = DegradationPath(tmp_path / "other", path.teacher)
    fresh.load_state_dict(_through_json(path.state_dict()))
    assert fresh.ways == path.ways


def test_a_path_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 3)
    assert path.last == 3
    path.close("enough")
    for opened in (path, DegradationPath.open(tmp_path, path.teacher)):
        assert (opened.last, opened.closed, opened.origin) == (3, "enough", {"recipe": "toy"})
        assert [node["step"] for node in opened.nodes] == [10, 20, 30]
        into = tiny_denoiser(seed=7)
        for node in (2, 0, 3, 1):
            opened.load(node, into)
            assert torch.equal(into(X, T), _output(path, node))
    expected = randomised(copy_of(path.teacher), seed=2).state_dict()
    read = path.read(2)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_a_new_path_is_empty_and_recording_replaces_what_the_folder_holds(tmp_path: Path) -> None:
    _recorded(tmp_path, 3)
    path = DegradationPath(tmp_path, tiny_denoiser(seed=100))
    assert path.last == 0
    path.record(tiny_denoiser(seed=50), 5)
    assert DegradationPath.open(tmp_path, path.teacher).last == 1
    path.load(1, into := tiny_denoiser(seed=7))
    assert torch.equal(into(X, T), tiny_denoiser(seed=50)(X, T))


def test_a_path_returns_to_an_earlier_length(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 1)
    state = _through_json(path.state_dict())
    path.record(tiny_denoiser(seed=2), 20)
    path.close("reason")
    again = DegradationPath(tmp_path, path.teacher)
    again.load_state_dict(state)
    assert (again.last, again.closed) == (1, "")
    assert again.state_dict() == state
    assert DegradationPath.open(tmp_path, path.teacher).last == 1


def _edit_missing(tensors: dict[str, Tensor], key: str) -> str:
    del tensors[key]
    return key


def _edit_renamed(tensors: dict[str, Tensor], key: str) -> str:
    tensors[f"module.{key}"] = tensors.pop(key)
    return key


def _edit_extra(tensors: dict[str, Tensor], key: str) -> str:
    tensors[f"{key}.twin"] = tensors[key].clone()
    return f"{key}.twin"


def _edit_shape(tensors: dict[str, Tensor], key: str) -> str:
    tensors[key] = tensors[key][:-1].clone()
    return key


@pytest.mark.parametrize("edit", [_edit_missing, _edit_renamed, _edit_extra, _edit_shape])
@pytest.mark.parametrize("key", ["network.leave.bias", "network.blocks.0.1.weight"])
def test_a_node_that_does_not_fit_is_refused_by_file_and_key(
    edit: Callable[[dict, str], str], key: str, tmp_path: Path
) -> None:
    """Even where checksum and manifest agree with it, as they would in a path that another network
    made.
    """
    path = _recorded(tmp_path, 2)
    file = tmp_path / "node-2.safetensors"
    tensors, metadata = read_tensors(file)
    named = edit(tensors, key)
    digest = write_tensors(file, tensors, metadata)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["nodes"][1]["digest"] = digest
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    opened = DegradationPath.open(tmp_path, path.teacher)
    into = tiny_denoiser(seed=7)
    before = into(X, T)
    with pytest.raises(UserError) as caught:
        opened.load(2, into)
    assert named in str(caught.value)
    assert "node-2.safetensors" in str(caught.value)
    assert torch.equal(into(X, T), before)
    # The old path remembers another digest, so it refuses the file before it looks at keys.
    with pytest.raises(UserError, match=r"node-2\.safetensors: is not node 2"):
        path.read(2)
    opened.load(1, into)


@pytest.mark.parametrize("damage", ["flipped", "short", "absent", "swapped"])
def test_a_damaged_node_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = _recorded(tmp_path, 2)
    file = tmp_path / "node-2.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-17] ^= 0x04
        file.write_bytes(content)
    elif damage == "short":
        file.write_bytes(content[:-4])
    elif damage == "absent":
        file.unlink()
    else:
        file.write_bytes((tmp_path / "node-1.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"node-2\.safetensors"):
        path.read(2)
    into = tiny_denoiser(seed=7)
    with pytest.raises(UserError, match=r"node-2\.safetensors"):
        path.load(2, into)
    path.load(1, into)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "not json",
        "[]",
        "{}",
        '{"nodes": []}',
        '{"nodes": [3], "origin": {}, "closed": ""}',
        '{"nodes": ["node"], "origin": {}, "closed": ""}',
        '{"nodes": [{"file": "a"}], "origin": {}, "closed": ""}',
        '{"nodes": [{"file": "../a", "digest": "", "step": 1}], "origin": {}, "closed": ""}',
        '{"nodes": [{"file": "/a", "digest": "", "step": 1}], "origin": {}, "closed": ""}',
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_by_name(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        DegradationPath.open(tmp_path, tiny_denoiser())


# Backtracking


def test_to_be_asked_for_what_is_in_use_does_not_enter_the_path(tmp_path: Path) -> None:
    """A run asks before the path is recorded; entered then, the target would be the teacher."""
    teacher = tiny_denoiser()
    path = DegradationPath(tmp_path, teacher)
    target = Backtracked(path, Every(1))
    assert list(target.in_use()) == [teacher]
    assert target.node is None
    assert target.figures() == {}
    for step in (1, 2):
        path.record(randomised(copy_of(teacher), step), step)
    (slot,) = target.in_use()
    assert slot is not teacher
    assert target.node is None
    # It is what the path is entered with.
    assert target.denoiser is slot
    assert (target.node, list(target.in_use())) == (1, [slot])
    target.advance(1, None)
    assert (target.node, list(target.in_use())) == (0, [teacher])


def test_without_nodes_and_with_one_the_target_is_the_teacher_from_the_start(tmp_path: Path) -> None:
    for nodes in (0, 1):
        path = _recorded(tmp_path / str(nodes), nodes)
        target = Backtracked(path, Every(1))
        for step in range(1, 5):
            assert target.denoiser is path.teacher
            assert torch.equal(target.denoiser(X, T), Fixed(path.teacher).denoiser(X, T))
            target.advance(step, None)
        assert target.node == 0


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_the_target_walks_from_the_last_node_but_one_to_the_teacher_and_stays(nodes: int, tmp_path: Path) -> None:
    path = _recorded(tmp_path, nodes)
    target = Backtracked(path, Every(2))
    seen = []
    for step in range(1, 2 * nodes + 6):
        denoiser = target.denoiser
        node = target.node
        assert node is not None
        seen.append(node)
        assert torch.equal(denoiser(X, T), _output(path, node))
        assert not any(value.requires_grad for value in denoiser.parameters()) or node == 0
        target.advance(step, None)
    walk = [node for node in range(nodes - 1, 0, -1) for _ in range(2)]
    assert seen == walk + [0] * (len(seen) - len(walk))
    assert target.denoiser is path.teacher


def test_the_rule_starts_afresh_at_every_node(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 4)

    def stays(rule: SwitchRule, steps: int) -> list[int]:
        target = Backtracked(path, rule)
        nodes = []
        for step in range(steps):
            assert target.denoiser is not None
            nodes.append(target.node)
            target.observe(_levels(1.0), torch.ones(8))
            target.advance(step + 1, None)
        return [nodes.count(node) for node in (3, 2, 1)]

    assert stays(Every([3, 1, 2]), 10) == [3, 1, 2]
    assert stays(SwitchAtPlateau(4, 0.02, 1, 100).rule(), 40) == [8, 8, 8]
    assert stays(SwitchAtPlateau(4, 0.02, 1, 5).rule(), 40) == [5, 5, 5]


def test_a_switch_changes_what_the_target_says(tmp_path: Path) -> None:
    """In the published code it does not: there the switch loads weights whose names match
    nothing.
    """
    path = _recorded(tmp_path, 4)
    target = Backtracked(path, Every(1))
    outputs = []
    for step in range(1, 5):
        outputs.append(target.denoiser(X, T).detach())
        target.advance(step, None)
    for one in range(4):
        for other in range(one):
            assert float((outputs[one] - outputs[other]).abs().max()) > 1e-3


def test_a_target_may_be_built_before_its_path_is_recorded(tmp_path: Path) -> None:
    path = DegradationPath(tmp_path, tiny_denoiser(seed=100))
    target = Backtracked(path, Every(1))
    target.advance(1, None)
    assert target.node is None
    for index in (1, 2, 3):
        path.record(randomised(copy_of(path.teacher), seed=index), index)
    assert torch.equal(target.denoiser(X, T), _output(path, 2))


def test_walking_leaves_the_teacher_alone(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 3)
    before = {name: value.clone() for name, value in path.teacher.state_dict().items()}
    target = Backtracked(path, Every(1))
    for step in range(1, 5):
        assert target.denoiser is not None
        target.advance(step, None)
    assert all(torch.equal(value, before[name]) for name, value in path.teacher.state_dict().items())


@pytest.mark.parametrize("stop", range(8))
def test_a_resumed_walk_goes_on_as_if_it_had_not_stopped(stop: int, tmp_path: Path) -> None:
    path = _recorded(tmp_path, 4)

    def walk(target: Backtracked, steps: range) -> list[tuple[int | None, int, Tensor]]:
        seen = []
        for step in steps:
            output = target.denoiser(X, T).detach()
            target.advance(step, None)
            seen.append((target.node, target.steps, output))
        return seen

    whole = walk(Backtracked(path, Every([3, 1, 2])), range(8))
    first = Backtracked(path, Every([3, 1, 2]))
    early = walk(first, range(stop))
    second = Backtracked(DegradationPath.open(tmp_path, path.teacher), Every([3, 1, 2]))
    second.load_state_dict(_through_json(first.state_dict()))
    assert second.state_dict() == first.state_dict()
    late = walk(second, range(stop, 8))
    for (node, steps, output), (other_node, other_steps, other_output) in zip(whole, early + late, strict=True):
        assert (node, steps) == (other_node, other_steps)
        assert torch.equal(output, other_output)


def test_a_walked_target_returns_to_any_earlier_node(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 4)
    target = Backtracked(path, Every(1))
    states = []
    for step in range(1, 6):
        assert target.denoiser is not None
        states.append((target.node, _through_json(target.state_dict())))
        target.advance(step, None)
    for node, state in reversed(states):
        target.load_state_dict(state)
        assert torch.equal(target.denoiser(X, T), _output(path, node))


def test_a_damaged_node_stops_the_walk_by_name(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 3)
    content = bytearray((tmp_path / "node-1.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "node-1.safetensors").write_bytes(content)
    target = Backtracked(path, Every(1))
    assert torch.equal(target.denoiser(X, T), _output(path, 2))
    with pytest.raises(UserError, match=r"node-1\.safetensors"):
        target.advance(1, None)


# Switch rules


def _node_steps(rule: SwitchRule, gaps: Callable[[int], tuple[Tensor, Tensor]], limit: int = 2000) -> int:
    """After how many steps at a node the rule leaves it."""
    for steps in range(1, limit):
        rule.observe(*gaps(steps))
        if rule.done(3, steps):
            rule.reset()
            return steps
    return limit


NO_GAPS = (torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize(
    ("given", "expected"), [(4, [4, 4, 4]), ([3], [3, 3, 3]), ([3, 1], [3, 1, 1, 1]), ([1, 5, 2], [1, 5, 2, 2])]
)
def test_every_serves_its_numbers_in_the_order_of_use(given: int | list[int], expected: list[int]) -> None:
    rule = Every(given)
    assert [_node_steps(rule, lambda _steps: NO_GAPS) for _ in expected] == expected


def _levels(rho: float, rows: int = 8) -> Tensor:
    return torch.full((rows,), -2 * math.log(rho), dtype=torch.float64)


def _flat(steps: int) -> tuple[Tensor, Tensor]:
    return _levels(1.0), torch.full((8,), 3.0) * (1 + 0.01 * math.sin(steps))


def _falling(steps: int) -> tuple[Tensor, Tensor]:
    return _levels(1.0), torch.full((8,), 3.0 * 0.995**steps)


@pytest.mark.parametrize("window", [1, 5, 20])
def test_plateau_leaves_when_the_gap_is_flat_and_not_while_it_falls(window: int) -> None:
    steady = lambda _steps: (_levels(1.0), torch.full((8,), 3.0))  # noqa: E731
    assert _node_steps(SwitchAtPlateau(window, 0.02, 1, 10**6).rule(), steady) == 2 * window
    if window > 1:
        assert _node_steps(SwitchAtPlateau(window, 0.0051 * window, 1, 10**6).rule(), _flat) <= 4 * window
    # Over a window the gap falls to 0.995^window, further than the improvement asked for.
    assert _node_steps(SwitchAtPlateau(window, 0.004 * window, 1, 10**6).rule(), _falling, limit=1500) == 1500


def test_plateau_leaves_soon_after_a_fall_has_ended() -> None:
    gaps = lambda steps: (_levels(1.0), torch.full((8,), max(0.97**steps, 0.97**80)))  # noqa: E731
    left = _node_steps(SwitchAtPlateau(20, 0.02, 20, 10**6).rule(), gaps)
    assert 80 < left <= 80 + 40


def test_plateau_keeps_to_its_least_and_most_steps() -> None:
    assert _node_steps(SwitchAtPlateau(5, 0.02, 37, 100).rule(), lambda _steps: (_levels(1.0), torch.ones(8))) == 37
    assert _node_steps(SwitchAtPlateau(5, 0.02, 3, 100).rule(), lambda _steps: (_levels(1.0), torch.ones(8))) == 10
    assert _node_steps(SwitchAtPlateau(5, 0.02, 10, 63).rule(), _falling) == 63


def test_plateau_compares_level_with_level() -> None:
    """A change in which levels are drawn is no change in the gaps, however far apart those are."""

    def drifting(steps: int) -> tuple[Tensor, Tensor]:
        high = min(7, 1 + steps // 6)
        return torch.cat([_levels(0.05, 8 - high), _levels(10.0, high)]), torch.cat(
            [torch.full((8 - high,), 1000.0), torch.full((high,), 1.0)]
        )

    rule = SwitchAtPlateau(20, 0.02, 1, 10**6).rule()
    assert _node_steps(rule, drifting) == 40
    # And a fall at one level, however small that level's gaps are, counts as much as any other.
    both = lambda steps: (  # noqa: E731
        torch.cat([_levels(0.05), _levels(10.0)]),
        torch.cat([torch.full((8,), 1000.0), torch.full((8,), 0.99**steps)]),
    )
    assert _node_steps(SwitchAtPlateau(20, 0.02, 1, 10**6).rule(), both, limit=400) == 400


def test_plateau_forgets_the_node_it_left() -> None:
    rule = SwitchAtPlateau(5, 0.02, 1, 10**6).rule()
    assert [_node_steps(rule, lambda _steps: (_levels(1.0), torch.ones(8))) for _ in range(3)] == [10, 10, 10]


@pytest.mark.parametrize(
    "make", [lambda: Every([3, 9, 4]), lambda: SwitchAtPlateau(6, 0.05, 5, 25).rule()], ids=["every", "plateau"]
)
@pytest.mark.parametrize("stop", [0, 4, 13, 29])
def test_a_resumed_rule_decides_as_if_it_had_not_stopped(make: Callable[[], SwitchRule], stop: int) -> None:
    gaps = normals(60, 8).abs()

    def decisions(rule: SwitchRule, steps: range, here: int) -> tuple[list[bool], int]:
        taken = []
        for step in steps:
            rule.observe(_levels(1.0), gaps[step])
            here += 1
            taken.append(rule.done(1, here))
            if taken[-1]:
                rule.reset()
                here = 0
        return taken, here

    whole, _ = decisions(make(), range(60), 0)
    first, second = make(), make()
    early, here = decisions(first, range(stop), 0)
    second.load_state_dict(_through_json(first.state_dict()))
    assert second.state_dict() == first.state_dict()
    assert early + decisions(second, range(stop, 60), here)[0] == whole
    assert any(whole)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Every(0),
        lambda: Every([]),
        lambda: Every([3, 0]),
        lambda: SwitchAtPlateau(0).rule(),
        lambda: SwitchAtPlateau(improvement=1.0).rule(),
        lambda: SwitchAtPlateau(min_steps=0).rule(),
        lambda: SwitchAtPlateau(min_steps=9, max_steps=8).rule(),
    ],
)
def test_impossible_switch_rules_are_refused(build: Callable[[], SwitchRule]) -> None:
    with pytest.raises(UserError):
        build()


# Recording rules


class _Affine(nn.Module):
    """A stand-in for a degrading model: its estimates are scale * probes + shift."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([scale, shift], dtype=torch.float64))

    def estimates(self) -> Tensor:
        return self.values[0] * PROBES + self.values[1]


PROBES = normals(200, 2)
PROBES = (PROBES - PROBES.mean(0)) / (PROBES - PROBES.mean(0)).square().mean().sqrt()


def _rule(distance: float, floor: float = 0.5, max_steps: int = 1000) -> ByDistance:
    return RecordByDistance(distance, floor, max_steps).rule(lambda model: model.estimates(), _Affine())  # type: ignore[attr-defined, arg-type]


def _walk(folder: Path, rule, at: Callable[[int], _Affine], limit: int = 300) -> DegradationPath:
    path = DegradationPath(folder, _Affine())  # type: ignore[arg-type]
    recorder = path.recorder(rule)
    stop = path.full(nodes=31)
    for step in range(1, limit + 1):
        recorder(step, at(step))  # type: ignore[arg-type]
        if stop.finished(step):
            break
    return path


@pytest.mark.parametrize("every", [1, 7, 50])
def test_every_steps_records_at_its_multiples(every: int, tmp_path: Path) -> None:
    path = _walk(tmp_path, EverySteps(every), lambda step: _Affine(1.0, step))
    assert [node["step"] for node in path.nodes] == list(range(every, 301, every))[:30]
    assert path.read(1)["values"].tolist() == [1.0, float(every)]


@pytest.mark.parametrize("nodes", [2, 3, 6])
def test_a_path_is_full_when_it_has_its_nodes_the_teacher_counted(nodes: int, tmp_path: Path) -> None:
    path = DegradationPath(tmp_path, _Affine())  # type: ignore[arg-type]
    full = path.full(nodes)
    for step in range(1, nodes):
        assert not full.finished(step)
        path.record(_Affine(1.0, step), step)  # type: ignore[arg-type]
    assert full.finished(nodes)


@pytest.mark.parametrize(("distance", "speed"), [(0.1, 0.03), (0.1, 0.01), (0.5, 0.03), (1.0, 0.3), (0.02, 0.05)])
def test_nodes_lie_the_set_distance_apart(distance: float, speed: float, tmp_path: Path) -> None:
    """A shift of s units is a distance s, in units of the teacher's spread; nodes follow it and not
    the steps.
    """
    path = _walk(tmp_path, _rule(distance), lambda step: _Affine(1.0, speed * step), limit=200)
    shifts = [0.0] + [float(path.read(index)["values"][1]) for index in range(1, path.last + 1)]
    assert path.last >= 4
    for before, after in itertools.pairwise(shifts):
        assert distance - 1e-9 <= after - before < distance + speed + 1e-9


def test_distance_does_not_see_the_scale_of_the_data(tmp_path: Path) -> None:
    rule = RecordByDistance(0.1).rule(lambda model: 1000 * model.estimates(), _Affine())  # type: ignore[attr-defined, arg-type]
    large = _walk(tmp_path / "large", rule, lambda step: _Affine(1.0, 0.03 * step), limit=60)
    small = _walk(tmp_path / "small", _rule(0.1), lambda step: _Affine(1.0, 0.03 * step), limit=60)
    assert [node["step"] for node in large.nodes] == [node["step"] for node in small.nodes]


@pytest.mark.parametrize("rate", [0.99, 0.97, 0.93, 0.9, 0.8])
@pytest.mark.parametrize("distance", [0.05, 0.1, 0.25])
def test_recording_stops_before_collapse(rate: float, distance: float, tmp_path: Path) -> None:
    path = _walk(tmp_path, _rule(distance, floor=0.5), lambda step: _Affine(rate**step, 0.0))
    assert "collapse" in path.closed
    last = next(step for step in range(1, 300) if rate**step < 0.5)
    assert path.last >= 1
    assert all(node["step"] < last for node in path.nodes)
    assert all(float(path.read(index)["values"][0]) >= 0.5 for index in range(1, path.last + 1))


@pytest.mark.parametrize(
    "at",
    [lambda step: _Affine(0.1), lambda step: _Affine(1.0, 0.001 * step), lambda step: _Affine()],
    ids=["collapsed", "slow", "still"],
)
def test_a_path_that_ends_has_at_least_one_node(at: Callable[[int], _Affine], tmp_path: Path) -> None:
    path = _walk(tmp_path, _rule(5.0, max_steps=40), at)
    assert path.closed
    assert path.last == 1
    assert DegradationPath.open(tmp_path, path.teacher).closed == path.closed


def test_recording_ends_at_its_most_steps(tmp_path: Path) -> None:
    path = _walk(tmp_path, _rule(0.1, max_steps=33), lambda step: _Affine(1.0, 0.03 * step))
    assert "33 steps" in path.closed
    assert [node["step"] for node in path.nodes] == list(range(4, 34, 4))


@pytest.mark.parametrize("stop", [0, 3, 4, 17])
def test_a_resumed_recording_records_the_same_nodes(stop: int, tmp_path: Path) -> None:
    at = lambda step: _Affine(0.985**step, 0.02 * step)  # noqa: E731
    whole = _walk(tmp_path / "whole", _rule(0.1), at)
    path = DegradationPath(tmp_path / "cut", _Affine())  # type: ignore[arg-type]
    first = path.recorder(_rule(0.1))
    for step in range(1, stop + 1):
        first(step, at(step))  # type: ignore[arg-type]
    state = _through_json(first.state_dict())
    for step in range(stop + 1, stop + 9):
        first(step, at(step))  # type: ignore[arg-type]
    again = DegradationPath(tmp_path / "cut", _Affine())  # type: ignore[arg-type]
    second = again.recorder(_rule(0.1))
    second.load_state_dict(state)
    for step in range(stop + 1, 300):
        if again.closed:
            break
        second(step, at(step))  # type: ignore[arg-type]
    assert (again.nodes, again.closed) == (whole.nodes, whole.closed)
    assert again.last >= 3


@pytest.mark.parametrize(
    "build", [lambda: EverySteps(0), lambda: _rule(0.0), lambda: _rule(0.1, floor=1.0), lambda: _rule(0.1, max_steps=0)]
)
def test_impossible_recording_rules_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        build()


# Finding what remembers


def test_a_run_finds_every_stateful_object_once(tmp_path: Path) -> None:
    path = DegradationPath(tmp_path, tiny_denoiser())
    target, recorder = Backtracked(path, Every(1)), path.recorder(EverySteps(5))
    root = {"a": [target, {"b": recorder}], "again": (target,), "plain": 3, "model": path.teacher}
    assert find_resumable(root) == {".a.0": target, ".a.1.b": recorder}
    assert all(isinstance(value, Resumable) for value in find_resumable(root).values())
    assert isinstance(path.teacher, Denoiser)
