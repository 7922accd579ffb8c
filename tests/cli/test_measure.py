"""``fewstep measure``: the same numbers for any number of processes, and those that ``evaluate``
finds; classifiers as feature spaces; refusals.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_kit import fewstep

from fewstep.command.tables.evaluations import measurement_table
from fewstep.data import digit_images
from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics, Reference, load_reference, save_reference
from fewstep.metrics.features import FeatureSpace
from fewstep.networks import Classifier, ImageClassifier, build
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.random import Key
from fewstep.recipes import config, load_recipe, shipped_text
from fewstep.recipes.building.parts import build_evaluator
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.runs import RunFolder, Workers, distill, load, load_teacher, measure_many, write_reference
from fewstep.runs.sampler import BATCH
from fewstep.system.caches import content_digest
from fewstep.zoo import digit_features

SAMPLES = 500
# Blocks of 200, 200 and 100.
WORKERS = Workers(batch=200)
CLASSIFIER = {
    "kind": "image-classifier",
    "size": 8,
    "channels": 1,
    "width": 8,
    "depth": 1,
    "features": 16,
    "classes": 10,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of four steps' training on digits."""
    settings = [
        "training.steps=4",
        f"evaluation.samples={SAMPLES}",
        "evaluation.draws=1",
        "evaluation.teacher_steps=[2]",
        "evaluation.every=1000",
        "training.health_every=1000",
    ]
    return distill("digits-diff-instruct", settings, tmp_path_factory.mktemp("measure") / "run")


@pytest.fixture(scope="module")
def alone(run: Path) -> dict:
    """Measured by this process."""
    return measure_many(run, SAMPLES, workers=WORKERS)


def test_any_number_of_processes_finds_the_same_bit_for_bit(run, alone):
    """Through the command line: the blocks go to whichever process is free."""
    result = fewstep("measure", run, "--samples", SAMPLES, "--processes", 2, "--batch", 200, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == alone == json.loads((run / "measured-student-1.json").read_text())
    assert torch.get_num_threads() == 1


def test_other_batches_change_it_by_rounding_alone(run, alone):
    found = measure_many(run, SAMPLES, metrics=["fd", "is", "accuracy"])
    assert found["fd"] == pytest.approx(alone["fd"], rel=1e-6)
    assert found["is"]["mean"] == pytest.approx(alone["is"]["mean"], rel=1e-6)
    assert found["accuracy"] == pytest.approx(alone["accuracy"], abs=1.5 / SAMPLES)
    assert set(found) == {"model", "steps", "samples", "space", "reference", "origins", "fd", "is", "accuracy"}


def test_it_finds_what_evaluate_finds(run, alone):
    """The same noise, classes and data, whole there and in blocks here."""
    recipe = RunFolder(run).read_distill_recipe()
    evaluator, student = build_evaluator(recipe.evaluation, recipe.data.open()), load(run)
    expected = evaluator.describe(lambda key, n, labels: student.draw(key, n, labels, 1).clamp(-1, 1), 1)
    assert alone["fd"] == pytest.approx(expected.quality.fd, rel=1e-6)
    assert alone["accuracy"] == expected.quality.accuracy
    for name in ("precision", "recall", "density", "coverage"):
        assert alone[name] == pytest.approx(getattr(expected.breadth, name), abs=1.5 / SAMPLES)
    assert alone["diversity"] == pytest.approx(expected.breadth.diversity, rel=1e-6)
    teacher = load_teacher(run)
    theirs = evaluator.measure(lambda key, n, labels: teacher.draw(key, n, labels, 2).clamp(-1, 1), 1)
    assert measure_many(run, SAMPLES, "teacher", 2, metrics=["fd"])["fd"] == pytest.approx(theirs.fd, rel=1e-6)
    assert (run / "measured-teacher-2.json").is_file()


def test_stored_statistics_serve_as_the_data(run, alone, tmp_path):
    path = write_reference(run, tmp_path / "digits.safetensors")
    stored = load_reference(path)
    own = FeatureStatistics.of(digit_features().features(digit_images().take(torch.arange(1797))))
    assert stored.statistics.count == 1797
    assert stored.space == "digits-features"
    torch.testing.assert_close(stored.statistics.covariance, own.covariance, rtol=1e-9, atol=1e-9)
    np.savez(tmp_path / "digits.npz", mu=stored.statistics.mean.numpy(), sigma=stored.statistics.covariance.numpy())
    for name, count in (("digits.safetensors", 1797), ("digits.npz", None)):
        found = measure_many(run, SAMPLES, reference=tmp_path / name, metrics=["fd"])
        assert found["fd"] == pytest.approx(alone["fd"], rel=1e-9)
        assert found["reference"] == {
            "file": str(tmp_path / name),
            "count": count,
            "sha256": content_digest(tmp_path / name),
        }


def test_a_reference_in_the_features_of_other_weights_is_refused(run, tmp_path):
    """The space has the same name, and its network other weights: what ships changed, or
    Inception's file was exchanged.
    """
    stored = load_reference(write_reference(run, tmp_path / "digits.safetensors"))
    assert set(stored.origins) == {"data", "evaluation.features.kind"}
    others = {**stored.origins, "evaluation.features.kind": "0" * 64}
    save_reference(tmp_path / "other.safetensors", Reference(stored.statistics, stored.space, others))
    with pytest.raises(
        UserError,
        match=r"features of another network than 'evaluation.features.kind' names now \(SHA-256 000000000000 then",
    ):
        measure_many(run, SAMPLES, reference=tmp_path / "other.safetensors", metrics=["fd"])


def test_the_command_writes_references(run, tmp_path):
    result = fewstep("measure", run, "--write-reference", tmp_path / "ref.safetensors")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "ref.safetensors")
    assert load_reference(tmp_path / "ref.safetensors").statistics.count == 1797


