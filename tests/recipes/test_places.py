"""What a recipe names outside itself: every such field is marked, and a path means the same from
everywhere.

A path is never asked of the hub.
"""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fewstep.errors import UserError
from fewstep.recipes import DistillRecipe, PretrainRecipe, load_recipe
from fewstep.recipes.building.checksums import digest_of_named
from fewstep.recipes.config import HuggingFaceData, Names
from fewstep.recipes.config.section import fields_of
from fewstep.recipes.reading.places import named_in
from fewstep.system.locations import absolute, folder_or_id, is_hub_id, same_place

# Free texts that lead nowhere: columns of a set, a commit, a checksum, the name of an architecture.
# Besides: the kind of a network, and the name of what Python gives.
PLAIN = {"subfolder", "variant", "split", "image", "label", "revision", "sha256", "network", "kind", "name"} | {
    # A column of prompts, and prompts themselves.
    "column",
    "texts",
    # A column of captions.
    "caption",
}


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all that its fields may be made of."""
    found, open_ = set(), [model]
    while open_:
        each = open_.pop()
        if isinstance(each, type) and issubclass(each, BaseModel):
            if each not in found:
                found.add(each)
                open_ += [field.annotation for field in each.model_fields.values()]
        else:
            open_ += typing.get_args(each)
    return found


def is_text(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Annotated:
        return is_text(typing.get_args(annotation)[0])
    return annotation is str or str in typing.get_args(annotation)


def test_every_text_of_a_recipe_that_leads_out_of_it_is_marked():
    texts = {
        (section.__name__, name): any(isinstance(mark, Names) for mark in field.marks)
        for section in sections(DistillRecipe) | sections(PretrainRecipe)
        for name, field in fields_of(section).items()
        if is_text(field.annotation)
    }
    assert texts[("NvidiaTeacher", "path")]
    assert {name for (_, name), marked in texts.items() if not marked} == PLAIN


@pytest.mark.parametrize("recipe", ["digits-disback", "digits-add"])
def test_what_ships_is_named_by_its_weights(recipe):
    """The teacher's, the feature space's, and the critic's that reads that network's layers."""
    settings = ["method.adversarial={kind: classifier-features}"] if recipe == "digits-add" else []
    named = {each.key: digest_of_named(each) for each in named_in(load_recipe(recipe, settings)) if each.value}
    assert all(digest is not None and len(digest) == 64 for digest in named.values())
    assert {"teacher.name", "evaluation.features.kind"} <= set(named)
    if settings:
        assert named["method.adversarial.kind"] == named["evaluation.features.kind"]


def test_paths_are_absolute_once_a_recipe_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    teacher = "teacher={kind: file, path: '~/model.safetensors', recipe: mine/teacher.yaml}"
    recipe = load_recipe("emoji32-disback", [teacher, "data.path=../sets/emoji.zip"])
    named = {each.key: each.value for each in named_in(recipe)}
    assert named == {
        "teacher.path": str(tmp_path / "home" / "model.safetensors"),
        "teacher.recipe": str(tmp_path / "mine" / "teacher.yaml"),
        "student.start": None,
        "data.path": str(tmp_path.parent / "sets" / "emoji.zip"),
        "evaluation.features.path": str(tmp_path / "runs" / "emoji32-features" / "model.safetensors"),
    }
    for address in ("https://a/b.pkl", "http://a/train-{000..999}.tar"):
        assert load_recipe("emoji32-disback", [f"data={{kind: webdataset, urls: '{address}'}}"]).data.urls == address
    recipe = load_recipe("emoji32-disback", ["data={kind: huggingface, name: owner/name.v1}"])
    assert recipe.data.name == "owner/name.v1"


def test_a_link_and_what_it_leads_to_are_one_place(tmp_path, monkeypatch):
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    monkeypatch.chdir(tmp_path)
    assert absolute("link/file") == str(tmp_path / "link" / "file")
    # The parent of where the link leads, not of where it lies.
    assert absolute("link/../file") == os.path.realpath(tmp_path / "disk" / "file")
    assert same_place("link", "disk/set")
    assert not same_place("link", "disk")
    assert not same_place("none", "disk/none")


@pytest.mark.parametrize(
    "name",
    ["./mine", "../mine", "/data/mine", "~/mine", "mine.zip", "owner/train.parquet", "sets/of/mine", "there", "there/"],
)
def test_a_path_is_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("a file and no folder")
    assert not is_hub_id(name, "data sets")
    with pytest.raises(UserError, match="is neither a folder nor an id of the hub") as caught:
        HuggingFaceData(kind="huggingface", name=name).open()
    assert absolute(name) in str(caught.value)
    with pytest.raises(UserError, match="is neither a folder nor an id of the hub"):
        folder_or_id(name, "models")


def test_a_folder_that_is_there_is_one_and_other_names_are_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "set").mkdir(parents=True)
    assert folder_or_id("owner/set", "data sets") == str(tmp_path / "owner" / "set")
    for name in ("owner/other", "owner/model.1-dev", "mnist"):
        assert folder_or_id(name, "data sets") == name
    with pytest.raises(UserError, match="is neither a folder nor an id"):
        folder_or_id("mnist", "models")
