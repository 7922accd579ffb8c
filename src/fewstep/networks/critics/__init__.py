"""Networks that judge: critics, classifiers and readers."""
