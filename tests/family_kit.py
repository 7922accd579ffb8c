"""Tiny transformers of each family, of random weights, and diffusers' own pipelines around them.

Prompts are embeddings that are drawn, as large as the family's text encoders make them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Condition

TOKENS, ROWS = 5, 2
STEPS = 4


@dataclass(frozen=True)
class FamilyCase:
    """A network's kind, its class with a small configuration, the shape of a sample, of its
    conditions, and the scheduler that its pipelines have.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    context: Mapping[str, tuple[int, ...]]
    scheduler: Callable[[], Any]
    masked: bool = False

    def network(self) -> Any:
        """diffusers' transformer with random weights."""
        import diffusers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = getattr(diffusers, self.name)(**self.config)
            for value in made.parameters():
                # Of a fresh transformer many layers are zero.
                torch.nn.init.normal_(value, std=0.3 / max(1, value.ndim - 1) if value.ndim > 1 else 0.1)
        return made.eval().requires_grad_(False)

    def noise(self, rows: int = ROWS, seed: int = 1) -> Tensor:
        """Latents to start from."""
        return torch.randn(rows, *self.shape, generator=torch.Generator().manual_seed(seed))

    def embeddings(self, rows: int = ROWS, seed: int = 2) -> dict[str, Tensor]:
        """What a text encoder would make of prompts, a row a prompt."""
        generator = torch.Generator().manual_seed(seed)
        made = {name: torch.randn(rows, *shape, generator=generator) for name, shape in self.context.items()}
        if self.masked:
            mask = torch.ones(rows, TOKENS)
            mask[0, -2:] = 0
            made["mask"] = mask
        return made

    def condition(self, rows: int = ROWS, seed: int = 2) -> Condition:
        """The same as a condition; of classes the labels 1, 2, ..."""
        if not self.context:
            return Condition(labels=torch.arange(1, rows + 1))
        return Condition(context=self.embeddings(rows, seed))


def _flow(**settings: Any) -> Callable[[], Any]:
    def made() -> Any:
        import diffusers

        return diffusers.FlowMatchEulerDiscreteScheduler(**settings)

    return made


def _ddim(**settings: Any) -> Callable[[], Any]:
    def made() -> Any:
        import diffusers

        return diffusers.DDIMScheduler(**settings, clip_sample=False)

    return made


_STABLE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

CASES: Mapping[str, FamilyCase] = {
    "sd3": FamilyCase(
        "diffusers-sd3",
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 3,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 8,
            "pooled_projection_dim": 6,
            "pos_embed_max_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "qk_norm": "rms_norm",
            "dual_attention_layers": [0],
        },
        (4, 8, 8),
        {"text": (TOKENS, 12), "pooled": (6,)},
        _flow(shift=3.0),
    ),
    "flux": FamilyCase(
        "diffusers-flux",
        "FluxTransformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 6,
            "guidance_embeds": True,
            "axes_dims_rope": [4, 6, 6],
        },
        (4, 8, 8),
        {"text": (TOKENS, 12), "pooled": (6,)},
        _flow(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=4096),
    ),
    "pixart": FamilyCase(
        "diffusers-pixart",
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "cross_attention_dim": 8,
            "caption_channels": 12,
            "use_additional_conditions": False,
        },
        (4, 8, 8),
        {"text": (TOKENS, 12)},
        _ddim(**_STABLE),
        masked=True,
    ),
    "sana": FamilyCase(
        "diffusers-sana",
        "SanaTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": 12,
            "timestep_scale": 0.001,
        },
        (8, 16, 16),
        {"text": (TOKENS, 12)},
        _flow(shift=3.0),
        masked=True,
    ),
    "qwen-image": FamilyCase(
        "diffusers-qwen-image",
        "QwenImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": [4, 6, 6],
        },
        (4, 8, 8),
        {"text": (TOKENS, 12)},
        _flow(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=4096),
        masked=True,
    ),
    "z-image": FamilyCase(
        "diffusers-z-image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 6, 6],
            "axes_lens": [64, 32, 32],
        },
        (4, 8, 8),
        {"text": (TOKENS, 12)},
        _flow(shift=3.0),
        masked=True,
    ),
    "dit": FamilyCase(
        "diffusers-dit",
        "DiTTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 8,
            "num_embeds_ada_norm": 10,
            "norm_num_groups": 2,
        },
        (4, 8, 8),
        {},
        _ddim(**_STABLE),
    ),
}


def times_of(case: FamilyCase) -> list[float]:
    """When the pipeline calls its network, and 0."""
    import diffusers

    if isinstance(case.scheduler(), diffusers.FlowMatchEulerDiscreteScheduler):
        return [1.0, 0.75, 0.5, 0.25, 0.0]
    scheduler = case.scheduler()
    scheduler.set_timesteps(STEPS)
    # DDIM's last step goes to the signal that timestep 0 has, or to all of it.
    assert scheduler.config.set_alpha_to_one
    return [*((int(each) + 1) / 1000 for each in scheduler.timesteps), 0.0]
