"""One base, many adapters, by recipes: what is adapted, what a path of adapters is, what is kept of
it, and what is refused.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_combinations import BACKTRACKED, LEARNED, MATCHING, OPTIMIZER, VARIANTS, fitted, tiny, without_syncing
from test_methods import contents, same
from torch import nn

from fewstep.denoisers import NetworkDenoiser, adapter_of, in_network, save_adapter
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form
from fewstep.networks.adapters import bases_of
from fewstep.objectives.scores import passes
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.building.untrained_students import remarks_of_starts
from fewstep.recipes.kit.backtracking import check_passes
from fewstep.runs import distill, load
from fewstep.system.files import read_tensors
from fewstep.training import Silent, Trainer

# A fixture.
__all__ = ["without_syncing"]

LORA_FAKE = {"kind": "lora", "rank": 2, "optimizer": OPTIMIZER}
LORA_STUDENT = {"kind": "lora", "rank": 2, "first_sigma": 2.5}
LOW_RANK = {**MATCHING, "fake": LORA_FAKE}
NODES = {**BACKTRACKED, "recorded_as": "lora"}


def built(folder: Path, **axes: Any) -> tuple[DistillRecipe, Distillation]:
    recipe = tiny(axes.pop("method", LOW_RANK), **axes)
    return recipe, build_distillation(recipe, folder)


def test_student_fake_average_and_nodes_stand_on_the_teachers_one_base(tmp_path: Path) -> None:
    recipe, parts = built(tmp_path, student=LORA_STUDENT, target=NODES, steps=7)
    fitted(recipe, parts, tmp_path)
    network = parts.teacher.network
    assert parts.fake is not None
    for role in (parts.student, parts.average.average, parts.fake, parts.path.carrier, parts.path.blank()):
        assert bases_of(role) == [network]
        assert {name.rsplit(".", 2)[1] for name in role.state_dict()} == {"lora_A", "lora_B"}
    # On disk too: nothing of the base is in a node or a checkpoint.
    files = [tmp_path / "path" / "node-1.safetensors", max((tmp_path / "checkpoints").iterdir())]
    for file in files:
        tensors, _ = read_tensors(file)
        networks = {name: value for name, value in tensors.items() if "network." in name}
        assert networks
        assert all(".lora_" in name for name in networks)


def test_a_path_of_adapters_of_one_node_is_the_fixed_target(tmp_path: Path) -> None:
    plain = tiny(LOW_RANK, student=LORA_STUDENT)
    assert same(plain, tiny(LOW_RANK, student=LORA_STUDENT, target={**NODES, "nodes": 1}), tmp_path)


def test_a_path_of_adapters_of_two_nodes_is_the_warm_fake_score(tmp_path: Path) -> None:
    """The target is the teacher from the start, and the fake score starts as the recorded node."""
    recipe, warm = built(tmp_path / "warm", student=LORA_STUDENT, target={**NODES, "nodes": 2}, steps=5)
    fitted(recipe, warm, tmp_path / "warm")
    node, _ = read_tensors(tmp_path / "warm" / "path" / "node-1.safetensors")
    recipe, plain = built(tmp_path / "plain", student=LORA_STUDENT, steps=4)
    assert plain.fake is not None
    plain.fake.load_state_dict(node)
    fitted(recipe, plain, tmp_path / "plain")
    for model in ("student", "fake", "average"):
        ours, theirs = getattr(warm, model).state_dict(), getattr(plain, model).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("student", "fake"), [("copy", LORA_FAKE), (LORA_STUDENT, LEARNED), (LORA_STUDENT, LORA_FAKE)])
def test_every_combination_with_full_copies_trains_what_it_should(student: Any, fake: Any, tmp_path: Path) -> None:
    recipe, parts = built(tmp_path, method={**MATCHING, "fake": fake}, student=student, target="backtracked", steps=7)
    before = {name: value.clone() for name, value in parts.teacher.state_dict().items()}
    fitted(recipe, parts, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in parts.teacher.state_dict().items())
    assert parts.fake is not None
    for model, section in ((parts.student, student), (parts.fake, fake)):
        adapted = section != "copy" and section["kind"] == "lora"
        assert bool(bases_of(model)) == adapted
        assert all(bool(p.grad is not None) for p in model.parameters())
    # A low-rank fake score on a path of copies has the last node as its base, a copy of its own.
    if fake is LORA_FAKE:
        node, _ = read_tensors(tmp_path / "path" / "node-2.safetensors")
        (base,) = bases_of(parts.fake)
        assert base is not parts.teacher.network
        assert all(torch.equal(value, node[f"network.{name}"]) for name, value in base.state_dict().items())


def test_alpha_is_said_instead_of_scale_and_is_the_same(tmp_path: Path) -> None:
    scaled = tiny(LOW_RANK, student={**LORA_STUDENT, "scale": 0.5})
    alpha = tiny(LOW_RANK, student={**LORA_STUDENT, "alpha": 1.0})
    assert alpha.student.model_dump()["scale"] is None
    assert same(scaled, alpha, tmp_path)
    for said, words in (({"scale": 0.5, "alpha": 1.0}, "are both said"), ({"scale": None}, "are both null")):
        with pytest.raises(UserError, match=f"'scale' and 'alpha' {words}"):
            tiny(LOW_RANK, student={**LORA_STUDENT, **said})


def test_targets_say_which_layers_are_adapted(tmp_path: Path) -> None:
    _, every = built(tmp_path, student=LORA_STUDENT)
    _, some = built(tmp_path, student={**LORA_STUDENT, "targets": ["leave"]})
    assert list(adapter_of(some.student).layers) == ["leave"]
    assert len(adapter_of(every.student).layers) > 1
    with pytest.raises(UserError, match="no linear or convolutional layer called 'to_q'"):
        built(tmp_path, student={**LORA_STUDENT, "targets": ["leave", "to_q"]})


def test_a_student_and_a_fake_score_begin_from_an_adapters_file(tmp_path: Path) -> None:
    _, parts = built(tmp_path, student=LORA_STUDENT)
    like = parts.teacher
    given = in_network(like, AdaptedNetwork.fresh(AdaptedBase(like.network), Form(3, 6.0, ("leave",)), seed=4))
    with torch.no_grad():
        for value in given.parameters():
            value.add_(0.1)
    save_adapter(tmp_path / "given.safetensors", adapter_of(given))
    start = str(tmp_path / "given.safetensors")
    fake = {**LORA_FAKE, "start": start}
    _, begun = built(tmp_path, method={**MATCHING, "fake": fake}, student={**LORA_STUDENT, "start": start})
    for model in (begun.student, begun.fake):
        assert model is not None
        assert list(adapter_of(model).layers) == ["leave"]
        assert adapter_of(model).layers["leave"].alpha == 6.0
        for name, value in given.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)


def test_what_is_left_out_of_a_files_adapter_is_said_and_one_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_file(
        {
            "leave.lora_A.weight": torch.ones(1, 8),
            "leave.lora_B.weight": torch.ones(2, 1),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
        },
        tmp_path / "start.safetensors",
    )
    start = {"start": str(tmp_path / "start.safetensors")}
    recipe, parts = built(tmp_path, method={**MATCHING, "fake": {**LORA_FAKE, **start}}, student=LORA_STUDENT)
    said = remarks_of_starts(recipe, parts.teacher.network)
    assert len(said) == 2
    assert "1 entries of text encoders are left out" in said[0]
    assert "no alpha for 1 of 1 layers" in said[1]
    assert remarks_of_starts(tiny(LOW_RANK, student=LORA_STUDENT), parts.teacher.network) == ()
    save_adapter(tmp_path / "other.safetensors", AdaptedNetwork.fresh(AdaptedBase(Other()), Form(1, 1.0)).adapter)
    with pytest.raises(UserError, match=r"other\.safetensors: layer 'leave' has weights of \(1, 3\) and"):
        built(tmp_path, student={**LORA_STUDENT, "start": str(tmp_path / "other.safetensors")})
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"leave": 1}))
    with pytest.raises(UserError, match=r"pickle\.safetensors: is a pickle, which is a program"):
        built(tmp_path, student={**LORA_STUDENT, "start": str(tmp_path / "pickle.safetensors")})


class Other(nn.Module):
    """Of one layer that has the name of another network's."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Linear(3, 3)


