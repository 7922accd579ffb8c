"""What ships: the data are scikit-learn's, the teachers are as good as their card says, and the
weights fit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

import fewstep as fs
from fewstep.condition import Classes
from fewstep.data.synthetic import sampled
from fewstep.metrics.quality import Evaluator
from fewstep.prediction import score_of
from fewstep.random import Key
from fewstep.runs import TeacherSampler
from fewstep.solvers import DPM2M
from fewstep.times import RhoGrid

WEIGHTS = Path(fs.zoo.__file__).parent / "weights"


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_digits_are_scikit_learns():
    ours, theirs = fs.data.digit_images(), load_digits()
    assert torch.equal((ours.samples[:, 0] + 1) * 8, torch.from_numpy(theirs.images).float())
    assert torch.equal(ours.labels, torch.from_numpy(theirs.target))
    assert float(ours.samples.min()) == -1
    assert float(ours.samples.max()) == 1


def test_the_weights_are_small_and_each_has_a_line_in_the_card():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 3_500_000
    card = (WEIGHTS / "README.md").read_text()
    for file in files:
        assert f"`{file.name}`" in card
    for model in (fs.zoo.digits(), fs.zoo.digit_features(), fs.zoo.mixture2d(), fs.zoo.scenes_reader()):
        assert f"{parameters(model):,}" in card
    assert parameters(fs.zoo.digits()) < 400_000
    assert parameters(fs.zoo.digit_features()) < 100_000


def test_each_shipped_model_is_what_its_recipe_builds():
    from fewstep.denoisers.model_files import describe_model
    from fewstep.networks import describe_network
    from fewstep.recipes import load_recipe
    from fewstep.recipes.building.pretrain import build_pretraining

    for name, model in (("digits-teacher", fs.zoo.digits()), ("mixture2d-teacher", fs.zoo.mixture2d())):
        assert describe_model(build_pretraining(load_recipe(name)).model) == describe_model(model)
    for name, network in (
        ("digits-features", fs.zoo.digit_features()),
        ("scenes-features", fs.zoo.scenes_reader()),
    ):
        assert describe_network(build_pretraining(load_recipe(name)).model) == describe_network(network)


def test_the_feature_network_knows_the_digits():
    data = fs.data.digit_images()
    assert float((fs.zoo.digit_features()(data.samples).argmax(1) == data.labels).double().mean()) >= 0.995


def test_the_teachers_samples_are_of_their_class_and_nearer_the_data_than_its_halves_are():
    data, features = fs.data.digit_images(), fs.zoo.digit_features()
    evaluator = Evaluator(data, features.features, features, samples=1500)
    sampler = TeacherSampler(-1.0, 1.0, fs.zoo.digits(), DPM2M, RhoGrid(), Classes(10))
    quality = evaluator.measure(lambda key, n, labels: sampler.draw(key, n, labels, 15).clamp(-1, 1), draws=1)
    assert quality.accuracy is not None
    assert quality.accuracy >= 0.97
    assert quality.fd <= evaluator.halves()


def test_guidance_sharpens_the_classes():
    sampler = TeacherSampler(-1.0, 1.0, fs.zoo.digits(), DPM2M, RhoGrid(), Classes(10))
    guided = TeacherSampler(-1.0, 1.0, fs.denoisers.Guided(fs.zoo.digits(), 3.0), DPM2M, RhoGrid(), Classes(10))
    labels, classifier = torch.arange(300) % 10, fs.zoo.digit_features()

    def confidence(draw) -> float:
        return float(torch.log_softmax(classifier(draw(Key(0), 300, labels, 10)), 1)[torch.arange(300), labels].mean())

    assert confidence(guided.draw) > confidence(sampler.draw)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 3.0])
def test_the_mixtures_teacher_is_near_the_exact_score_where_there_is_data(sigma):
    teacher = fs.zoo.mixture2d()
    exact = fs.data.random_mixture(teacher.schedule)
    data = sampled(exact, 500, seed=1)
    t = teacher.schedule.time_at_sigma(sigma).expand(500)
    x = teacher.schedule.add_noise(data.samples, t, Key(2).normal("noise", (500, 2)))
    learned, true = (score_of(teacher.schedule, model(x, t), x, t) * sigma for model in (teacher, exact))
    assert float((learned - true).square().mean()) < 0.05 * float(true.square().mean())
