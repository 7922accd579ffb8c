"""One thread: small tensors are no faster on two, and several test processes may share the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
