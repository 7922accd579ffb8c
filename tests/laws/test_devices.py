"""One code path for CPU and GPU: with networks and samples on a device of their own
(``device_kit``) and times on the CPU, all states and objectives give bit for bit what they give on
the CPU, and no operation mixes the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised, three_gaussians, tiny_denoiser
from torch import Tensor, nn

from device_kit import CARD, Card, Mixed, Model, OnCard, on_card
from fewstep import objectives, states
from fewstep.condition import Classes, Condition
from fewstep.data.dataset import InMemory
from fewstep.data.scenes import Scenes
from fewstep.denoisers import (
    Averaged,
    Boundary,
    Denoiser,
    DynamicThreshold,
    FrozenTrunk,
    Guided,
    GuidedPatchwise,
    GuidedRescaled,
    GuidedWithin,
    HalfLife,
    Headed,
    NetworkDenoiser,
    Reflected,
    Rescheduled,
    StableTargetField,
    StraightThrough,
    TimestepInputs,
    TrajectoryDenoiser,
    Truncated,
    copy_of,
    device_of,
    freeze,
    trajectory_of,
)
from fewstep.metrics.diversity import spread
from fewstep.metrics.features import fourier_features, placed
from fewstep.metrics.mismatch import assessed_mismatch
from fewstep.networks import ImageReader, PatchAutoencoder, build
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.networks.critics.critic import FeatureHead
from fewstep.prediction import Velocity
from fewstep.random import Key
from fewstep.runs.sampler import StudentSampler, TeacherSampler
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow
from fewstep.solvers import EULER, HEUN, Renoise, Solver
from fewstep.solvers.rule import DPM2M, Rule
from fewstep.solvers.sampling import Sampling
from fewstep.solvers.stochastic import Gamma
from fewstep.states import (
    Alternate,
    Attributed,
    Constant,
    Dagger,
    ForwardDiffusion,
    Generated,
    Mixture,
    OpenRollout,
    Pairs,
    PerBatch,
    Prior,
    RandomRollout,
    Rollout,
    Started,
    State,
    States,
    Step,
    WithGuidance,
    write_pairs,
)
from fewstep.targets import Fixed
from fewstep.times import GridTimes, LogNormalTimes, RhoGrid, UniformTimes
from fewstep.training import Phase, Term
from fewstep.training.reporting.reports import Report, Soundness

CPU = torch.device("cpu")
TIMES = (1.0, 0.5, 0.2, 0.1)
SCHEDULE = KarrasVE()
SCENES = Scenes(20, 2)
DATA = InMemory(normals(12, 2, dtype=torch.float32), torch.arange(12) % 2, 2)
ROWS = 6


@dataclass
class Scene:
    """Networks on a device, of points in two classes, remembered in ``models``; ``folder`` for
    files.
    """

    device: torch.device
    folder: Path
    models: list[nn.Module] = field(default_factory=list)

    def placed(self, model: Model) -> Model:
        self.models.append(model if self.device == CPU else on_card(model))
        return model

    def denoiser(self, seed: int) -> NetworkDenoiser:
        return self.placed(tiny_denoiser(SCHEDULE, 2, seed))

    def flow(self, seed: int) -> NetworkDenoiser:
        around = tiny_denoiser(SCHEDULE, 2, seed).network
        return self.placed(NetworkDenoiser(around, RectifiedFlow(), Velocity(), TimestepInputs(offset=0.0), (2,), 2))

    def trajectory(self, seed: int) -> TrajectoryDenoiser:
        made = trajectory_of(tiny_denoiser(SCHEDULE, 2, seed))
        randomised(made, seed)
        return self.placed(made)

    def teacher(self) -> NetworkDenoiser:
        return freeze(self.denoiser(9))

    def step(self, index: int = 0) -> Step:
        return Step(Key(1, "train", index), ROWS, 3, self.device)

    @property
    def prior(self) -> Prior:
        return Prior(SCHEDULE, (2,), 1.0, conditions=Classes(2))

    @property
    def forward(self) -> ForwardDiffusion:
        return ForwardDiffusion(DATA, SCHEDULE, GridTimes(TIMES[:-1]), 0.3)

    @property
    def guided(self) -> WithGuidance:
        return WithGuidance(self.prior, 1.0, 3.0)


def _rollout(s: Scene) -> Rollout:
    return Rollout(Solver(s.denoiser(1), 1), s.prior, TIMES)


def _pairs(s: Scene) -> Pairs:
    path = s.folder / "pairs.safetensors"
    write_pairs(
        path,
        80 * normals(8, 2, dtype=torch.float32),
        normals(8, 2, seed=1, dtype=torch.float32),
        torch.arange(8) % 2,
        {},
    )
    return Pairs(path, SCHEDULE, 1.0)


STATES: dict[str, Callable[[Scene], States]] = {
    "prior": lambda s: s.prior,
    "forward": lambda s: s.forward,
    "started": lambda s: Started(s.forward, s.prior),
    "pairs": _pairs,
    "guidance": lambda s: s.guided,
    "rollout": _rollout,
    "rollout-dpm": lambda s: Rollout(Solver(s.denoiser(1), 2, DPM2M), s.prior, TIMES),
    "open": lambda s: OpenRollout(Renoise(s.denoiser(1), SCHEDULE, Key(0)), s.prior, TIMES, SCHEDULE, UniformTimes()),
    "random": lambda s: RandomRollout(Renoise(s.denoiser(1), SCHEDULE, Key(0)), s.prior, {1: (1.0, 0.0), 3: TIMES}),
    "alternate": lambda s: Rollout(
        Alternate(
            {"student": Solver(s.denoiser(1), 1), "teacher": Solver(s.teacher(), 2, HEUN)},
            Constant({"student": 0.5, "teacher": 0.5}),
        ),
        s.guided,
        TIMES,
    ),
    "generated": lambda s: Generated(Renoise(s.denoiser(1), SCHEDULE, Key(0)), s.prior, (*TIMES, 0.0)),
    "gamma": lambda s: Generated(Gamma(s.trajectory(1), 0.5), s.prior, (*TIMES, 0.0)),
    "mixture": lambda s: Mixture(
        {"data": s.forward, "own": _rollout(s), "pairs": _pairs(s)}, Constant({"data": 0.4, "own": 0.3, "pairs": 0.3})
    ),
    "per batch": lambda s: PerBatch({"data": s.forward, "own": _rollout(s)}, Constant({"data": 0.5, "own": 0.5})),
    "reservoir": lambda s: Dagger(_rollout(s), 8, 5, "reservoir"),
    "attributed": lambda s: Attributed(SCENES),
    "ring": lambda s: Dagger(WithGuidance(_rollout(s), 1.0, 2.0), 8, 5, "ring"),
}


def _reader(s: Scene) -> nn.Module:
    reader = ImageReader(dict(SCENES.values), width=8, features=8)
    randomised(reader, 4)
    return s.placed(reader)


def _autoencoder(s: Scene) -> PatchAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        autoencoder = PatchAutoencoder(4, (12, 16, 16), 2)
    s.placed(autoencoder)
    return autoencoder


def _adversary(s: Scene, critic: nn.Module, view: objectives.View, real: bool) -> objectives.Objective:
    student = s.denoiser(1)
    if real:
        return objectives.AdversarialCritic(critic, student, s.forward, objectives.NonSaturating(), view, 0.5)  # type: ignore[arg-type]
    return objectives.AdversarialGenerator(student, critic, objectives.Hinge(), view)  # type: ignore[arg-type]


def _head(s: Scene, channels: int = 8) -> nn.Module:
    return s.placed(randomised(FeatureHead(channels, 2, 8), 4))


def _noised() -> objectives.Noised:
    return objectives.Noised(SCHEDULE, LogNormalTimes())


def _matching(
    s: Scene, weight: objectives.MatchingWeight, fake: Denoiser | objectives.FakeScore | None = None
) -> objectives.Objective:
    return objectives.DistributionMatching(
        s.denoiser(1), s.denoiser(2) if fake is None else fake, Fixed(s.teacher()), LogNormalTimes(), weight
    )


def _consistency(
    s: Scene, rule: Rule, distance: objectives.Distance, edges: tuple[float, ...] = (0.0,)
) -> objectives.Objective:
    return objectives.ConsistencyDistillation(
        Boundary(s.denoiser(1)),
        freeze(s.denoiser(2)),
        Fixed(Guided(s.teacher(), 2.0)),
        objectives.Ladder(TIMES, 1, edges),
        rule,
        distance,
    )


def _soft(s: Scene) -> objectives.SoftConsistency:
    return objectives.SoftConsistency(
        student := s.trajectory(1), freeze(copy_of(student)), Fixed(s.teacher()), TIMES, HEUN, 2
    )


def _inverse(s: Scene) -> objectives.InverseConsistency:
    return objectives.InverseConsistency(
        student := s.trajectory(1), freeze(copy_of(student)), Fixed(s.teacher()), TIMES, HEUN, 2
    )


def _balanced(s: Scene) -> objectives.Objective:
    soft = _soft(s)
    return objectives.Balanced(
        soft, objectives.Denoising(soft.student, objectives.EDMWeight()), soft.student.network.leave
    )


def _phased(s: Scene, real: bool) -> objectives.Objective:
    consistency = _consistency(s, EULER, objectives.PseudoHuber(), (0.0, 0.2))
    assert isinstance(consistency, objectives.ConsistencyDistillation)
    critic = FrozenTrunk(s.teacher(), _head(s))
    if real:
        return objectives.PhasedCritic(critic, consistency, objectives.NonSaturating())
    return objectives.PhasedGenerator(consistency, critic, objectives.Hinge())


def _any_end(s: Scene) -> objectives.Objective:
    student = s.trajectory(1)
    return objectives.TrajectoryConsistency(
        student, freeze(copy_of(student)), Fixed(s.teacher()), objectives.Ladder(TIMES)
    )


def _descent() -> objectives.Descent:
    return objectives.Descent((*TIMES, 0.05), 2)


def _fourier(s: Scene) -> objectives.Perceptual:
    return objectives.Perceptual(placed(fourier_features(2, 8), s.device))


class _Flat(nn.Module):
    """Logits of points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.layer(x)


