"""Objectives that follow scores: distribution matching, its weights, its fake scores."""
