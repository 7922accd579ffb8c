"""Prompts from files, and their embeddings, computed once and kept on disk."""

from fewstep.data.prompts.read import Prompts, read_prompts

__all__ = ["Prompts", "read_prompts"]