def _flat(s: Scene) -> nn.Module:
    return s.placed(randomised(_Flat(), 5))


Case = Callable[[Scene], tuple[objectives.Objective, States]]
OBJECTIVES: dict[str, Case] = {
    "matching": lambda s: (_matching(s, objectives.DMDWeight()), s.prior),
    "matching, plain": lambda s: (_matching(s, objectives.PlainWeight(), objectives.Learned(s.denoiser(3))), s.forward),
    "sds": lambda s: (_matching(s, objectives.SDSWeight(), objectives.Delta()), s.prior),
    "field": lambda s: (
        _matching(s, objectives.ExponentialWeight(), objectives.FieldOfSamples(s.denoiser(1), s.prior, 5)),
        s.prior,
    ),
    "score matching": lambda s: (
        objectives.ScoreMatching(s.denoiser(2), s.denoiser(1), LogNormalTimes(), objectives.ScoreWeight()),
        s.prior,
    ),
    "score matching with dropout": lambda s: (
        objectives.ScoreMatching(s.denoiser(2), s.denoiser(1), LogNormalTimes(), objectives.ScoreWeight(), 0.5),
        s.prior,
    ),
    "denoising": lambda s: (objectives.Denoising(s.denoiser(1), objectives.EDMWeight()), s.forward),
    "imitation": lambda s: (
        objectives.Imitation(s.denoiser(1), Fixed(Guided(s.teacher())), objectives.SNRPlusOne()),
        WithGuidance(s.forward, 1.0, 3.0),
    ),
    "identity": lambda s: (
        objectives.ScoreIdentity(s.denoiser(1), s.denoiser(2), Fixed(s.teacher()), LogNormalTimes()),
        s.prior,
    ),
    "augmentation": lambda s: (
        objectives.GuidanceAugmentation(s.denoiser(1), Fixed(s.teacher()), LogNormalTimes(), objectives.DMDWeight()),
        s.prior,
    ),
    "moments": lambda s: (
        objectives.MomentMatching(
            s.denoiser(1), s.denoiser(2), Fixed(s.teacher()), _descent(), objectives.DiffInstructWeight()
        ),
        s.forward,
    ),
    "auxiliary moment": lambda s: (
        objectives.AuxiliaryMoment(
            s.denoiser(2),
            s.denoiser(1),
            LogNormalTimes(),
            objectives.EDMWeight(),
            teacher=Fixed(s.teacher()),
            descent=_descent(),
        ),
        s.forward,
    ),
    "anchored jump": lambda s: (objectives.AnchoredJump(s.denoiser(1), Solver(s.teacher(), 3, HEUN), 0.5), s.prior),
    "phased, generator": lambda s: (_phased(s, False), s.forward),
    "phased, critic": lambda s: (_phased(s, True), s.forward),
    "trajectory consistency": lambda s: (_any_end(s), s.forward),
    "piecewise velocity": lambda s: (
        objectives.PiecewiseVelocity(s.flow(1), Fixed(freeze(s.flow(9))), (1.0, 0.5, 0.0)),
        ForwardDiffusion(DATA, RectifiedFlow(), GridTimes((1.0, 0.5))),
    ),
    "easy consistency": lambda s: (
        objectives.EasyConsistency(s.denoiser(1), objectives.GapCurriculum()),
        s.forward,
    ),
    "truncated consistency": lambda s: (
        objectives.EasyConsistency(
            student := s.denoiser(1),
            objectives.GapCurriculum(),
            nearer=Truncated(student, freeze(s.denoiser(2)), 0.3),
        ),
        s.forward,
    ),
    "generator, clean": lambda s: (_adversary(s, objectives.CleanCritic(_flat(s)), objectives.Clean(), False), s.prior),
    "critic, clean": lambda s: (_adversary(s, objectives.CleanCritic(_flat(s)), objectives.Clean(), True), s.prior),
    "generator, noised": lambda s: (_adversary(s, Headed(s.denoiser(2), _head(s)), _noised(), False), s.prior),
    "critic, noised": lambda s: (_adversary(s, Headed(s.denoiser(2), _head(s)), _noised(), True), s.prior),
    "critic, trunk": lambda s: (_adversary(s, FrozenTrunk(s.teacher(), _head(s)), _noised(), True), s.prior),
    "consistency": lambda s: (_consistency(s, EULER, objectives.PseudoHuber()), s.forward),
    "consistency, heun": lambda s: (_consistency(s, HEUN, _fourier(s), (0.0, 0.2)), s.forward),
    "progressive": lambda s: (
        objectives.ProgressiveDistillation(
            s.denoiser(1), Fixed(s.teacher()), (1.0, 0.5, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)
        ),
        ForwardDiffusion(DATA, SCHEDULE, GridTimes((1.0, 0.5))),
    ),
    "soft consistency": lambda s: (_soft(s), s.forward),
    "inverse consistency": lambda s: (_inverse(s), replace(s.forward, times=GridTimes(TIMES[1:-1]))),
    "balanced": lambda s: (_balanced(s), s.forward),
    "regression": lambda s: (objectives.EndpointRegression(s.denoiser(1), objectives.L1()), _pairs(s)),
    "regression, solved": lambda s: (
        objectives.EndpointRegression(s.denoiser(1), endpoint=Solver(s.teacher(), 3, HEUN)),
        s.forward,
    ),
    "velocity": lambda s: (
        objectives.VelocityRegression(s.flow(1)),
        ForwardDiffusion(DATA, RectifiedFlow(), GridTimes((1.0,))),
    ),
    "classification": lambda s: (objectives.Classification(_flat(s)), ForwardDiffusion(DATA, SCHEDULE, UniformTimes())),
    "reading": lambda s: (objectives.AttributeReading(_reader(s)), Attributed(SCENES)),
    "reconstruction": lambda s: (objectives.Reconstruction(_autoencoder(s), 0.1), Attributed(SCENES)),
}


