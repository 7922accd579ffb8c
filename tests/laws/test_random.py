"""Laws of draws: a function of place and index, and of nothing else; and of the right
distribution.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from normal_kit import normals_of
from torch import Tensor

from fewstep.data.synthetic import random_mixture, sampled
from fewstep.metrics.features import fourier_features
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.system.normals import TILE

# (place, rows, start) -> a draw of that many rows.
Draw = Callable[[Key, int, int], Tensor]
DRAWS: dict[str, Draw] = {
    "normal-1": lambda key, rows, start: key.normal("p", (rows,), start),
    "normal-3": lambda key, rows, start: key.normal("p", (rows, 3), start),
    "normal-image": lambda key, rows, start: key.normal("p", (rows, 2, 5, 5), start),
    "lasting": lambda key, rows, start: key.lasting("p", (rows, 3), start),
    "uniform": lambda key, rows, start: key.uniform("p", rows, start),
    "integers": lambda key, rows, start: key.integers("p", rows, 1000, start),
}
# Since the first generator.
PINNED_UNIFORM = [0.9549824082498384, 0.7389890390840671]
PINNED_INTEGERS = [724, 300, 865, 464, 668, 327]
PINNED_PERMUTATION = [4, 8, 6, 7, 3, 1, 2, 5, 0]
PINNED_LASTING = [
    1.4175409078598022,
    1.0694659948349,
    2.0474328994750977,
    1.6384543180465698,
    0.22029627859592438,
    -0.04305069521069527,
]
PINNED_FEATURES = [0.9854534864425659, 0.19967633485794067, -0.17381013929843903]
PINNED_DATA = [[-2.72401762008667, -2.977574348449707], [0.7686653733253479, 1.2414791584014893]]
# Since the second.
PINNED_NORMAL = [
    *(0.39875438809394836, 0.3508915305137634, 2.4581289291381836),
    *(1.5414001941680908, -1.3901450634002686, -0.5571994781494141),
]
PINNED_DIGEST = "c97bc191c58dbf1c77d6148d65e34d56"
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


@every_draw
@pytest.mark.parametrize("parts", [(32, 32), (1, 63), (16, 16, 16, 16), (5, 7, 52)])
def test_rows_are_functions_of_the_samples_index(draw: Draw, parts: tuple[int, ...]) -> None:
    key = Key(11, "stage", 4)
    starts = [sum(parts[:i]) for i in range(len(parts))]
    pieces = [draw(key, rows, start) for rows, start in zip(parts, starts, strict=True)]
    assert torch.equal(torch.cat(pieces), draw(key, 64, 0))
    assert torch.equal(draw(key, 64, 10**9)[10:20], draw(key, 10, 10**9 + 10))


@every_draw
def test_draws_do_not_depend_on_history_and_leave_no_trace(draw: Draw) -> None:
    key = Key(11, "stage", 4)
    first = draw(key, 8, 0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for other in DRAWS.values():
        other(key, 5, 3)
        other(Key(99, "x", 1), 5, 3)
    assert torch.equal(draw(Key(11, "stage", 0).at(4), 8, 0), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    "other",
    [Key(12, "stage", 4), Key(11, "stages", 4), Key(11, "stage", 5), Key(11, "", 4), Key(-11, "stage", 4)],
    ids=repr,
)
@every_draw
def test_seed_stage_and_step_all_matter(draw: Draw, other: Key) -> None:
    assert not bool((draw(Key(11, "stage", 4), 64, 0) == draw(other, 64, 0)).float().mean() > 0.1)


def test_purposes_matter_and_are_uncorrelated() -> None:
    key = Key(0)
    purposes = [key.normal(purpose, (20_000,)).double() for purpose in ("a", "b", "time", "noise", "")]
    correlations = torch.corrcoef(torch.stack(purposes)) - torch.eye(5, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4 / 20_000**0.5


def test_neighbouring_steps_and_samples_are_uncorrelated() -> None:
    rows = torch.stack([Key(0, "s", step).normal("x", (20_000,)).double() for step in range(4)])
    correlations = torch.corrcoef(torch.cat([rows[:, :-1], rows[:, 1:]]))
    assert float((correlations - torch.eye(8, dtype=torch.float64)).abs().max()) < 4.5 / 20_000**0.5
    wide = Key(0, "wide").normal("x", (20_000, 8)).double()
    assert float((torch.corrcoef(wide.T) - torch.eye(8, dtype=torch.float64)).abs().max()) < 4.5 / 20_000**0.5


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_normals_are_normal(size: int) -> None:
    from scipy.stats import kstest

    values = Key(5, "normal").normal("x", (60_000 // size, size))
    assert values.dtype == torch.float32
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    values = values.double()
    count = values.numel()
    assert float(values.mean()) == pytest.approx(0.0, abs=4 / count**0.5)
    assert float(values.square().mean()) == pytest.approx(1.0, abs=4 * (2 / count) ** 0.5)
    assert float((values**4).mean()) == pytest.approx(3.0, abs=4 * (96 / count) ** 0.5)
    for column in values.T:
        assert kstest(column.numpy(), "norm").pvalue > 1e-4


def test_uniforms_are_uniform() -> None:
    from scipy.stats import kstest

    u = Key(5).uniform("x", 60_000)
    assert u.dtype == torch.float64
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert float(u.min()) >= 0
    assert float(u.max()) < 1


@pytest.mark.parametrize("high", [1, 2, 10, 1797])
def test_integers_are_uniform_below_high(high: int) -> None:
    from scipy.stats import chisquare

    values = Key(5).integers("x", 60_000, high)
    assert values.dtype == torch.int64
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    if high > 1:
        assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 100])
def test_permutations_are_permutations(size: int) -> None:
    permutations = [Key(0, "s", step).permutation("order", size) for step in range(3)]
    for permutation in permutations:
        assert sorted(permutation.tolist()) == list(range(size))
    assert torch.equal(permutations[0], Key(0, "s", 0).permutation("order", size))
    if size == 100:
        assert not torch.equal(permutations[0], permutations[1])


def test_permutations_of_three_are_equally_likely() -> None:
    from scipy.stats import chisquare

    seen = [tuple(Key(0, "s", step).permutation("order", 3).tolist()) for step in range(3000)]
    assert chisquare([seen.count(order) for order in sorted(set(seen))]).pvalue > 1e-3
    assert len(set(seen)) == 6


def test_draws_are_what_they_were() -> None:
    """A resumed run must draw what it drew before an upgrade of anything: these values are the
    definition.
    """
    key = Key(0, "stage", 1)
    assert key.uniform("x", 2).tolist() == PINNED_UNIFORM
    assert key.integers("x", 6, 1000, start=3).tolist() == PINNED_INTEGERS
    assert key.permutation("x", 9).tolist() == PINNED_PERMUTATION
    assert key.normal("x", (2, 3)).flatten().tolist() == PINNED_NORMAL


def test_what_lasts_is_what_it_was() -> None:
    """A feature space and a data set are the same under the same name, whichever generator makes
    noise.
    """
    found = Key(0, "stage", 1).lasting("x", (2, 3))
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(PINNED_LASTING, abs=1e-6)
    assert fourier_features(2, 3)(torch.tensor([[0.5, -1.0]]))[0].tolist() == pytest.approx(PINNED_FEATURES, abs=1e-5)
    data = sampled(random_mixture(KarrasVE()), 2).samples
    torch.testing.assert_close(data, torch.tensor(PINNED_DATA), rtol=0, atol=1e-5)


def digest(values: Tensor) -> str:
    return hashlib.blake2b(values.numpy().astype("<f4").tobytes(), digest_size=16).hexdigest()


def test_a_large_draw_is_the_same_everywhere() -> None:
    """Bit for bit, on any machine; in another process, in threads beside others, with torch on two
    threads.
    """
    key, shape = Key(0, "stage", 1), (3, 3, 150, 157)
    assert digest(key.normal("x", shape)) == PINNED_DIGEST
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert digest(key.normal("x", shape)) == PINNED_DIGEST
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        assert {digest(values) for values in pool.map(lambda _: key.normal("x", shape), range(8))} == {PINNED_DIGEST}
    code = (
        f"import sys; from fewstep.random import Key; sys.stdout.buffer.write({key!r}.normal('x', "
        f"{shape}).numpy().tobytes())"
    )
    # Which also has to do without the vector instructions that numpy found here.
    extensions = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    without = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(extensions)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=without).stdout
    assert digest(torch.frombuffer(bytearray(found), dtype=torch.float32)) == PINNED_DIGEST


@pytest.mark.parametrize("size", [*range(1, 71), 1000, 30_001, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, 150_003])
def test_a_sample_alone_is_the_sample_in_a_batch(size: int) -> None:
    """Bit for bit, though it lies elsewhere in another array, where vector instructions begin and
    end elsewhere.
    """
    key = Key(3, "alone", 2)
    together = key.normal("x", (7, size), start=5)
    for row in range(7):
        assert torch.equal(key.normal("x", (1, size), start=5 + row)[0], together[row])


def test_a_draw_of_nothing_is_empty() -> None:
    assert Key(0).normal("x", (0, 3)).shape == (0, 3)
    assert Key(0).normal("x", (3, 0)).shape == (3, 0)
    assert Key(0).normal("x", (0, 0)).shape == (0, 0)


def test_normals_are_those_of_the_formula() -> None:
    """The definition, in float64: key, counters, and how a word makes two normals."""
    key = int.from_bytes(hashlib.blake2b(rb"-7|a\|b|3|no\\ise", digest_size=16).digest(), "little")
    for size in (1, 2, 7, 8, 9, 3 * 64 * 64, 150_001):
        pairs, blocks = -(-size // 2), -(-size // 8)
        words = np.random.Philox(key=key, counter=11 * blocks).random_raw(4 * 4 * blocks).reshape(4, 4 * blocks)
        expected = normals_of(words[:, :pairs])[:, :size]
        found = Key(-7, "a|b", 3).normal("no\\ise", (4, size), start=11)
        assert found.dtype == torch.float32
        assert np.abs(found.numpy() - expected).max() < 3e-6


def test_tails_are_as_heavy_as_they_are_said_to_be() -> None:
    """Counts beyond 3, 4 and 5 sigma on either side, against binomial deviations."""
    beyond, count = {(side, bound): 0 for side in (-1, 1) for bound in (3, 4, 5)}, 0
    for step in range(8):
        values = Key(8, "tails", step).normal("x", (4, 2**20))
        count += values.numel()
        for side, bound in beyond:
            beyond[side, bound] += int((side * values > bound).sum())
    for (side, bound), found in beyond.items():
        expected = count * math.erfc(bound / math.sqrt(2)) / 2
        assert abs(found - expected) < 4 * math.sqrt(expected), (side, bound)


def test_many_normals_are_normal() -> None:
    from scipy.stats import kstest

    values = Key(9, "many").normal("x", (2, 2**21))
    for row in values:
        assert kstest(row.numpy(), "norm").pvalue > 1e-3
    values = values.double().flatten()
    # Moments of a normal: 1, 3 and 15, and their variances.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10_170)):
        assert abs(float((values**power).mean()) - moment) < 4 * math.sqrt(variance / len(values)), power


@pytest.mark.parametrize("power", [1, 2], ids=["values", "squares"])
def test_neighbours_and_the_two_of_a_pair_are_independent(power: int) -> None:
    """Neighbours in a sample, the same place of neighbouring samples, and the cosine and the sine
    of one word.
    """
    size = 2**20
    values = Key(10, "pairs").normal("x", (4, size)).double() ** power
    for left, right in (
        (values[:, :-1], values[:, 1:]),
        (values[:-1], values[1:]),
        (values[:, : size // 2], values[:, size // 2 :]),
        (values[:, : size // 2 - 1], values[:, size // 2 + 1 :]),
    ):
        both = torch.stack([left.flatten(), right.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(both.shape[1])


def test_radius_and_angle_of_a_word_are_independent() -> None:
    from scipy.stats import chisquare

    values = Key(11, "polar").normal("x", (1, 2**22))[0].double()
    cosines, sines = values[: 2**21], values[2**21 :]
    # Both uniform in [0, 1).
    radius = torch.exp(-(cosines**2 + sines**2) / 2)
    angle = torch.atan2(sines, cosines) / (2 * math.pi) % 1
    cells = (32 * radius).long().clamp_(max=31) * 32 + (32 * angle).long().clamp_(max=31)
    assert chisquare(torch.bincount(cells, minlength=1024).numpy()).pvalue > 1e-3
    # Where few words fall: angles of the largest radii and of the smallest.
    for few in (radius < 1e-4, radius > 1 - 1e-4):
        assert chisquare(torch.bincount((8 * angle[few]).long().clamp_(max=7), minlength=8).numpy()).pvalue > 1e-3
