"""Solvers of the probability-flow ODE, and the flow maps of few-step students."""

from fewstep.solvers.flow_map import FlowMap, Renoise, Solver
from fewstep.solvers.rule import DPM2M, EULER, HEUN, RULES, Rule, solve

__all__ = ["DPM2M", "EULER", "HEUN", "RULES", "FlowMap", "Renoise", "Rule", "Solver", "solve"]
