"""The methods a recipe can name, one a file; a new one is imported here, and named nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fewstep.recipes.config.section import Choice, kind_of_section
from fewstep.recipes.methods.along_trajectories.consistency import ConsistencyMethod
from fewstep.recipes.methods.along_trajectories.continuous_consistency import ContinuousMethod
from fewstep.recipes.methods.along_trajectories.easy_tuning import EasyTuningMethod
from fewstep.recipes.methods.along_trajectories.knowledge import KnowledgeMethod
from fewstep.recipes.methods.along_trajectories.phased_consistency import PhasedMethod
from fewstep.recipes.methods.along_trajectories.piecewise_flow import PiecewiseFlowMethod
from fewstep.recipes.methods.along_trajectories.progressive import ProgressiveMethod
from fewstep.recipes.methods.along_trajectories.rectified_flow import RectifiedFlowMethod
from fewstep.recipes.methods.along_trajectories.trajectory import TrajectoryMethod
from fewstep.recipes.methods.along_trajectories.trajectory_consistency import TrajectoryConsistencyMethod
from fewstep.recipes.methods.along_trajectories.truncated_consistency import TruncatedMethod
from fewstep.recipes.methods.average_velocities.align_your_flow import AlignedFlowMethod
from fewstep.recipes.methods.average_velocities.mean_flow import MeanFlowMethod
from fewstep.recipes.methods.following_scores.adversarial_diffusion import AdversarialDiffusionMethod
from fewstep.recipes.methods.following_scores.decoupled_dmd import DecoupledMethod
from fewstep.recipes.methods.following_scores.distribution_matching import DistributionMatchingMethod
from fewstep.recipes.methods.following_scores.dp_dmd import AnchoredMethod
from fewstep.recipes.methods.following_scores.f_distill import FDistillMethod
from fewstep.recipes.methods.following_scores.latent_adversarial import LatentAdversarialMethod
from fewstep.recipes.methods.following_scores.moment import MomentMethod
from fewstep.recipes.methods.following_scores.score_regularized import ScoreRegularizedMethod
from fewstep.recipes.methods.following_scores.sid import IdentityMethod
from fewstep.recipes.methods.following_scores.sid_lsg import GuidedIdentityMethod
from fewstep.recipes.methods.following_scores.sida import AdversarialIdentityMethod
from fewstep.recipes.methods.method import Built, Method, Traits


class _Methods(Choice):
    """Any method that has a kind: those imported here, and a user's own."""

    def options(self, base: Any) -> Mapping[str, type[Any]]:
        found = {kind_of_section(each): each for each in _below(base)}
        return {kind: each for kind, each in found.items() if kind is not None}


def _below(section: type[Method]) -> Iterator[type[Method]]:
    for each in section.__subclasses__():
        yield each
        yield from _below(each)


MethodChoice = Annotated[Method, _Methods()]

__all__ = [
    "AdversarialDiffusionMethod",
    "AdversarialIdentityMethod",
    "AlignedFlowMethod",
    "AnchoredMethod",
    "Built",
    "ConsistencyMethod",
    "ContinuousMethod",
    "DecoupledMethod",
    "DistributionMatchingMethod",
    "EasyTuningMethod",
    "FDistillMethod",
    "GuidedIdentityMethod",
    "IdentityMethod",
    "KnowledgeMethod",
    "LatentAdversarialMethod",
    "MeanFlowMethod",
    "Method",
    "MethodChoice",
    "MomentMethod",
    "PhasedMethod",
    "PiecewiseFlowMethod",
    "ProgressiveMethod",
    "RectifiedFlowMethod",
    "ScoreRegularizedMethod",
    "Traits",
    "TrajectoryConsistencyMethod",
    "TrajectoryMethod",
    "TruncatedMethod",
]
