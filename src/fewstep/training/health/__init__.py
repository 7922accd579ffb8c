"""What a run's health is read of besides the losses: its samples' levels, and what has moved."""
