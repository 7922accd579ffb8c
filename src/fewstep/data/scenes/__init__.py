"""Scenes: a small world of texts and pictures, handwritten digits in colour with captions."""

from fewstep.data.scenes.scene_set import Scenes, scene_prompts
from fewstep.data.scenes.vocabulary import SceneWords, caption, parse

__all__ = ["SceneWords", "Scenes", "caption", "parse", "scene_prompts"]
