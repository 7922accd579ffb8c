"""What steps report: figures, the log, and what was not finite."""
