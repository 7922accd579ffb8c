"""What a recipe needs before it can be run: parts that go together, files, and libraries of extras.

Nothing is fetched; what would be is said.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from fewstep.data.images import open_source
from fewstep.data.labels import Labels, read_labels
from fewstep.denoisers import load_adapter, load_model
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.doctor.environment import EXTRAS, version_of
from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.errors import UserError
from fewstep.networks.kinds.network_files import load_network
from fewstep.planning.sketch import sketch
from fewstep.recipes import DistillRecipe, Recipe, config, load_recipe, shipped_names
from fewstep.recipes.building.distillation import check_parts
from fewstep.recipes.reading.places import named_in
from fewstep.system.files import is_of_ours, opened_tensors
from fewstep.system.locations import absolute, folder_or_id, is_address
from fewstep.training.saving.checkpoint_files import is_checkpoint, look_at
from fewstep.zoo.clip import ClipFolder
from fewstep.zoo.download import cached_file, local_file
from fewstep.zoo.lora.lora_reader import refuse_pickle
from fewstep.zoo.state_dicts import is_torch_file, read_state_dict


def check_recipe(source: Path | str) -> list[Finding]:
    """The findings of a shipped recipe or a YAML file: whether it can be read, its parts go
    together, and all that it names is there.
    """
    try:
        recipe = load_recipe(source)
    except UserError as error:
        return [refused(source, error)]
    return [_parts(recipe, str(source)), *_needs(recipe)]


def _needs(recipe: Recipe) -> list[Finding]:
    """The findings of all that a recipe names besides itself."""
    found = [*_data(recipe.data), *_features(recipe.evaluation.features)]
    if isinstance(recipe, DistillRecipe):
        found = [*_teacher(recipe.teacher), *_prompts(recipe), *_starts(recipe), *found]
    return found


def _parts(recipe: Recipe, name: str) -> Finding:
    if not isinstance(recipe, DistillRecipe):
        return ok(name, "is a valid recipe for 'fewstep pretrain'.")
    try:
        check_parts(recipe)
        place = recipe.teacher.pipeline
        if recipe.data is None and not (place is not None and place.is_on_hub):
            # Whether the method can do without is known when it is built; of a model of the hub
            # nothing is fetched.
            sketch(recipe, Path("plan"))
    except UserError as error:
        return refused(name, error)
    return ok(name, "is a valid recipe for 'fewstep distill', and its parts go together.")


def _teacher(choice: config.TeacherChoice) -> Iterator[Finding]:
    key = "teacher.path"
    if isinstance(choice, config.FileTeacher):
        remedy = "" if choice.recipe is None else f"Make it by 'fewstep pretrain {choice.recipe}', or correct '{key}'."
        yield _stored(key, choice.path, lambda path: load_model(path)[0], remedy)
    elif isinstance(choice, (config.NvidiaTeacher, config.ConsistencyModelsTeacher)):
        yield _published(key, choice.path, choice.sha256)
    elif isinstance(choice, (config.DiffusersTeacher, config.PipelineTeacher)):
        yield _library(f"teacher.kind: {choice.kind}", "diffusers", "diffusers")
        yield from _of_diffusers(key, choice)
    else:
        if choice.pipeline is not None:
            yield _library("teacher", "diffusers", "transformers")
        yield ok("teacher", f"'{choice.kind}' needs no file.")


def _published(key: str, source: str, sha256: str | None) -> Finding:
    try:
        if is_address(source) and not cached_file(source, sha256).is_file():
            return note(
                key,
                f"{source} was not fetched yet.",
                "It is, when the recipe is run; without a network fetch it elsewhere and give the file's path.",
            )
        path = local_file(source, sha256)
    except UserError as error:
        return refused(key, error)
    return ok(key, f"{path} is there{', with the SHA-256 that the recipe gives' if sha256 else ''}.")


def _of_diffusers(key: str, choice: config.DiffusersTeacher | config.PipelineTeacher) -> Iterator[Finding]:
    try:
        found = folder_or_id(choice.path, "models")
        if Path(found).is_absolute():
            remarks = choice.remarks()
            yield ok(key, f"{found} is there, with a configuration and a scheduler that are known.")
            yield from (note(key, remark) for remark in remarks)
            return
    except UserError as error:
        yield refused(key, error)
        return
    pinned = f"at {choice.revision}" if choice.revision else "at its newest revision"
    remedy = "" if choice.revision else "Set 'teacher.revision' to a commit, so that it stays the same."
    yield note(key, f"{choice.path} is fetched from the hub {pinned}, unless it was before.", remedy)


def _prompts(recipe: DistillRecipe) -> Iterator[Finding]:
    choice = recipe.prompts
    if choice is None:
        return
    if isinstance(choice, config.HuggingFacePrompts):
        yield _library("prompts.kind: huggingface", "data", "datasets")
        yield _set_of_others(choice.name, "prompts.name", "embedded when it is first used")
        return
    try:
        prompts = choice.alone(recipe.data)
    except UserError as error:
        yield refused("prompts", error)
        return
    yield ok("prompts", f"{prompts.source} holds {len(prompts):,} prompts.")
    yield from (note("prompts", remark) for remark in prompts.remarks)


def _starts(recipe: DistillRecipe) -> Iterator[Finding]:
    for named in (*named_in(recipe.student, "student."), *named_in(recipe.method, "method.")):
        if named.mark.within is not None and named.value is not None:
            yield _start(named.key, Path(absolute(named.value)), named.mark.within)


def _start(key: str, path: Path, within: Callable[[Path], Path]) -> Finding:
    try:
        found = within(path)
        if is_checkpoint(found):
            look_at(found, verify=True)
            return ok(key, f"{found} is a whole checkpoint.")
        if not found.is_file():
            return _stored(key, str(found), lambda path: load_model(path)[0])
        if within is adapter_in:
            return _adapter(key, found)
        if is_torch_file(found) or not is_of_ours(found):
            count = len(read_state_dict(found))
            return ok(key, f"{found} holds {count:,} tensors of another program; a run says whether they fit.")
    except UserError as error:
        return refused(key, error)
    return _stored(key, str(found), lambda path: load_model(path)[0])


def _adapter(key: str, path: Path) -> Finding:
    """Of an adapter's file, which is loaded with the network that it is on; raises ``UserError``
    for one that cannot be read.
    """
    refuse_pickle(path)
    if is_of_ours(path):
        load_adapter(path)
        return ok(key, f"{path} is a whole adapter.")
    with opened_tensors(path) as stream:
        count = len(stream.keys())
    return ok(key, f"{path} holds {count:,} tensors of another program's adapter; a run says whether they fit.")


def _data(choice: config.DataChoice | None) -> Iterator[Finding]:
    if choice is None:
        yield ok("data", "there is none: nothing is measured against data.")
    elif isinstance(choice, config.ImagesData):
        yield from _images(choice)
    elif isinstance(choice, config.HuggingFaceData):
        yield _library("data.kind: huggingface", "data", "datasets")
        yield _set_of_others(choice.name, "data.name", "turned into a zip in the cache folder when it is first used")
    elif isinstance(choice, config.WebDatasetData):
        yield _library("data.kind: webdataset", "data", "webdataset")
        yield _shards(choice.urls)
    else:
        yield ok("data", f"'{choice.kind}' needs no file.")


def _set_of_others(name: str, key: str, used: str) -> Finding:
    """A data set of another library; ``used``: what is done with it."""
    try:
        found = folder_or_id(name, "data sets")
    except UserError as error:
        return refused(key, error)
    fetched = "" if Path(found).is_absolute() else "fetched and "
    return note(key, f"'{found}' is {fetched}{used}.")


def _images(choice: config.ImagesData) -> Iterator[Finding]:
    try:
        source = open_source(Path(absolute(choice.path)))
        found = read_labels(source) if choice.labels else Labels(None)
    except UserError as error:
        yield refused("data.path", error)
        return
    classes, passed_over = found.classes, source.tree.passed_over + found.passed_over
    if passed_over:
        yield note("data.path", passed_over.sentence(choice.path), "Make sure that no image is among it.")
    yield from (note("data.path", remark) for remark in found.remarks)
    if choice.classes is not None and classes != choice.classes:
        yield problem(
            "data.path",
            f"{choice.path} has {classes} classes, 'data.classes' says {choice.classes}.",
            "Use the set that the recipe is for, or correct 'data.classes'.",
        )
        return
    yield ok("data.path", f"{choice.path} is there: {len(source.names):,} images in {classes or 'no'} classes.")


def _shards(urls: str) -> Finding:
    if is_address(urls):
        return note("data.urls", f"{urls} is fetched and turned into a zip in the cache folder when it is first used.")
    # Which of a range of shards are there is seen when they are read; that there are none is seen
    # now.
    found = glob.glob(re.sub(r"\{[^{}]*\}", "*", urls))
    if not found:
        return problem("data.urls", f"no file is called {absolute(urls)}.", "Correct 'data.urls'.")
    return ok("data.urls", f"{len(found)} shards are there.")


def _features(choice: config.FeaturesChoice) -> Iterator[Finding]:
    if choice.network_file is not None:
        yield _stored("evaluation.features.path", choice.network_file, load_network)
    elif choice.clip_folder is not None:
        yield _library("evaluation.features.kind: clip", "diffusers", "transformers")
        yield _clip("evaluation.features.path", choice.clip_folder)
    elif isinstance(choice, config.InceptionFeatures):
        yield _library("evaluation.features.kind: inception", "metrics", "torch-fidelity")
        key = "evaluation.features.weights"
        if choice.weights is None:
            yield note(
                key,
                "Inception's weights are downloaded into torch's cache once.",
                f"Without a network fetch them elsewhere and set '{key}'.",
            )
        elif not Path(absolute(choice.weights)).is_file():
            yield problem(
                key,
                f"{absolute(choice.weights)}: there is no such file.",
                f"Correct '{key}', or leave it out to download the weights.",
            )
        else:
            yield ok(key, f"{choice.weights} is there.")
    else:
        yield ok("evaluation.features", f"'{choice.kind}' needs no file.")


def _stored(key: str, source: str, load: Callable[[Path], nn.Module], remedy: str = "") -> Finding:
    """A file of ours, loaded to see that it is whole; of one in a run folder that is called as a
    recipe, that recipe is the remedy.
    """
    path = Path(absolute(source))
    if not path.is_file():
        maker = path.parent.name
        made = (
            f"Make it by 'fewstep pretrain {maker}', or correct '{key}'."
            if maker in shipped_names()
            else f"Correct '{key}'."
        )
        return problem(key, f"{path}: there is no such file.", remedy or made)
    try:
        with torch.random.fork_rng(devices=[]):
            model = load(path)
    except UserError as error:
        return refused(key, error)
    return ok(key, f"{path} is whole: {sum(p.numel() for p in model.parameters()):,} parameters.")


def _clip(key: str, source: str) -> Finding:
    """The folder of a CLIP model: whether what is read of it is there."""
    try:
        found = ClipFolder.find(absolute(source))
    except UserError as error:
        return refused(key, error)
    return ok(key, f"{found.root} is there: {len(found.files)} files of a CLIP model.")


def _library(key: str, extra: str, package: str) -> Finding:
    version = version_of(package)
    assert package in EXTRAS[extra]
    if version is None:
        return problem(key, f"needs {package}, which is not installed.", f"pip install 'fewstep[{extra}]'")
    return ok(key, f"{package} {version} is installed.")
