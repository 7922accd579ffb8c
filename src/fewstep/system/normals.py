"""Standard normals from random words, in float32.

Box-Muller: one word of 64 bits makes two normals, r cos(2 pi x) and r sin(2 pi x). A word W gives

    u = (W + 1/4) 2^-64,  r = sqrt(-2 log(1 - u)),  x = the lowest 24 bits of W as a fraction of a
    turn.

r lies between 1.6e-10 and 9.45. It takes 24 bits of W, from the first that differs from the bits
before it, so that r and x share bits only where u or 1 - u is below 2^-16 (r > 4.7), and there only
the last bits of r.

Every step is a sum, product, quotient, root or conversion of float32, or an operation on integers.
IEEE 754 fixes the result of each to the bit. A normal is therefore a function of its word alone:
its place in an array, the number of threads, the machine and its vector instructions do not enter,
as they do in a library's logarithm or cosine. A normal differs from the formula by at most 4e-7 r.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

WORDS_A_BLOCK = 4
# Pairs worked on at once: five buffers of 128 KiB stay in a core's caches, and the calls cost
# little beside the work.
TILE = 32768

Floats = NDArray[np.float32]


def _single(value: float) -> Floats:
    # An array without dimensions costs less in a call than a number does.
    return np.array(value, np.float32)


_ONE, _TWO, _QUARTER = _single(1.0), _single(2.0), _single(0.25)
_TURN, _NEGATIVE_TURN, _QUARTER_WORD = _single(2.0**-64), _single(-(2.0**-64)), _single(2.0**-66)
_ANGLE_SHIFT = np.array(40, np.int64)
# The bits of sqrt(1/2), and those of sign and exponent.
_ROOT_OF_HALF, _EXPONENT = np.array(0x3F3504F3, np.int32), np.array(-(1 << 23), np.int32)
_MINUS_TWO_LOG_TWO = _single(-2 * math.log(2) * 2.0**-23)
# Minimax polynomials, the highest power first.
# -2 log((1 + s) / (1 - s)) / s in s^2, for s^2 below 0.0295: 1.2e-7 relative.
_LOG = [_single(-2 * value) for value in (0.412963728644, 0.666522237003, 2.00000023737)]
# tan(pi x) (1/4 - x^2) / x in x^2, for x^2 up to 1/4: 3.8e-8 relative.
_TAN = list(map(_single, (-0.0301324947395, -0.0508318577132, -0.134939443509, -0.557730677418, 0.785398133782)))


def blocks_a_sample(size: int) -> int:
    """How many blocks of four words a sample of ``size`` normals takes."""
    return -(-size // (2 * WORDS_A_BLOCK))


def normals(words: Callable[[int], NDArray[np.uint64]], rows: int, size: int) -> Floats:
    """Standard normals (rows, size), float32.

    ``words(n)`` gives the next n words; a row takes ``4 * blocks_of(size)`` of them. The first half
    of a row is cosines, the second sines of the same pairs.
    """
    values = np.empty((rows, size), np.float32)
    pairs, a_row = -(-size // 2), WORDS_A_BLOCK * blocks_a_sample(size)
    at_once = max(1, TILE // max(1, a_row))
    room = np.empty((5, min(TILE, rows * a_row)), np.float32)
    for top in range(0, rows, at_once):
        block = values[top : top + at_once]
        for left in range(0, a_row, TILE):
            width = min(TILE, a_row - left)
            tile = words(len(block) * width).view(np.int64).reshape(len(block), width)[:, : pairs - left]
            right = left + tile.shape[1]
            _box_muller(tile, block[:, left:right], block[:, pairs + left : pairs + right], room[:, : tile.size])
    return values


def _box_muller(words: NDArray[np.int64], cosines: Floats, sines: Floats, room: Floats) -> None:
    """Writes the normals of ``words`` (B, n), which it overwrites; ``sines`` may want a column
    less.

    With tan(pi x) = a / d the cosine is (d^2 - a^2) / (d^2 + a^2), the sine 2 a d / (d^2 + a^2):
    both are finite where the tangent is not, at half a turn, where d is zero.
    """
    radius, a, d, product, total = room
    _radii(words, radius, a, d, product)
    np.left_shift(words, _ANGLE_SHIFT, out=words)
    _tangents(words, a, d, product)
    np.multiply(a, d, out=product)
    np.add(product, product, out=product)
    np.multiply(a, a, out=a)
    np.multiply(d, d, out=d)
    np.add(d, a, out=total)
    difference = np.subtract(d, a, out=d)
    over_total = np.divide(radius, total, out=radius).reshape(words.shape)
    np.multiply(difference.reshape(words.shape), over_total, out=cosines)
    wanted = sines.shape[1]
    np.multiply(product.reshape(words.shape)[:, :wanted], over_total[:, :wanted], out=sines)


def _radii(words: NDArray[np.int64], radius: Floats, z: Floats, p: Floats, lost: Floats) -> None:
    """sqrt(-2 log(1 - u)) into ``radius``.

    z is -u where u < 1/2 and 1 - u elsewhere: as a signed number a word is near zero at both ends,
    so that its float32 is exact to 24 bits for the smallest radii and for the largest.
    """
    np.copyto(z.reshape(words.shape), words, casting="same_kind")
    np.multiply(z, _NEGATIVE_TURN, out=z)
    # Never zero, of which there is no logarithm.
    np.subtract(z, _QUARTER_WORD, out=z)
    # p = 1 - u is z or 1 + z; what the sum loses to rounding is the smallest radii's all.
    np.floor(z, out=lost)
    np.subtract(z, lost, out=p)
    np.add(lost, p, out=lost)
    np.subtract(lost, z, out=lost)
    # p = 2^e (1 + f), with sqrt(1/2) <= 1 + f < sqrt(2), on the bits. Then log p = e log 2 + log(1
    # + f).
    bits, exponent = p.view(np.int32), z.view(np.int32)
    np.subtract(bits, _ROOT_OF_HALF, out=exponent)
    np.bitwise_and(exponent, _EXPONENT, out=exponent)
    np.subtract(bits, exponent, out=bits)
    f = np.subtract(p, _ONE, out=p)
    np.subtract(f, lost, out=f)
    whole = lost
    np.copyto(whole, exponent, casting="same_kind")
    np.multiply(whole, _MINUS_TWO_LOG_TWO, out=whole)
    # log(1 + f) is odd in s = f / (2 + f).
    np.add(f, _TWO, out=z)
    s = np.divide(f, z, out=f)
    np.multiply(s, s, out=z)
    _polynomial(_LOG, z, radius)
    np.multiply(radius, s, out=radius)
    np.add(radius, whole, out=radius)
    np.sqrt(radius, out=radius)


def _tangents(words: NDArray[np.int64], a: Floats, d: Floats, x: Floats) -> None:
    """a and d = 1/4 - x^2 with a / d = tan(pi x), where ``words`` are x 2^64."""
    np.copyto(x.reshape(words.shape), words, casting="same_kind")
    np.multiply(x, _TURN, out=x)
    np.multiply(x, x, out=d)
    _polynomial(_TAN, d, a)
    np.multiply(a, x, out=a)
    np.subtract(_QUARTER, d, out=d)


def _polynomial(coefficients: list[Floats], x: Floats, out: Floats) -> None:
    """The polynomial of ``coefficients``, the highest power first, at x, by Horner's rule."""
    first, second, *rest = coefficients
    np.multiply(x, first, out=out)
    np.add(out, second, out=out)
    for coefficient in rest:
        np.multiply(out, x, out=out)
        np.add(out, coefficient, out=out)
