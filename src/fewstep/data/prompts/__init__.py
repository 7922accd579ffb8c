"""Prompts from files, and their embeddings, computed once and kept on disk."""

from fewstep.data.prompts.conditions import PromptConditions, Unembedded
from fewstep.data.prompts.embeddings import EmbeddedPrompts
from fewstep.data.prompts.encoder import PromptEncoder
from fewstep.data.prompts.fill import embed
from fewstep.data.prompts.hub_prompts import read_hub_prompts
from fewstep.data.prompts.read import Prompts, read_prompts

__all__ = [
    "EmbeddedPrompts",
    "PromptConditions",
    "PromptEncoder",
    "Prompts",
    "Unembedded",
    "embed",
    "read_hub_prompts",
    "read_prompts",
]
