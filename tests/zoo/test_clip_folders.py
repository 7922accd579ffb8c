"""CLIP folders: embeddings are transformers' own, and what is not read is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from clip_kit import SIDE, clip_folder, picture
from device_kit import Card, on_card
from fewstep.errors import UserError
from fewstep.zoo.clip import ClipFolder
from fewstep.zoo.clip.clip_folder import MOST_TOKENIZER_BYTES
from fewstep.zoo.clip.clip_pictures import ClipPictures
from pipeline_kit import write_tokenizer

SIZES = [(64, 64), (90, 61), (33, 100), (17, 20), (24, 24), (25, 30)]
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
TEXTS = ["a red digit seven", "blue", "", "red " * 40]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "model")


def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of transformers' own processor and model."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pictures, texts = [], []
    with torch.no_grad():
        for number, size in enumerate(SIZES):
            found = processor(text=["a"], images=picture(*size, number), return_tensors="pt", padding=True)
            pictures.append(model(**found).image_embeds)
        for text in TEXTS:
            found = processor(text=[text], images=picture(24, 24), return_tensors="pt", padding=True, truncation=True)
            texts.append(model(**found).text_embeds)
    return torch.cat(pictures), torch.cat(texts)


@pytest.mark.parametrize("changes", [{}, {"eos": 2}, {"act": "gelu"}, {"processing": {"resample": 2}}], ids=str)
def test_embeddings_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Processor and model of the same folder, on pictures of several shapes and captions of
    several lengths, to 1e-4 and to much less.
    """
    folder = clip_folder(tmp_path / "model", **changes)
    towers = ClipFolder.find(folder).open()
    pictures, texts = theirs(folder)
    ours = towers.of_pictures([picture(*size, number) for number, size in enumerate(SIZES)])
    torch.testing.assert_close(ours, pictures, rtol=0, atol=1e-6)
    torch.testing.assert_close(towers.of_texts(TEXTS), texts, rtol=0, atol=1e-6)
    assert float((pictures @ texts.T).std()) > 0.05, "a test in which all is alike says nothing"
    torch.testing.assert_close(normalize(ours), ours)


def test_a_folder_of_version_5_says_how_pictures_are_read_elsewhere(whole: Path, tmp_path: Path) -> None:
    """``processor_config.json`` has the same values inside."""
    folder = shutil.copytree(whole, tmp_path / "model")
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert ClipPictures.read(folder) == ClipPictures.read(whole)
    assert ClipFolder.find(folder).open().pictures == ClipPictures.read(whole)


