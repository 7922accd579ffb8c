"""Methods whose student learns jumps along trajectories."""
