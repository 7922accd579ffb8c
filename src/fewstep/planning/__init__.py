"""What a run will take: memory, time, and how it spreads over a cluster."""

from fewstep.planning.plan import plan_recipe

__all__ = ["plan_recipe"]
