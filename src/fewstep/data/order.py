r"""Epochs without a history: a shuffled order of N samples in which the sample at any position is computed directly.

Positions count samples from the start of training. Position p belongs to epoch e = p // N, and its sample is pi_e(p mod N), where pi_e is a permutation of [0, N) under a key of
(seed, e). A Feistel network is one of [0, 4^k) whatever its rounds compute: with halves (l, r), a round maps them to (r, l xor f(r)), which can be undone. For an N that is no power
of four the smallest 4^k >= N serves, and values from N on go through it again until one is below N ("cycle walking", Black and Rogaway 2002): restricted to [0, N) this is a
permutation too, and since 4^k < 4 N (4^k <= 4 for N = 1) it takes fewer than four rounds on average.

Each epoch visits every sample once, a resumed run needs no state, and processes that take different positions never take the same sample of an epoch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError

_ROUNDS = 6


def shuffled(positions: Tensor, size: int, seed: int, purpose: str = "") -> Tensor:
    """The samples (n,) in [0, ``size``), int64, at ``positions`` (n,) >= 0, int64, of an endless run through epochs; the order differs by ``seed``, ``purpose`` and epoch."""
    if size < 1 or (len(positions) > 0 and int(positions.min()) < 0):
        raise UserError(f"an order of epochs needs at least one sample and positions from 0; got {size} samples.")
    epochs, values = np.divmod(positions.numpy(), size)
    key = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}|{purpose}".encode(), digest_size=8).digest(), "little"))
    keys = _mixed(epochs.astype(np.uint64) ^ key)
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    found = _permuted(values.astype(np.uint64), keys, bits)
    while (outside := found >= size).any():
        found[outside] = _permuted(found[outside], keys[outside], bits)
    return torch.from_numpy(found.astype(np.int64))


def _permuted(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """The Feistel network on [0, 4^bits)."""
    mask = np.uint64((1 << bits) - 1)
    left, right = values >> np.uint64(bits), values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mixed(right + keys * np.uint64(2 * number + 1)) & mask)
    return left << np.uint64(bits) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014) of 64-bit words."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
