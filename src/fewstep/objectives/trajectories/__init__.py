"""Objectives along the teacher's trajectories: progressive distillation, consistency, trajectory
models.
"""
