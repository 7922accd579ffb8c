"""Solvers of the probability-flow ODE, and the flow maps of few-step students."""

from fewstep.solvers.churn import NO_CHURN, Churn, solve_with_churn
from fewstep.solvers.flow_map import Ancestral, FlowMap, Renoise, Rescaled, Solver
from fewstep.solvers.rule import DPM2M, EULER, HEUN, RULES, Rule, solve
from fewstep.solvers.stochastic import Gamma
from fewstep.solvers.transition import ddim_between, teacher_step, x0_of_transition

__all__ = [
    "DPM2M",
    "EULER",
    "HEUN",
    "NO_CHURN",
    "RULES",
    "Ancestral",
    "Churn",
    "FlowMap",
    "Gamma",
    "Renoise",
    "Rescaled",
    "Rule",
    "Solver",
    "ddim_between",
    "solve",
    "solve_with_churn",
    "teacher_step",
    "x0_of_transition",
]
