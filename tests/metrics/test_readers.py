"""Readers: several attributes by one network, how they are trained, and their features."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.data import Described, digit_images
from fewstep.data.scenes import Scenes
from fewstep.errors import UserError
from fewstep.networks import ImageClassifier, ImageReader, Reader, build, describe_network
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.objectives import AttributeReading, Classification
from fewstep.random import Key
from fewstep.recipes import config, load_recipe
from fewstep.recipes.building.checksums import origins_of
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.states import Attributed, State, Step
from fewstep.system.files import read_tensors
from fewstep.training import Trainer
from interrupt_kit import Interrupted, Interrupter

SMALL = {"size": 8, "channels": 1, "width": 8, "features": 12}
TINY = [
    "model.network.width=8",
    "model.network.features=12",
    "data.count=50",
    "training.steps=12",
    "training.batch=4",
    "training.log_every=2",
    "training.checkpoint_every=5",
]


class Classes(Described):
    """The digits, whose one attribute is their class."""

    labels, classes, low, high, names = None, 0, -1.0, 1.0, ()
    values = MappingProxyType({"digit": 10})
    identity = "digits"
    shape = (1, 8, 8)

    def __len__(self) -> int:
        return len(digit_images())

    def take(self, index: torch.Tensor) -> torch.Tensor:
        return digit_images().take(index)

    def attributes(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"digit": digit_images().labels[index]}


def reader_of(**attributes: int) -> ImageReader:
    torch.manual_seed(3)
    return ImageReader(attributes, **SMALL)


def test_a_reader_has_a_head_an_attribute_on_its_features():
    reader, pictures = reader_of(digit=10, colour=8), torch.randn(5, 1, 8, 8)
    told, features = reader(pictures), reader.features(pictures)
    assert {name: tuple(logits.shape) for name, logits in told.items()} == {"digit": (5, 10), "colour": (5, 8)}
    assert features.shape == (5, 12)
    assert all(torch.equal(logits, reader.heads[name](features)) for name, logits in told.items())
    assert torch.equal(features, reader.stages(pictures)[-1])


def test_a_reader_and_a_classifier_share_their_trunk():
    torch.manual_seed(3)
    classifier, reader = ImageClassifier(10, **SMALL), reader_of(digit=10)
    pictures = torch.randn(5, 1, 8, 8)
    assert torch.equal(classifier.features(pictures), reader.features(pictures))
    assert torch.equal(classifier(pictures), reader(pictures)["digit"])


def test_a_file_rebuilds_a_reader_whatever_the_order_of_its_attributes(tmp_path):
    reader, pictures = reader_of(digit=10, colour=8, place=5), torch.randn(5, 1, 8, 8)
    save_network(tmp_path / "reader.safetensors", reader)
    again = load_network(tmp_path / "reader.safetensors")
    assert isinstance(again, Reader)
    told = again(pictures)
    assert all(torch.equal(logits, told[name]) for name, logits in reader(pictures).items())
    assert describe_network(build(describe_network(reader))) == describe_network(reader)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"attributes": {}}, "'attributes' must have at least 2 values each"),
        ({"attributes": {"a": 1}}, "'attributes' must have at least 2 values each"),
        ({"attributes": {"a": "b"}}, "cannot be built with the arguments"),
        ({"attributes": {"a": 10**13}}, "parameters, for which this machine's memory has no room|cannot be built"),
        ({"attributes": {"a": 2}, "size": 9}, "image reader: 'size' must be"),
        ({"attributes": {"a": 2}, "width": 12}, "'width' is 12, and must be a multiple of 8"),
        ({}, "the argument 'attributes' is missing"),
    ],
)
def test_readers_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        build({"kind": "image-reader", **arguments})


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"this image reader reads images of shape \(1, 8, 8\), got \(3, 32, 32\)"):
        reader_of(digit=10)(torch.zeros(1, 3, 32, 32))


def test_a_reader_that_knows_nothing_loses_the_logarithms_of_the_values():
    reader = reader_of(digit=10, colour=8)
    for head in reader.heads.values():
        head.weight.data.zero_()
        head.bias.data.zero_()
    context = {"digit": torch.arange(6), "colour": torch.arange(6)}
    state = State(torch.zeros(6, 1, 8, 8), torch.zeros(6), Condition(context=context), torch.zeros(6, 1, 8, 8))
    loss = AttributeReading(reader)(Step(Key(0), 6), state)
    assert float(loss.total.detach()) == pytest.approx(math.log(10) + math.log(8))
    assert float(loss.terms["digit"]) == pytest.approx(math.log(10))
    assert float(loss.terms["colour"]) == pytest.approx(math.log(8))


def test_reading_one_attribute_is_classification_bit_for_bit():
    torch.manual_seed(3)
    classifier, reader = ImageClassifier(10, **SMALL), reader_of(digit=10)
    labels, x = torch.arange(10), torch.randn(10, 1, 8, 8)
    state = State(x, torch.zeros(10), Condition(labels, {"digit": labels}), x)
    ours, theirs = (
        objective(Step(Key(0), 10), state)
        for objective in (AttributeReading(reader, 0.0), Classification(classifier, 0.0))
    )
    assert torch.equal(ours.total, theirs.total)
    ours.total.backward()
    theirs.total.backward()
    assert torch.equal(reader.enter[0].weight.grad, classifier.enter[0].weight.grad)
    assert torch.equal(reader.heads["digit"].weight.grad, classifier.head.weight.grad)


def test_what_is_read_is_noised():
    reader, data = reader_of(digit=10), Classes()
    step = Step(Key(4, "pretrain", 2), 6)
    state = step.state(Attributed(data))
    noisy = state.x0 + 0.3 * Step(Key(4, "pretrain", 2), 6).noise_like("reader-noise", state.x0)
    expected = functional.cross_entropy(reader(noisy)["digit"], state.condition.context["digit"])
    assert torch.equal(AttributeReading(reader, 0.3)(step, state).total, expected)


def test_attributed_states_are_clean_samples_with_their_attributes_whoever_draws_them():
    data, key = Scenes(200, 2), Key(1, "pretrain", 7)
    states = Attributed(data)
    whole = states.draw(Step(key, 12))
    assert states.ahead
    assert torch.equal(whole.x, whole.x0)
    assert not bool(whole.t.any())
    index = key.integers("data-index", 12, 200)
    assert torch.equal(whole.x0, data.take(index))
    for name, value in data.attributes(index).items():
        assert torch.equal(whole.condition.context[name], value)
    for start, rows in ((0, 5), (5, 7)):
        part = states.draw(Step(key, rows, start))
        assert torch.equal(part.x0, whole.x0[start : start + rows])
        assert torch.equal(
            part.condition.context["relation"], whole.condition.context["relation"][start : start + rows]
        )


def _trainer(folder: Path, listeners=()) -> Trainer:
    """Of new objects, as of a new process."""
    recipe = load_recipe("scenes-features", [*TINY, "data.digits=2"])
    parts = build_pretraining(recipe)
    return Trainer(folder, parts.stages, parts.model, build_settings(recipe.training), listeners=listeners)


def test_a_run_that_is_cut_and_resumed_is_the_whole_run_byte_for_byte(tmp_path):
    whole = _trainer(tmp_path / "whole")
    before = {key: value.clone() for key, value in whole.average.state_dict().items()}
    whole.fit()
    with pytest.raises(Interrupted):
        _trainer(tmp_path / "cut", [Interrupter(8)]).fit()
    resumed = _trainer(tmp_path / "cut")
    resumed.fit(resume=True)
    assert any(not torch.equal(before[key], value) for key, value in whole.average.state_dict().items())
    last = [max((tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "cut")]
    assert last[0].name == last[1].name == "step-00000012.safetensors"
    tensors = [read_tensors(path) for path in last]
    assert tensors[0][0].keys() == tensors[1][0].keys()
    assert all(torch.equal(value, tensors[1][0][name]) for name, value in tensors[0][0].items())
    assert tensors[0][1] == tensors[1][1]


@pytest.mark.parametrize("number", [1, 2])
def test_the_recipe_makes_a_reader_of_its_scenes(number):
    parts = build_pretraining(load_recipe("scenes-features", [f"data.digits={number}"]))
    assert isinstance(parts.model, ImageReader)
    assert isinstance(parts.data, Scenes)
    assert (parts.data.part, parts.data.combinations) == ("train", "all")
    assert {name: head.out_features for name, head in parts.model.heads.items()} == parts.data.values


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data={kind: digits}"], "'model.kind: reader' learns the attributes of samples, which this data has not"),
        (["method.kind=classification"], "'method.kind: classification' and 'model.kind: reader' do not fit"),
        (["data.digits=3"], "data.digits"),
        (["data.combinations=none"], "data.combinations"),
        (["data.count=1"], "data.count"),
    ],
)
def test_recipes_of_readers_that_do_not_fit_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        build_pretraining(load_recipe("scenes-features", overrides))


def test_a_reader_is_a_feature_space_that_judges_no_classes(tmp_path):
    data = Scenes(20, 1)
    torch.manual_seed(0)
    reader = ImageReader(dict(data.values), width=8, features=12)
    save_network(tmp_path / "model.safetensors", reader)
    space = config.ClassifierFeatures(kind="classifier", path=str(tmp_path / "model.safetensors")).space(data)
    pictures = data.take(torch.arange(4))
    assert torch.equal(space.extract(pictures), reader.features(pictures))
    assert not space.labelled
    with pytest.raises(UserError, match="has no classifier"):
        space.classify(pictures)


def test_a_reader_of_its_own_kind_is_the_same_space_and_tells_attributes(tmp_path):
    data, path = Scenes(20, 1), tmp_path / "model.safetensors"
    torch.manual_seed(0)
    reader = ImageReader(dict(data.values), width=8, features=12)
    save_network(path, reader)
    space = config.ReaderFeatures(kind="reader", path=str(path)).space(data)
    pictures = data.take(torch.arange(4))
    assert torch.equal(space.extract(pictures), reader.features(pictures))
    assert space.readings is not None
    told = space.readings(pictures)
    assert all(torch.equal(logits, told[name]) for name, logits in reader(pictures).items())
    assert (space.head, space.labelled) == (None, False)
    # The name follows the content: another network of the same path is another space.
    other = ImageReader(dict(data.values), width=8, features=12)
    save_network(path, other)
    assert config.ReaderFeatures(kind="reader", path=str(path)).space(data).name != space.name
    save_network(tmp_path / "again.safetensors", reader)
    assert config.ReaderFeatures(kind="reader", path=str(tmp_path / "again.safetensors")).space(data).name == space.name


def test_the_shipped_reader_is_the_file_of_that_name(tmp_path, monkeypatch):
    data = Scenes(20, 1)
    torch.manual_seed(0)
    reader = ImageReader(dict(data.values), width=8, features=12)
    (tmp_path / "weights").mkdir()
    save_network(tmp_path / "weights" / "scenes-features.safetensors", reader)
    recipe = load_recipe("mixture2d-teacher", ["evaluation.features={kind: reader, name: scenes}"])
    monkeypatch.setattr("fewstep.zoo.shipped.resources.files", lambda _: tmp_path)
    choice = config.ReaderFeatures(kind="reader", name="scenes")
    space = choice.space(data)
    assert space.name == "scenes-features"
    pictures = data.take(torch.arange(4))
    assert torch.equal(space.extract(pictures), reader.features(pictures))
    digest = hashlib.sha256((tmp_path / "weights" / "scenes-features.safetensors").read_bytes()).hexdigest()
    assert origins_of(recipe, ("evaluation",)) == {"evaluation.features.name": digest}
    (tmp_path / "weights" / "scenes-features.safetensors").unlink()
    with pytest.raises(UserError, match="no shipped weights 'scenes-features'"):
        choice.space(data)


def test_features_of_readers_that_cannot_be_are_refused(tmp_path):
    data, path = Scenes(20, 1), tmp_path / "model.safetensors"
    for choice in ("{kind: reader}", "{kind: reader, name: scenes, path: x}"):
        with pytest.raises(UserError, match=r"'evaluation\.features.*give either 'name', .* or 'path'"):
            load_recipe("digits-disback", [f"evaluation.features={choice}"])
    with pytest.raises(UserError, match=r"evaluation\.features\.reader\.name|evaluation\.features\.name"):
        load_recipe("digits-disback", ["evaluation.features={kind: reader, name: faces}"])
    choice = config.ReaderFeatures(kind="reader", path=str(path))
    with pytest.raises(
        UserError, match="there is no such file; make it by 'fewstep pretrain' with a recipe of a reader"
    ):
        choice.space(data)
    save_network(path, ImageClassifier(10, size=32, channels=3, width=8, features=12))
    with pytest.raises(UserError, match="holds a ImageClassifier, not a reader"):
        choice.space(data)
    save_network(path, reader_of(digit=10))
    with pytest.raises(UserError, match=r"reads images of shape \(1, 8, 8\), the data has \(3, 32, 32\)"):
        choice.space(data)
