"""Networks that judge: critics and classifiers."""