@pytest.mark.parametrize("target", ["fixed", "backtracked"])
def test_a_run_whose_estimates_are_made_in_one_batch_is_the_same_up_to_rounding(target: str, tmp_path: Path) -> None:
    nodes = NODES if target == "backtracked" else {"kind": "fixed"}
    axes = {"student": LORA_STUDENT, "target": nodes, "guidance": "constant", "digits": True, "steps": 7}
    found = []
    for how in ("separate", "together"):
        recipe, parts = built(tmp_path / how, method={**LOW_RANK, "passes": how}, **axes)
        fitted(recipe, parts, tmp_path / how)
        found.append(list(parts.student.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_stays_with_what_was_measured_at_its_start(tmp_path: Path, monkeypatch: Any) -> None:
    method = {**LOW_RANK, "passes": "measured"}
    monkeypatch.setattr(passes, "seconds", lambda how, *_: 2.0 if isinstance(how, passes.Separate) else 1.0)
    recipe, parts = built(tmp_path, method=method, student=LORA_STUDENT)
    fitted(recipe, parts, tmp_path)
    _, state = read_tensors(max((tmp_path / "checkpoints").iterdir()))
    assert "'together_over_separate': 0.5" in str(state)
    monkeypatch.setattr(passes, "seconds", None)
    recipe, parts = built(tmp_path, method=method, student=LORA_STUDENT, steps=6)
    Trainer(tmp_path, parts.stages, parts.average, build_settings(recipe.training), listeners=[Silent()]).fit(True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["together_over_separate"] for line in lines if "together_over_separate" in line} == {0.5}
    assert max(line["step"] for line in lines) == 6


def test_estimates_cannot_share_a_batch_where_networks_are_two_or_sharded(tmp_path: Path) -> None:
    for method, target in (({**MATCHING, "fake": LEARNED}, "fixed"), (LOW_RANK, "backtracked")):
        with pytest.raises(UserError, match=r"'method\.passes' other than 'separate' .* has a network of its own; use"):
            built(tmp_path, method={**method, "passes": "together"}, student=LORA_STUDENT, target=target, steps=7)
    recipe = tiny({**LOW_RANK, "passes": "measured"}, student=LORA_STUDENT)
    with pytest.raises(UserError, match=r"and 'distributed\.mode: fsdp' cannot be combined"):
        check_passes(recipe.target, adapts=True, sharded=True)


def test_a_path_of_adapters_needs_a_fake_score_that_is_one(tmp_path: Path) -> None:
    for method in (MATCHING, VARIANTS["distribution-matching, delta"], VARIANTS["sid"]):
        with pytest.raises(UserError, match=r"'target\.recorded_as: lora' .* use 'method\.fake\.kind: lora', or"):
            built(tmp_path, method=method, target=NODES)
    assert not list(tmp_path.iterdir())


def test_a_teacher_in_bfloat16_trains_adapters_and_copies_in_float32(tmp_path: Path) -> None:
    for name, student, fake in (("lora", LORA_STUDENT, LORA_FAKE), ("copy", "copy", LEARNED)):
        target = NODES if name == "lora" else "backtracked"
        recipe, parts = built(
            tmp_path / name, method={**MATCHING, "fake": fake}, student=student, target=target, steps=7, frozen="bf16"
        )
        fitted(recipe, parts, tmp_path / name)
        types = {p.dtype for p in parts.teacher.parameters()}
        assert torch.bfloat16 in types
        assert {p.dtype for p in parts.path.blank().parameters()} & {torch.bfloat16}
        assert parts.fake is not None
        for model in (parts.student, parts.fake, parts.average.average):
            assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_of_adapters_leaves_a_plain_student_and_its_adapter(tmp_path: Path) -> None:
    folder = distill("mixture2d-disback-lora", ["training.steps=8", *SMALL], tmp_path / "run")
    recipe = load_recipe(folder / "recipe.yaml")
    assert isinstance(recipe, DistillRecipe)
    student = load(folder).model
    assert isinstance(student, NetworkDenoiser)
    assert not bases_of(student)
    teacher = recipe.teacher.load(None)
    section = {**recipe.student.model_dump(), "start": str(folder)}
    again = type(recipe.student)(**section).denoiser(teacher, AdaptedBase(teacher.network))
    x, t = torch.ones(3, 2), torch.full((3,), 2.0)
    with torch.no_grad():
        torch.testing.assert_close(again(x, t), student(x, t), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(teacher(x, t), student(x, t), atol=1e-4)
    assert contents(folder)


SMALL = ("training.batch=4", "evaluation.samples=20", "training.health_every=1000", "evaluation.every=1000")
