"""States: the distribution of the noisy inputs on which a network is trained."""

from fewstep.states.alternate import Alternate
from fewstep.states.dagger import Dagger
from fewstep.states.forward import Attributed, ForwardDiffusion, Started
from fewstep.states.generated import Generated
from fewstep.states.guidance import WithGuidance
from fewstep.states.mixture import Mixture, PerBatch
from fewstep.states.pairs import Pairs, write_pairs
from fewstep.states.prior import Prior
from fewstep.states.rollout import OpenRollout, RandomRollout, Rollout
from fewstep.states.state import State, States
from fewstep.states.step import Step
from fewstep.states.weights import Constant, Linear, Weights

__all__ = [
    "Alternate",
    "Attributed",
    "Constant",
    "Dagger",
    "ForwardDiffusion",
    "Generated",
    "Linear",
    "Mixture",
    "OpenRollout",
    "Pairs",
    "PerBatch",
    "Prior",
    "RandomRollout",
    "Rollout",
    "Started",
    "State",
    "States",
    "Step",
    "Weights",
    "WithGuidance",
    "write_pairs",
]
