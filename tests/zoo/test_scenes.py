"""The shipped text-to-image model of scenes: a folder that plain diffusers opens, as good as its
card says; and what its parts are trained by.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.condition import Condition
from fewstep.data.scenes import Scenes, scene_prompts
from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.networks import ImageReader, build
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.recipes import load_recipe
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.solvers import Solver
from fewstep.system.files import read_tensors
from fewstep.zoo import scenes as parts
from fewstep.zoo.pipelines import TextPipeline, load_pipeline
from fewstep.zoo.shipped import shipped_pipeline
