"""The methods a recipe can name, one a file. A new one is added to ``MethodChoice`` and nowhere else."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fewstep.recipes.methods.adversarial import AdversarialDiffusionMethod
from fewstep.recipes.methods.base import Built, Method, Traits
from fewstep.recipes.methods.consistency import ConsistencyMethod
from fewstep.recipes.methods.flow import RectifiedFlowMethod
from fewstep.recipes.methods.identity import IdentityMethod
from fewstep.recipes.methods.knowledge import KnowledgeMethod
from fewstep.recipes.methods.matching import DistributionMatchingMethod
from fewstep.recipes.methods.progressive import ProgressiveMethod
from fewstep.recipes.methods.trajectory import TrajectoryMethod

MethodChoice = Annotated[
    KnowledgeMethod | ProgressiveMethod | RectifiedFlowMethod | ConsistencyMethod | TrajectoryMethod | DistributionMatchingMethod | IdentityMethod | AdversarialDiffusionMethod,
    Field(discriminator="kind"),
]

__all__ = ["Built", "Method", "MethodChoice", "Traits"]
