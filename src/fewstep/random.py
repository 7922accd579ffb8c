"""Randomness as a function of place, not of history.

A draw is a function of (seed, stage, step, purpose, index of the sample in the global batch) and of
nothing else. It does not matter what was drawn before, in which process, or whether the run was
interrupted: a resumed run and eight processes draw the same batch as an undisturbed one alone.

Philox 4x64 (Salmon et al. 2011) is a counter-based generator: its output number c under key k is
computed directly. The key is a hash of (seed, stage, step, purpose), and the counters of sample i
are [i b, (i + 1) b), where b blocks of four 64-bit words serve one sample. Normals come from the
Box-Muller transform (``normals``), which, unlike rejection methods, uses a fixed number of words a
draw: one for two normals. A uniform number takes a word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fewstep.system.normals import WORDS_A_BLOCK, blocks_a_sample, normals

# The number of the definition of ``Key.normal``, which a checkpoint holds: another one draws other
# noise at the same place. 1: as ``Key.lasting``. 2: a word for two normals, in float32.
GENERATOR = 2


@dataclass(frozen=True)
class Key:
    """Where a run stands: all that a draw depends on besides its purpose and the sample's index.

    ``seed``: any integer; ``stage``: the stage's name; ``step``: the step's index within the stage,
    from 0. ``owner``: whose draws these are, a name that goes before their purposes; nobody's
    unless given.
    """

    seed: int
    stage: str = ""
    step: int = 0
    owner: str = ""

    def purpose_of(self, purpose: str) -> str:
        """A purpose with the owner's name before it."""
        return f"{self.owner}.{purpose}" if self.owner else purpose

    def at(self, step: int) -> Key:
        """The same place at another step."""
        return replace(self, step=step)

    def normal(self, purpose: str, shape: Sequence[int], start: int = 0) -> torch.Tensor:
        """Standard normals (B, *D), float32; row r belongs to sample ``start + r`` of the global
        batch.
        """
        rows, size = shape[0], math.prod(shape[1:])
        words = self._philox(purpose, start * blocks_a_sample(size))
        return torch.from_numpy(normals(words.random_raw, rows, size)).reshape(*shape)

    def lasting(self, purpose: str, shape: Sequence[int], start: int = 0) -> torch.Tensor:
        """Standard normals (B, *D), float32, of what lasts: a feature space, a data set.

        A name means the same space and the same data in every version, so this is never made
        faster. Two uniform numbers make two normals by Box-Muller, in float64: radii first.
        """
        rows, size = shape[0], math.prod(shape[1:])
        pairs = -(-size // 2)
        uniform = self._uniform(purpose, rows, 2 * pairs, start)
        # 1 - u is in (0, 1], so that the logarithm is finite.
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:, :pairs]))
        angle = 2.0 * np.pi * uniform[:, pairs:]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :size]
        return torch.from_numpy(values.astype(np.float32)).reshape(*shape)

    def uniform(self, purpose: str, rows: int, start: int = 0) -> torch.Tensor:
        """Uniform numbers in [0, 1), (B,), float64."""
        return torch.from_numpy(self._uniform(purpose, rows, 1, start)[:, 0].copy())

    def integers(self, purpose: str, rows: int, high: int, start: int = 0) -> torch.Tensor:
        """Uniform integers in [0, high), (B,), int64."""
        # A 53-bit uniform makes the bias below high / 2^53, and u < 1 makes the product < high.
        return (self.uniform(purpose, rows, start) * high).long().clamp_(max=high - 1)

    def permutation(self, purpose: str, size: int) -> torch.Tensor:
        """A permutation of ``size`` numbers for the whole batch, (size,), int64."""
        return torch.argsort(self.uniform(purpose, size), stable=True)

    def _uniform(self, purpose: str, rows: int, a_row: int, start: int) -> np.ndarray:
        blocks = -(-a_row // WORDS_A_BLOCK)
        words = self._philox(purpose, start * blocks).random_raw(rows * blocks * WORDS_A_BLOCK)
        words = words.reshape(rows, blocks * WORDS_A_BLOCK)[:, :a_row]
        return (words >> np.uint64(11)) * 2.0**-53

    def _philox(self, purpose: str, counter: int) -> np.random.Philox:
        # Escaped, so that no stage and purpose can together spell another pair.
        stage, purpose = (
            part.replace("\\", "\\\\").replace("|", "\\|") for part in (self.stage, self.purpose_of(purpose))
        )
        text = f"{self.seed}|{stage}|{self.step}|{purpose}".encode()
        key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
        return np.random.Philox(key=key, counter=counter)
