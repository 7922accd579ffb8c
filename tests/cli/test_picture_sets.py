"""``fewstep measure --pictures``: closed forms, the same bytes twice, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_kit import called, fewstep

from clip_kit import clip_folder, picture, write_pictures
from fewstep.command.tables.picture_figures import pictures_table
from fewstep.data.pixels import centre_patch, pixels_of, squared
from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics, Reference, frechet_distance, save_reference
from fewstep.metrics.features import fourier_features
from fewstep.recipes import shipped_text
from fewstep.runs.protocols import ClipChoice, PictureProtocol, measure_pictures
from fewstep.runs.protocols.earlier_results import MOST_BYTES
from fewstep.system.caches import content_digest

SIZES = [(40, 30), (30, 41), (33, 33), (50, 36)] * 3
TEXTS = ["a red digit seven", "blue", "red"]
FOURIER = "{kind: fourier, count: 8}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, ``real`` and ``made``, and a CLIP model."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "real", SIZES, seed=100)
    write_pictures(root / "made", SIZES, [TEXTS[number // 4] for number in range(12)])
    clip_folder(root / "clip")
    return root


def measured(root: Path, *folders: str, **asked: Any) -> dict[str, Any]:
    scores, beside = asked.pop("scores", ()), asked.pop("beside", ())
    protocol = PictureProtocol(**{"features": FOURIER, **asked})
    return measure_pictures([root / name for name in folders], protocol, scores, beside, asked.get("out"))


def features_of_made(view: Any, seed: int = 0) -> torch.Tensor:
    """By hand, in float32."""
    seen = torch.stack([torch.from_numpy(pixels_of(view(picture(*size, seed + n)))) for n, size in enumerate(SIZES)])
    return fourier_features(seen[0].numel(), 8)(seen.float() / 127.5 - 1)


def test_equal_sets_are_at_distance_0_and_others_at_their_own(root):
    found = measured(root, "made", "real", real=root / "real", size=16, patch=20)
    made, same = found["sets"]
    assert same["fd"] == pytest.approx(0, abs=1e-9)
    assert same["patch_fd"] == pytest.approx(0, abs=1e-9)
    ours, theirs = (FeatureStatistics.of(features_of_made(lambda p: squared(p, 16), seed)) for seed in (0, 100))
    assert made["fd"] == pytest.approx(frechet_distance(ours, theirs), rel=1e-9)
    ours, theirs = (FeatureStatistics.of(features_of_made(lambda p: centre_patch(p, 20), seed)) for seed in (0, 100))
    assert made["patch_fd"] == pytest.approx(frechet_distance(ours, theirs), rel=1e-9)
    assert made["fd"] > 0.01


def test_real_moments_are_kept_and_found_again(root, capsys, tmp_path):
    """By content: of a copy elsewhere too, and not where another size is seen."""
    from fewstep.training.listeners import Silent

    def said(real: Path, size: int) -> tuple[float, list[str]]:
        listener = Silent()
        protocol = PictureProtocol(size, None, real, None, FOURIER)
        found = measure_pictures([root / "made"], protocol, listeners=[listener])
        return found["sets"][0]["fd"], [sentence for sentence in listener.said if "moments" in sentence]

    first, once = said(root / "real", 16)
    copied = shutil.copytree(root / "real", tmp_path / "copy")
    again, twice = said(copied, 16)
    assert (again, len(once), twice) == (first, 1, [])
    assert len(said(root / "real", 17)[1]) == 1


def test_diversity_is_the_mean_distance_of_pictures_of_a_prompt(root):
    found = measured(root, "made", diversity=True, size=16)["sets"][0]["diversity"]
    features = features_of_made(lambda p: squared(p, 16)).double()
    by_prompt = []
    for part in features.split(4):
        apart = torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist")
        by_prompt.append(float(apart.sum()) / 12)
    assert found["mean"] == pytest.approx(sum(by_prompt) / 3, rel=1e-6)
    assert found["count"] == 3


def test_targets_are_the_pictures_that_prompts_are_to_make(root, tmp_path):
    """Four pictures of each of three prompts; a target that is among its own pictures is nearer."""
    for number in range(3):
        (tmp_path / "targets").mkdir(exist_ok=True)
        shutil.copy(root / "made" / f"{4 * number:06d}.png", tmp_path / "targets" / f"{number}.png")
    found = measured(root, "made", targets=tmp_path / "targets", size=16)["sets"][0]["target_distance"]
    features = features_of_made(lambda p: squared(p, 16)).double()
    apart = (features - features[::4].repeat_interleave(4, 0)).norm(dim=1)
    assert found["mean"] == pytest.approx(float(apart.mean()), rel=1e-6)
    assert found["count"] == 12
    for number in (7, 8):
        picture(20, 20).save(tmp_path / "targets" / f"{number}.png")
    with pytest.raises(UserError, match=r"--targets: has 5 pictures and .*made 12; each target needs as many"):
        measured(root, "made", targets=tmp_path / "targets", size=16)


def test_prompts_of_a_file_are_in_the_order_of_the_pictures(root, tmp_path):
    clip = ClipChoice.said(root / "clip", None, None)
    own = measured(root, "made", clip=clip)["sets"][0]["clip"]
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS[number // 4] for number in range(12)))
    given = measured(root, "made", clip=clip, prompts=tmp_path / "prompts.txt")["sets"][0]["clip"]
    assert given == own
    (tmp_path / "others.txt").write_text("\n".join(TEXTS[(number + 1) // 4 % 3] for number in range(12)))
    other = measured(root, "made", clip=clip, prompts=tmp_path / "others.txt")["sets"][0]["clip"]
    assert other["mean"] != own["mean"]
    assert other["captions_sha256"] != own["captions_sha256"]
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"--prompts: has 2 prompts and .*made 12 pictures"):
        measured(root, "made", clip=clip, prompts=tmp_path / "few.txt")


def test_the_command_gives_the_same_bytes_twice(root, tmp_path):
    """All figures at once, of two folders, also in the file; a second time from moments that are
    kept.
    """
    for name in ("one", "two"):
        rows = "".join(f"{number:06d}.png,{0.2 + number / 100}\n" for number in range(12))
        (tmp_path / f"{name}.csv").write_text("file,hpsv2\n" + rows)
    arguments = [
        *("measure", "--pictures", root / "made", "--pictures", root / "real", "--real", root / "real", "--size", 16),
        *("--patch", 20, "--features", FOURIER, "--clip", root / "clip", "--clip-size", 28, "--clip-prefix", "a "),
        *("--scores", tmp_path / "one.csv", "--scores", tmp_path / "two.csv", "--json"),
    ]
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS[number // 4] for number in range(12)))
    arguments += ["--prompts", tmp_path / "prompts.txt", "--diversity"]
    first = called(*arguments, "--out", tmp_path / "a.json")
    assert first.returncode == 0, first.stderr
    second = fewstep(*arguments, "--out", tmp_path / "b.json")
    assert second.stdout == first.stdout
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    found = json.loads(first.stdout)
    assert found == json.loads((tmp_path / "a.json").read_text())
    assert set(found["origins"]) == {"features", "real", "clip"}
    assert found["protocol"] == {
        "size": 16,
        "patch": 20,
        "clip_size": 28,
        "clip_prefix": "a ",
        "space": "fourier-8-1-0",
    }
    row = found["sets"][0]
    assert row["scores"]["means"]["hpsv2"]["mean"] == pytest.approx(0.255)
    assert row["scores"]["sha256"] == content_digest(tmp_path / "one.csv")
    lines = pictures_table(found).splitlines()
    headings = ["Frechet distance", "of patches", "CLIP score", "diversity a prompt", "hpsv2"]
    assert all(heading in lines[0] for heading in headings)
    assert f"{row['clip']['mean']:.4f} +- " in lines[1]
    assert "made" in lines[1]
    assert "mean cosine" in lines[4]


def test_earlier_results_stand_beside_those_of_the_same_conditions(root, tmp_path):
    first = measured(root, "real", real=root / "real", size=16)
    (tmp_path / "first.json").write_text(json.dumps(first))
    found = measured(root, "made", real=root / "real", size=16, beside=[tmp_path / "first.json"])
    assert [row["folder"] for row in found["sets"]] == [str(root / "made"), str(root / "real")]
    assert found["sets"][1] == {**first["sets"][0], "from": str(tmp_path / "first.json")}
    for changes, condition in (
        ({"size": 17}, "protocol.size"),
        ({"features": "{kind: fourier, count: 9}"}, "protocol.space"),
        ({"real": root / "made"}, "origins.real"),
    ):
        asked = {"real": root / "real", "size": 16, **changes}
        with pytest.raises(UserError, match=f"its 'fd' cannot stand beside .*'{condition}' is"):
            measured(root, "made", beside=[tmp_path / "first.json"], **asked)
    # Only figures that both have must be alike.
    clip = ClipChoice.said(root / "clip", None, None)
    assert len(measured(root, "made", clip=clip, beside=[tmp_path / "first.json"])["sets"]) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"protocol": {}, "origins": {}, "sets": []}',
        b'{"protocol": {}, "origins": {}, "sets": [{"folder": "x", "pictures": 1, "fd": NaN}]}',
        b'{"protocol": {}, "origins": {}, "sets": [{"folder": "x", "pictures": 1, "fd": "7"}]}',
        b'{"protocol": {}, "origins": {}, "sets": [{"folder": 1, "pictures": 1, "fd": 7}]}',
        b'{"protocol": [], "origins": {}, "sets": [{"folder": "x", "pictures": 1, "fd": 7}]}',
        b'{"protocol": {}, "origins": {}, "sets": [{"folder": "x", "pictures": 1, "clip": {"mean": 1}}]}',
        b'{"protocol": {}, "origins": {}, "sets": [{"folder": "x", "pictures": 1, "scores": {"means": [1]}}]}',
        b"\xff",
    ],
    ids=range(12),
)
def test_what_is_no_earlier_result_is_refused(root, tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json: is no result of"):
        measured(root, "made", diversity=True, size=16, beside=[tmp_path / "bad.json"])


def test_an_earlier_result_of_any_size_is_refused(root, tmp_path):
    with open(tmp_path / "bad.json", "wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    with pytest.raises(UserError, match="more than the 16,777,216"):
        measured(root, "made", diversity=True, size=16, beside=[tmp_path / "bad.json"])


def test_a_reference_of_the_same_features_serves_as_real_pictures(root, tmp_path):
    own = FeatureStatistics.of(features_of_made(lambda p: squared(p, 16), 100))
    save_reference(tmp_path / "ref.safetensors", Reference(own, "fourier-8-1-0"))
    found = measured(root, "made", reference=tmp_path / "ref.safetensors", size=16)
    assert found["sets"][0]["fd"] == pytest.approx(
        measured(root, "made", real=root / "real", size=16)["sets"][0]["fd"], rel=1e-9
    )
    assert found["origins"]["reference"] == content_digest(tmp_path / "ref.safetensors")
    save_reference(tmp_path / "other.safetensors", Reference(own, "inception"))
    with pytest.raises(UserError, match="in the feature space 'inception'"):
        measured(root, "made", reference=tmp_path / "other.safetensors", size=16)


def test_clip_embeddings_are_features_of_pictures_as_they_are(root):
    """Of any sizes; their folder's checksum is among the origins."""
    features = f"{{kind: clip, path: {root / 'clip'}}}"
    found = measured(root, "real", real=root / "real", features=features)
    assert found["sets"][0]["fd"] == pytest.approx(0, abs=1e-6)
    assert found["origins"]["features"] == {"evaluation.features.path": content_digest(root / "clip")}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing was asked for"),
        ({"real": "real", "reference": "x"}, "--real and --reference: both"),
        ({"patch": 20}, "--patch: is a distance to patches of real pictures"),
        ({"real": "real"}, r"'000001\.png': is seen at 30 x 41 pixels, and the features"),
        ({"real": "real", "size": 16, "patch": 35}, "is seen at 40 x 30 pixels, and the features .* of 35 x 35"),
        ({"real": "nowhere"}, "there is no such image set"),
        ({"real": "real", "features": "{kind: fourrier}"}, "--features: 'features.kind' is 'fourrier'"),
        ({"real": "real", "features": "{kind: reader, name: scenes}", "size": 16}, "reads images of shape"),
        ({"real": "real", "features": "{"}, "--features: '{' is no valid YAML"),
        ({"real": "real", "features": "&a [*a]"}, "--features"),
        ({"diversity": True, "size": 16, "folder": "real"}, "--diversity: .*real has no captions"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_said(root, asked, said):
    folder = asked.get("folder", "made")
    asked = {
        name: root / value if name in ("real", "reference") else value
        for name, value in asked.items()
        if name != "folder"
    }
    with pytest.raises(UserError, match=said) as caught:
        measured(root, folder, **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN and --pictures: give a run's folder, or folders of pictures by --pictures."),
        (["runs/x", "--pictures", "y"], "RUN and --pictures: give one of them, not both."),
        (["runs/x", "--size", "5"], "--size: needs --pictures; leave it out."),
        (["--pictures", "y", "--teacher"], "--teacher: is of a run, and --pictures names folders of pictures"),
        (["--pictures", "y", "--clip-prefix", "a"], "give its folder by --clip"),
        (["--pictures", "y", "--pictures", "y", "--diversity"], "names a folder twice"),
        (["--pictures", "y", "--scores", "a", "--scores", "b"], "--scores: names 2 files for 1 folders"),
        (["--pictures", "y", "--diversity", "--out", "x.txt"], "give a name that ends in .json"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(arguments, said):
    result = called("measure", *arguments)
    assert result.returncode == 2
    assert said in result.stderr.replace("\n", " ")


def test_the_doctor_looks_at_a_clip_folder(root, tmp_path):
    values = yaml.safe_load(shipped_text("digits-disback"))
    for folder, level in ((root / "clip", "ok"), (root / "real", "problem")):
        values["evaluation"]["features"] = {"kind": "clip", "path": str(folder)}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        found = {finding.place: finding for finding in examine(str(tmp_path / "recipe.yaml"))}
        assert found["evaluation.features.path"].level == level
        assert str(folder) in found["evaluation.features.path"].sentence
        assert found["evaluation.features.kind: clip"].level == "ok"
