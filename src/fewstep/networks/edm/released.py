"""The released teachers' networks by name, as descriptions that ``build`` takes; the number of
classes, which belongs to the data, is added by who builds.

From the commands of EDM's README and the defaults of its networks (Karras et al. 2022, App. F, Tab.
7), and from the consistency models' launch script for LSUN at 256 pixels (Song et al. 2023), whose
ImageNet network is EDM's. Dropout, which trained them, is left out: see ``dhariwal`` and ``song``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DDPMPP = {
    "kind": "song-unet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
_NCSNPP = {
    "kind": "song-unet",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
_CIFAR10 = {
    "img_resolution": 32,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}
_FACES64 = {
    "img_resolution": 64,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}
_ADM = {"kind": "dhariwal-unet", "attn_resolutions": [32, 16, 8]}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "cifar10-ddpmpp": {**_DDPMPP, **_CIFAR10},
    "cifar10-ncsnpp": {**_NCSNPP, **_CIFAR10},
    "ffhq64-ddpmpp": {**_DDPMPP, **_FACES64},
    "ffhq64-ncsnpp": {**_NCSNPP, **_FACES64},
    "afhqv2-64-ddpmpp": {**_DDPMPP, **_FACES64},
    "afhqv2-64-ncsnpp": {**_NCSNPP, **_FACES64},
    "imagenet64-adm": {
        **_ADM,
        "img_resolution": 64,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "adaptive_scale": True,
    },
    "lsun256-adm": {
        **_ADM,
        "img_resolution": 256,
        "model_channels": 256,
        "channel_mult": [1, 1, 2, 2, 4, 4],
        "num_blocks": 2,
        "adaptive_scale": False,
    },
}
