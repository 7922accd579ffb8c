"""States: the distribution of the noisy inputs on which a network is trained."""

from fewstep.states.forward import ForwardDiffusion
from fewstep.states.prior import Prior
from fewstep.states.state import State, States
from fewstep.states.step import Step

__all__ = ["ForwardDiffusion", "Prior", "State", "States", "Step"]