def test_older_files_say_an_encoders_values_twice(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    kept = {**config["vision_config"], "num_hidden_layers": 7}
    config |= {"vision_config": kept, "vision_config_dict": config["vision_config"], "text_config_dict": None}
    (folder / "config.json").write_text(json.dumps(config))
    picked = [picture(30, 40)]
    found = ClipFolder.find(folder).open().of_pictures(picked)
    assert torch.equal(found, ClipFolder.find(whole).open().of_pictures(picked))


def test_the_digest_follows_what_is_read(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    assert ClipFolder.find(folder).digest == ClipFolder.find(whole).digest
    (folder / "README.md").write_text("a card")
    assert ClipFolder.find(folder).digest == ClipFolder.find(whole).digest
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, folder / "model.safetensors")
    assert ClipFolder.find(folder).digest != ClipFolder.find(whole).digest


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _processing(folder: Path, **changes: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"run": "me"}))


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def _zeros(folder: Path) -> None:
    tensors = {name: torch.zeros_like(each) for name, each in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")


def _another_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors")


def _huge_tokenizer(folder: Path) -> None:
    with open(folder / "vocab.json", "wb") as stream:
        stream.truncate(MOST_TOKENIZER_BYTES + 1)


def _more_tokens(folder: Path) -> None:
    path = folder / "vocab.json"
    tokens = json.loads(path.read_text())
    path.write_text(json.dumps({**tokens, "more": len(tokens)}))


HOSTILE: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json: there is no such file; give the folder of a"),
    (_only_a_pickle, "pickled weights .* are not read, since a pickle is a program"),
    (lambda folder: _config(folder, architectures=["CLIPTextModel"]), "is of a 'CLIPTextModel', and only a CLIPModel"),
    (lambda folder: _config(folder, architectures="x"), "only a CLIPModel is read"),
    (lambda folder: _config(folder, model_type="siglip"), "is of a 'siglip'"),
    (_not_finite, "'visual_projection.weight' holds values that are not finite"),
    (_another_tensor, "unknown tensor 'extra'"),
    (_huge_tokenizer, "vocab.json: has 67,108,865 bytes, more than such a file may have"),
    (_more_tokens, "its tokenizer has 518 tokens and its text model 517"),
    (lambda folder: _config(folder, projection_dim=10**9), "for projection_dim, which must be a whole number"),
    (lambda folder: _config(folder, projection_dim=900_000), "no room"),
    (lambda folder: _config(folder, vision_config=[1]), "for vision_config, which must be an object"),
    (lambda folder: _config(folder, vision_config={"patch_size": 300}), "patches of 300 pixels for pictures of 224"),
    (lambda folder: _config(folder, vision_config={"hidden_size": 17}), "17 for hidden_size"),
    (lambda folder: _config(folder, vision_config={"num_channels": 4}), "num_channels"),
    (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json: there is no such file"),
    (lambda folder: _processing(folder, crop_size=20, size=20), "makes pictures of .* and the model reads 24 x 24"),
    (lambda folder: _processing(folder, size=20), "for crop_size, more than the size"),
    (lambda folder: _processing(folder, size={"shortest_edge": 10**9}), "for size, which must be a whole number"),
    (lambda folder: _processing(folder, size={"shortest_edge": 24, "longest_edge": 30}), "longest_edge"),
    (lambda folder: _processing(folder, size=[24, 24]), "for size, which must be"),
    (lambda folder: _processing(folder, image_processor_type="ViTImageProcessor"), "ViTImageProcessor"),
    (lambda folder: _processing(folder, resample=0), "0 for resample"),
    (lambda folder: _processing(folder, do_normalize=False), "do_normalize"),
    (lambda folder: _processing(folder, image_std=[0, 1, 1]), "image_std"),
    (lambda folder: _processing(folder, image_mean=[1, 1]), "image_mean"),
    (lambda folder: _processing(folder, rescale_factor="1/255"), "rescale_factor"),
    (lambda folder: _config(folder, vision_config={**VISION, "hidden_act": "run"}), "is no network that can be built"),
    (lambda folder: (folder / "preprocessor_config.json").write_text(" " * 2**21), "more than such a file may have"),
    (lambda folder: (folder / "preprocessor_config.json").write_text("[" * 10**5), "missing or not JSON"),
    (lambda folder: (folder / "merges.txt").unlink(), "neither tokenizer.json nor vocab.json with merges.txt"),
]


@pytest.mark.parametrize(("spoil", "said"), HOSTILE, ids=[said[:40] for _, said in HOSTILE])
def test_what_is_no_clip_is_refused(whole: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        ClipFolder.find(folder).open()
    assert "\n" not in str(caught.value)


def test_embeddings_without_a_direction_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    _zeros(folder)
    with pytest.raises(UserError, match="length 0"):
        ClipFolder.find(folder).open().of_pictures([picture(24, 24)])


def test_a_tokenizer_of_its_own_folder_alone_is_no_clip(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="give the folder of a CLIPModel"):
        ClipFolder.find(tmp_path / "tokenizer")


@pytest.mark.parametrize("size", [(10, 10), (24, 10), (300, 24), (24, 25), (3, 500)], ids=str)
def test_pictures_are_cut_and_filled_as_transformers_does(size: tuple[int, int]) -> None:
    """Also where nothing is resized, so that the centre is beyond the picture."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    settings = {"do_resize": False, "crop_size": {"height": SIDE, "width": SIDE}}
    theirs = CLIPImageProcessorPil(**settings)(picture(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ClipPictures.of(settings)(picture(*size)), theirs, rtol=0, atol=1e-6)


def test_a_model_on_a_device_embeds_pictures_and_captions_that_are_not(whole: Path) -> None:
    """As on the CPU, to the rounding of another kernel of attention; embeddings come back to it."""
    here, there = ClipFolder.find(whole).open(), ClipFolder.find(whole).open()
    pictures = [picture(30, 40), picture(50, 24, 1)]
    with Card():
        on_card(there)
        for ours, theirs in (
            (there.of_pictures(pictures), here.of_pictures(pictures)),
            (there.of_texts(TEXTS), here.of_texts(TEXTS)),
        ):
            assert ours.device.type == "cpu"
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