def test_the_table_has_a_line_a_number(alone):
    lines = measurement_table({**alone, "reference": {"file": "ref.npz", "count": None}}).splitlines()
    assert lines[0] == "student, 1 step, 500 samples, in the space 'digits-features', against ref.npz"
    names = [
        "Frechet distance",
        "kernel distance",
        "inception score",
        "precision",
        "recall",
        "density",
        "coverage",
        "diversity",
        "class accuracy",
    ]
    assert [line.split("  ")[0] for line in lines[1:]] == names
    assert lines[1].split()[-1] == f"{alone['fd']:.4g}"
    assert lines[3].split()[-3:] == [f"{alone['is']['mean']:.4g}", "+-", f"{alone['is']['spread']:.2g}"]


def test_a_metric_that_is_none_is_refused_in_a_sentence(run):
    with pytest.raises(UserError, match="there is no metric 'fid'; it must be one of fd, kid, is"):
        measure_many(run, 20, metrics=["fid"])


def test_references_and_workers_that_do_not_fit_are_refused(run, tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match=r"other.npz: holds statistics of 5 features, this run measures 64"):
        measure_many(run, 20, reference=tmp_path / "other.npz")
    path = write_reference(run, tmp_path / "ref.safetensors")
    stored = load_reference(path)
    save_reference(path, Reference(stored.statistics, "another"))
    with pytest.raises(UserError, match="in the feature space 'another', this run measures in 'digits-features'"):
        measure_many(run, 20, reference=path)
    with pytest.raises(UserError, match="written as safetensors"):
        write_reference(run, tmp_path / "ref.npz")
    for workers in ({"processes": 0}, {"batch": 0}, {"batch": BATCH + 1}):
        with pytest.raises(UserError, match="at least 1 process and batches of 1 to 500"):
            Workers(**workers)


def test_what_a_space_cannot_tell_is_refused(tmp_path):
    settings = [
        "training.steps=4",
        "evaluation.samples=20",
        "evaluation.every=1000",
        "training.health_every=1000",
        "data.samples=200",
    ]
    plane = distill("mixture2d-diff-instruct", settings, tmp_path / "plane")
    for metric, reason in (("is", "has no classifier"), ("accuracy", "a model with classes")):
        with pytest.raises(UserError, match=f"'{metric}' cannot be measured: .*{reason}"):
            measure_many(plane, 20, metrics=[metric])
    assert not {"is", "accuracy"} & set(measure_many(plane, 20))


# Samples from an index on


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_later_block_is_that_part_of_the_whole(run, model):
    sampler = load(run) if model == "student" else load_teacher(run)
    labels, key = torch.arange(BATCH + 30) % 10, Key(3, "sample")
    whole = sampler.draw(key, BATCH + 30, labels, 2)
    assert torch.equal(sampler.draw(key, 30, labels[BATCH:], 2, BATCH), whole[BATCH:])
    torch.testing.assert_close(sampler.draw(key, 5, labels[20:25], 2, 20), whole[20:25], rtol=0, atol=1e-4)
    assert not torch.equal(sampler.draw(key, 30, labels[BATCH:], 2), whole[BATCH:])


