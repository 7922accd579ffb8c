"""What is wrong, and what to do: a machine, a recipe, a run folder, a file."""

from fewstep.doctor.examine import examine, has_problem
from fewstep.doctor.inspect import inspect

__all__ = ["examine", "has_problem", "inspect"]
