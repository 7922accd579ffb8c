"""The emoji: which lines of Unicode's file count, which pictures are kept, and what the real font
gives.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data import open_images
from fewstep.data.emoji import FONT, NAMES, Emoji, drawn_by, read_emoji, squared_on_white, write_emoji
from fewstep.errors import UserError

LISTED = """\
# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                                  ; fully-qualified     # x E1.0 grinning face
263A FE0F                                              ; fully-qualified     # x E0.6 smiling face
263A                                                   ; unqualified         # x E0.6 smiling face
# group: Component
# subgroup: skin-tone
1F3FB                                                  ; component           # x E1.0 light skin tone
# group: Flags
# subgroup: country-flag
1F1F3 1F1F4                                            ; fully-qualified     # x E2.0 flag: Norway
1F1F8 1F1EF                                            ; fully-qualified     # x E2.0 flag: Svalbard & Jan Mayen
1F3F4 200D 2620                                        ; minimally-qualified # x E11.0 pirate flag
1F6F8                                                  ; fully-qualified     # x E5.0 flying saucer
"""


@pytest.fixture
def emoji(tmp_path: Path) -> list[Emoji]:
    (tmp_path / "emoji-test.txt").write_text(LISTED, encoding="utf-8")
    return read_emoji(tmp_path / "emoji-test.txt")


def _draw(text: str) -> Image.Image:
    """A colour a text, the two flags alike, and nothing for the saucer, which this font does not
    know.
    """
    canvas = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    colours = {
        "\U0001f600": (255, 200, 0),
        "\u263a\ufe0f": (200, 100, 0),
        "\U0001f1f3\U0001f1f4": (0, 0, 200),
        "\U0001f1f8\U0001f1ef": (0, 0, 200),
    }
    if text in colours:
        canvas.paste((*colours[text], 255), (0, 0, 6, 4))
    return canvas


def test_fully_qualified_lines_count_with_their_group_and_name(emoji):
    assert emoji[0] == Emoji("\U0001f600", "grinning face", "Smileys & Emotion", "face-smiling")
    assert [each.name for each in emoji] == [
        "grinning face",
        "smiling face",
        "flag: Norway",
        "flag: Svalbard & Jan Mayen",
        "flying saucer",
    ]
    assert emoji[1].text == "\u263a\ufe0f"
    assert emoji[2].group == "Flags"


def test_pictures_that_are_missing_or_there_already_are_left_out(emoji, tmp_path):
    path = tmp_path / "emoji.zip"
    assert write_emoji(path, 6, emoji, _draw) == 3
    images = open_images(path)
    assert images.names == ("Smileys & Emotion", "Flags")
    assert images.labels.tolist() == [0, 0, 1]
    assert images.shape == (3, 6, 6)
    pixels = (images.pixels.permute(0, 2, 3, 1)).numpy()
    # Six by four on a square of six: a row of white above and one below.
    assert (pixels[:, [0, 5]] == 255).all()
    assert (pixels[:, 1:5] == np.array([[255, 200, 0], [200, 100, 0], [0, 0, 200]])[:, None, None]).all()
    with zipfile.ZipFile(path) as archive:
        side = json.loads(archive.read("names.json"))
    assert [name for _, name, _ in side["emoji"]] == ["grinning face", "smiling face", "flag: Norway"]
    assert "Open Font License" in side["licences"]["pictures"]
    again = tmp_path / "again.zip"
    write_emoji(again, 6, emoji, _draw)
    assert again.read_bytes() == path.read_bytes()


def test_a_picture_is_resized_over_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert np.unique(np.asarray(squared_on_white(half, 2))).tolist() == [204]


def test_missing_files_name_their_package(tmp_path):
    with pytest.raises(
        UserError, match=r"give Unicode's emoji-test\.txt with --names \(Debian package 'unicode-data'\)"
    ):
        read_emoji(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing")
    with pytest.raises(UserError, match="lists no fully-qualified emoji"):
        read_emoji(tmp_path / "empty.txt")
    with pytest.raises(
        UserError, match=r"give NotoColorEmoji\.ttf with --font \(Debian package 'fonts-noto-color-emoji'\)"
    ):
        drawn_by(tmp_path / "empty.txt")


@pytest.mark.skipif(
    not (FONT.is_file() and NAMES.is_file()), reason="needs Debian's fonts-noto-color-emoji and unicode-data"
)
def test_the_real_font_gives_thousands_in_nine_groups(tmp_path):
    emoji = read_emoji()
    assert len({each.group for each in emoji}) == 9
    draw = drawn_by()
    faces = [
        each
        for each in emoji
        if each.name
        in ("grinning face", "flag: Norway", "flag: Svalbard & Jan Mayen", "woman health worker: dark skin tone")
    ]
    assert write_emoji(tmp_path / "few.zip", 16, faces, draw) == 3
    pixels = open_images(tmp_path / "few.zip").pixels.float()
    # A face is mostly yellow: more red and green than blue.
    assert float(pixels[0, 0].mean()) > 1.3 * float(pixels[0, 2].mean())
    assert len(emoji) > 3000