def _run(scene: Scene, case: Case) -> list[Tensor]:
    """The loss, its terms and all gradients of a step, on the CPU."""
    objective, source = case(scene)
    step = scene.step()
    loss = objective(step, step.state(source))
    loss.total.backward()
    gradients = [value.grad for model in scene.models for value in model.parameters() if value.grad is not None]
    assert gradients
    assert all(value.device == scene.device for value in (loss.total, *loss.terms.values(), *gradients))
    return [value.detach().cpu() for value in (loss.total, *loss.terms.values(), *gradients)]


def _equal(there: Sequence[Tensor], here: Sequence[Tensor]) -> bool:
    return len(there) == len(here) and all(
        a.device == b.device == CPU and torch.equal(a, b) for a, b in zip(there, here, strict=True)
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_and_its_gradients_are_the_same_on_a_device(name, tmp_path):
    expected = _run(Scene(CPU, tmp_path), OBJECTIVES[name])
    with Card():
        assert _equal(_run(Scene(CARD, tmp_path), OBJECTIVES[name]), expected)


def test_no_objective_is_left_out(tmp_path):
    tried = {type(case(Scene(CPU, tmp_path))[0]) for case in OBJECTIVES.values()}
    assert {
        found
        for found in vars(objectives).values()
        if isinstance(found, type) and issubclass(found, objectives.Objective)
    } - tried == {
        objectives.Objective,
        objectives.AverageVelocity,
        # They take a forward derivative, which torch can't compute under this card's dispatch mode.
        objectives.ContinuousConsistency,
        objectives.MeanFlow,
        objectives.AlignedFlow,
    }


def _draws(scene: Scene, source: States) -> list[State]:
    return [scene.step(index).state(source) for index in range(3)]


@pytest.mark.parametrize("name", STATES)
def test_states_are_the_same_on_a_device_and_their_times_stay_on_the_cpu(name, tmp_path):
    expected = _draws(Scene(CPU, tmp_path), STATES[name](Scene(CPU, tmp_path)))
    with Card():
        scene = Scene(CARD, tmp_path)
        for state, here in zip(_draws(scene, STATES[name](scene)), expected, strict=True):
            tensors = state.tensors()
            assert {key for key, value in tensors.items() if value.device == CPU} == {"t", "origin"} & tensors.keys()
            assert list(tensors) == list(here.tensors())
            assert _equal([value.cpu() for value in tensors.values()], list(here.tensors().values()))


def test_no_states_are_left_out(tmp_path):
    tried = {type(case(Scene(CPU, tmp_path))) for case in STATES.values()}
    assert {
        found for found in vars(states).values() if isinstance(found, type) and issubclass(found, States)
    } - tried == {States}


def test_a_collection_resumes_on_another_device(tmp_path):
    here = STATES["reservoir"](Scene(CPU, tmp_path))
    assert isinstance(here, Dagger)
    _draws(Scene(CPU, tmp_path), here)
    expected = Scene(CPU, tmp_path).step(3).state(here)
    with Card():
        scene = Scene(CARD, tmp_path)
        there, again = STATES["reservoir"](scene), STATES["reservoir"](scene)
        assert isinstance(there, Dagger)
        assert isinstance(again, Dagger)
        _draws(scene, there)
        again.load_state_dict(there.state_dict())
        # A checkpoint's tensors are on the CPU.
        again.load_tensors({name: value.cpu() for name, value in there.tensors().items()})
        for source in (there, again):
            assert _equal(
                [value.cpu() for value in scene.step(3).state(source).tensors().values()],
                list(expected.tensors().values()),
            )


def test_a_state_goes_to_a_device_without_its_times():
    state = State(
        torch.zeros(2, 3), torch.ones(2), Condition(torch.zeros(2), {"text": torch.ones(2)}), origin=torch.zeros(2)
    )
    with Card():
        moved = state.to(CARD)
        assert {name: value.device for name, value in moved.tensors().items()} == {
            "x": CARD,
            "t": CPU,
            "labels": CARD,
            "origin": CPU,
            "context.text": CARD,
        }
    assert state.to(CPU).x is state.x


DENOISERS: dict[str, Callable[[Scene], Denoiser]] = {
    "rescheduled": lambda s: Rescheduled(s.denoiser(1), DiscreteVP("cosine")),
    "reflected": lambda s: Reflected(s.denoiser(1), StraightThrough(DynamicThreshold(0.5, 0.6))),
    "truncated": lambda s: Truncated(s.denoiser(1), s.denoiser(2), 0.4),
    "guided": lambda s: Guided(s.denoiser(1), 3.0),
    "guided within": lambda s: GuidedWithin(s.denoiser(1), 3.0, 1.0, 20.0),
    "guided by patches": lambda s: GuidedPatchwise(s.denoiser(1), 3.0, 2),
    "guided and rescaled": lambda s: GuidedRescaled(s.denoiser(1), 3.0, 0.5),
    "mixture": lambda s: s.placed(three_gaussians(SCHEDULE)),
    "field": lambda s: s.placed(StableTargetField(DiscreteVP(), DATA.samples, DATA.labels)),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_is_the_same_on_a_device(name, tmp_path):
    x, t, labels = (
        normals(ROWS, 2, dtype=torch.float32),
        torch.linspace(0.1, 1, ROWS, dtype=torch.float64),
        torch.arange(ROWS) % 2,
    )
    expected = DENOISERS[name](Scene(CPU, tmp_path))(x, t, labels)
    with Card():
        model = DENOISERS[name](Scene(CARD, tmp_path))
        found = model(x.to(CARD), t, labels.to(CARD))
        assert found.device == device_of(model) == CARD
        assert _equal([found.cpu()], [expected])


def test_an_exact_mixture_has_its_densities_and_samples_on_its_device():
    here, x, t = three_gaussians(SCHEDULE), normals(ROWS, 2), torch.full((ROWS,), 0.3, dtype=torch.float64)
    with Card():
        there = on_card(three_gaussians(SCHEDULE))
        assert _equal([there.log_density(x.to(CARD), t).cpu()], [here.log_density(x, t)])
        assert _equal([value.cpu() for value in there.sample(9, Key(2))], list(here.sample(9, Key(2))))


_SONG = {
    "kind": "song-unet",
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
NETWORKS = {
    "small-unet": {
        "kind": "small-unet",
        "channels": 1,
        "width": 8,
        "depth": 1,
        "embedding": 8,
        "classes": 2,
        "guidance": True,
    },
    "song-unet": _SONG,
    "ncsn": {**_SONG, "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    "dhariwal-unet": {**_SONG, "kind": "dhariwal-unet", "model_channels": 16, "channel_mult": [1, 4], "classes": 2},
}


def _images(name: str, device: torch.device, adapted: bool) -> list[Tensor]:
    """Gradients of a network on images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = randomised(build(NETWORKS[name]), scale=0.1)
    network = network if device == CPU else on_card(network)
    if adapted:
        network = AdaptedNetwork.fresh(AdaptedBase(network), Form(2, 2.0))
    x, label = (value.to(device) for value in (normals(2, 1, 8, 8, dtype=torch.float32), torch.tensor([0.1, 0.7])))
    condition = Condition(torch.tensor([1, -1]), guidance=torch.tensor([1.0, 2.0])).to(device)
    network(x, label, condition).square().sum().backward()
    return [value.grad.cpu() for value in network.parameters() if value.grad is not None]


@pytest.mark.parametrize(("name", "adapted"), [*((name, False) for name in NETWORKS), ("small-unet", True)])
def test_a_network_of_images_is_the_same_on_a_device(name, adapted):
    expected = _images(name, CPU, adapted)
    with Card():
        found = _images(name, CARD, adapted)
    assert len(found) == len(expected)
    # Attention is computed by another kernel there, which differs by rounding.
    for here, there in zip(expected, found, strict=True):
        assert there.device == CPU
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5 * max(1.0, float(here.abs().max())))


def test_what_is_measured_of_samples_on_a_device_is_the_same(tmp_path):
    samples, labels, bound = normals(20, 2, dtype=torch.float32), torch.arange(20) % 2, fourier_features(2, 8)
    with Card():
        there = Scene(CARD, tmp_path).teacher()
        moved, ids = samples.to(CARD), labels.to(CARD)
        assert spread(moved, ids) == spread(samples, labels)
        assert spread(moved) == spread(samples)
        expected = assessed_mismatch(Scene(CPU, tmp_path).teacher(), samples, labels, Key(0))
        assert assessed_mismatch(there, moved, ids, Key(0)) == expected
        assert assessed_mismatch(there, samples, labels, Key(0)) == expected
        # A network's features are where the samples are, wherever the network is.
        assert _equal([bound(moved).cpu(), placed(bound, CARD)(samples)], [bound(samples), bound(samples)])


def test_a_student_is_sampled_on_its_device_and_its_samples_come_back(tmp_path):
    def sampler(device: torch.device) -> StudentSampler:
        return StudentSampler(
            -1, 1, Scene(device, tmp_path).teacher(), Scene(device, tmp_path).prior, Sampling("renoise", steps=3)
        )

    teacher = TeacherSampler(-1, 1, Scene(CPU, tmp_path).teacher(), HEUN, RhoGrid(), Classes(2))
    expected = [sampler(CPU)(5), teacher(5, steps=4)]
    with Card():
        assert _equal(
            [sampler(CARD)(5), replace(teacher, denoiser=Scene(CARD, tmp_path).teacher())(5, steps=4)], expected
        )


def test_drawing_states_and_their_times_does_not_wait_for_the_device(tmp_path):
    with Card() as card:
        scene = Scene(CARD, tmp_path)
        for source in (scene.forward, scene.guided, Started(scene.forward, scene.prior)):
            scene.step().state(source)
        assert card.fetched == 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(here > 0, there, there),
        lambda here, there: there.masked_fill(here > 0, 0.0),
        lambda here, there: here[there.long()],
        lambda here, there: here @ there.T,
        lambda here, there: torch.searchsorted(there[0], here[0]),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(operation):
    here = torch.eye(2)
    with Card(), pytest.raises(Mixed):
        operation(here, here.to(CARD))


def test_the_device_allows_what_a_gpu_allows():
    here = torch.eye(2)
    with Card():
        there = here.to(CARD)
        index, number = torch.tensor([1, 0]), torch.tensor(2.0)
        assert all(
            isinstance(found, OnCard)
            for found in (there[index], there * number, there * 3, torch.zeros(2, device=CARD), torch.zeros_like(there))
        )
        assert torch.equal((there[index] * number).cpu(), 2 * here[index])
        there[index == 0] = number
        assert there.cpu().tolist() == [[1.0, 0.0], [2.0, 2.0]]
        assert here.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_an_average_and_the_flag_of_a_step_do_not_wait_for_the_device(tmp_path):
    with Card() as card:
        model = Scene(CARD, tmp_path).teacher()
        average, soundness = Averaged(model, HalfLife(50.0)), Soundness()
        report = Report(Phase("p", model, [Term(_Nothing(), Scene(CARD, tmp_path).prior)]), [])
        for value in (1.0, float("nan")):
            report.add([torch.full((), value, device=CARD)], {}, {})
            report.end(torch.ones((), device=CARD))
            lost = soundness.judge(report)
            average.update(model, lost)
        assert card.fetched == 0
        assert (float(lost), average.updates) == (1.0, 1)


@dataclass(frozen=True, eq=False)
class _Nothing(objectives.Objective):
    """A loss that nobody takes."""

    def __call__(self, step, state):
        raise NotImplementedError