# Classifiers as feature spaces


def _saved(path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    save_network(path, build({**CLASSIFIER, **changes}))
    return path


def test_a_trained_classifier_is_a_feature_space_and_judges(tmp_path):
    path = _saved(tmp_path / "model.safetensors")
    data = digit_images()
    choice = config.ClassifierFeatures(kind="classifier", path=str(path))
    space = choice.space(data)
    network = freeze(load_network(path))
    assert isinstance(network, Classifier)
    images = data.take(torch.arange(7))
    assert torch.equal(space.extract(images), network.features(images))
    assert torch.equal(space.classify(images), network(images))
    assert torch.equal(choice.space(data, "cpu").extract(images), network.features(images))
    assert space.labelled
    evaluator = build_evaluator(config.Evaluation(features=choice, samples=50), data)
    found = evaluator.measure(lambda key, n, labels: data.take(torch.arange(n)), 1)
    labels = data.proportional_labels(50)
    assert found.accuracy == float((network(data.take(torch.arange(50))).argmax(1) == labels).double().mean())
    again, wider = _saved(tmp_path / "again.safetensors"), _saved(tmp_path / "other.safetensors", features=24)
    same = config.ClassifierFeatures(kind="classifier", path=str(again)).space(data)
    other = config.ClassifierFeatures(kind="classifier", path=str(wider)).space(data)
    assert space.name == same.name != other.name


def test_a_classifier_of_other_classes_does_not_judge(tmp_path):
    choice = config.ClassifierFeatures(kind="classifier", path=str(_saved(tmp_path / "model.safetensors", classes=4)))
    assert not choice.space(digit_images()).labelled
    assert build_evaluator(config.Evaluation(features=choice, samples=50), digit_images()).classifier is None


def test_files_that_are_no_fitting_classifier_are_refused(tmp_path):
    save_network(tmp_path / "mlp.safetensors", build({"kind": "residual-mlp"}))
    cases = [
        (tmp_path / "none.safetensors", "no such file; make it by 'fewstep pretrain'"),
        (tmp_path / "mlp.safetensors", "holds a ResidualMLP, not a classifier"),
        (
            _saved(tmp_path / "large.safetensors", size=16),
            r"reads images of shape \(1, 16, 16\), the data has \(1, 8, 8\)",
        ),
    ]
    for path, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            config.ClassifierFeatures(kind="classifier", path=str(path)).space(digit_images())
    with pytest.raises(UserError, match="has no classifier"):
        FeatureSpace("plain", lambda x: x).classify(torch.zeros(1))


@pytest.mark.parametrize(
    ("size", "channels", "halvings"), [(8, 1, 1), (16, 3, 2), (32, 3, 3), (64, 3, 4), (28, 1, 2), (48, 2, 3)]
)
def test_an_image_classifier_has_the_stages_it_says(size: int, channels: int, halvings: int) -> None:
    network = ImageClassifier(9, size, channels, width=8, features=12)
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    stages = network.stages(x)
    assert [stage.shape[1] for stage in stages] == list(network.stage_channels)
    assert [stage.shape[2] for stage in stages[:-1]] == [size // 2**i for i in range(halvings + 1)]
    assert torch.equal(stages[-1], network.features(x))
    assert torch.equal(network(x), network.head(network.features(x)))
    assert network(x).shape == (2, 9)
    with pytest.raises(UserError, match="reads images of shape"):
        network(torch.zeros(2, channels, size, size + 2))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"size": 4}, "size"),
        ({"size": 30}, "size"),
        ({"size": 36}, "size"),
        ({"width": 12}, "width"),
        ({"classes": 0}, "classes"),
        ({"classes": 1}, "classes"),
    ],
)
def test_impossible_image_classifiers_are_refused(settings: dict[str, int], key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}' .*must be"):
        ImageClassifier(**{"classes": 9, **settings})


def test_the_recipe_of_the_emoji_features_trains_on_other_images(tmp_path):
    """The recipe as it ships, at the size of the digits."""
    values = yaml.safe_load(shipped_text("emoji32-features"))
    values["model"]["network"].update(size=8, channels=1, width=8, features=16)
    values["data"] = {"kind": "digits"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    parts = build_pretraining(load_recipe(tmp_path / "mine.yaml"))
    assert isinstance(parts.model, ImageClassifier)
    assert parts.model.classes == 10
