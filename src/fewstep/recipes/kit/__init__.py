"""What methods are built with: states, targets, scores and critics, for whichever method asks."""
