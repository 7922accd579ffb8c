"""Laws of Box-Muller in float32: near the formula, finite for every word, and a function of the
word alone.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from normal_kit import normals_of, radii_and_turns
from numpy.typing import NDArray

from fewstep.system.normals import TILE, blocks_a_sample, normals

Words = NDArray[np.uint64]
# Both ends of the words, and the places where a step of the arithmetic changes its branch or loses
# bits.
EDGES = sorted({(sign * 2**bit + off) % 2**64 for bit in range(65) for sign in (-1, 1) for off in (-1, 0, 1)})


def made_of(words: Words) -> NDArray[np.float32]:
    """The normals of a row of words."""
    padded = np.concatenate([words, np.zeros(-len(words) % 4, np.uint64)])
    given = 0

    def following(count: int) -> Words:
        nonlocal given
        given += count
        return padded[given - count : given].copy()

    found = normals(following, 1, 2 * len(words))[0]
    assert given == len(padded) == 4 * blocks_a_sample(2 * len(words))
    return found


def drawn(count: int, seed: int = 0) -> Words:
    return np.random.Philox(key=seed).random_raw(count)


def check(words: Words) -> NDArray[np.float64]:
    """Holds the normals of ``words`` against the formula, each to 5e-7 of its pair's radius.

    Returns the radii.
    """
    found, radius = made_of(words).astype(np.float64), radii_and_turns(words)[0]
    assert (np.abs(found - normals_of(words[None])[0]) < 5e-7 * np.tile(radius, 2)).all()
    radius_found = np.hypot(found[: len(words)], found[len(words) :])
    assert (np.abs(radius_found - radius) < 5e-7 * radius).all()
    return radius_found


@pytest.mark.parametrize("seed", range(3))
def test_normals_are_near_the_formula(seed: int) -> None:
    check(drawn(2**20, seed))


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 40, 48, 56, 63])
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_the_smallest_and_the_largest_radii_are_as_exact(end: str, bits: int) -> None:
    """Of words whose first bits are all equal, as one in 2^bits is."""
    words = drawn(4096) >> np.uint64(bits)
    check(words if end == "smallest" else ~words)


def test_every_word_gives_finite_numbers() -> None:
    words = np.array(EDGES, np.uint64)
    with warnings.catch_warnings(), np.errstate(divide="raise", over="raise", invalid="raise"):
        warnings.simplefilter("error")
        radius = check(words)
    # The largest of all, and the smallest.
    assert radius[-1] == pytest.approx(9.4497727, rel=6e-7)
    assert radius[0] == pytest.approx(1.6463613e-10, rel=6e-7)
    # A larger word has a larger radius.
    assert (np.diff(radius) > -5e-7 * radius[1:]).all()


def test_radius_and_angle_share_no_bits_but_in_the_tails() -> None:
    words = drawn(2**16)
    between = (words >> np.uint64(48) > 0) & (words >> np.uint64(48) < 2**16 - 1)
    assert between.mean() > 0.999
    words = words[between]
    count = len(words)
    plain, cut = made_of(words), made_of(words >> np.uint64(24) << np.uint64(24))
    # Without its lowest bits a word has angle zero, and the same radius: the largest value of its
    # pair.
    np.testing.assert_allclose(np.hypot(plain[:count].astype(float), plain[count:]), cut[:count], rtol=8e-7)
    assert (cut[count:] == 0).all()
    low = words & np.uint64(2**24 - 1)
    angles = []
    for high in (1 << 63, 3 << 62):
        found = made_of(low | np.uint64(high))
        angles.append(np.arctan2(found[count:], found[:count]))
    np.testing.assert_allclose(*angles, atol=1e-6)


@pytest.mark.parametrize("length", [*range(1, 71), TILE - 1, TILE, TILE + 1, 2 * TILE + 37])
def test_a_normal_is_a_function_of_its_word(length: int) -> None:
    """Not of its place: a word shifted through an array, or at its end, makes the same bits."""
    words = drawn(length)
    found = made_of(words)
    turned = made_of(np.roll(words, 1))
    for half in (slice(None, length), slice(length, None)):
        assert np.array_equal(np.roll(found[half], 1).view(np.int32), turned[half].view(np.int32))
    for index in {0, length // 2, length - 1}:
        alone = made_of(words[index : index + 1])
        assert np.array_equal(alone.view(np.int32), found[[index, length + index]].view(np.int32))


@pytest.mark.parametrize("size", range(1, 20))
def test_an_odd_sample_leaves_out_its_last_sine(size: int) -> None:
    words = drawn(4 * blocks_a_sample(size))
    whole = made_of(words[: -(-size // 2)])
    found = normals(lambda count: words[:count].copy(), 1, size)
    assert np.array_equal(found[0], whole[:size])
