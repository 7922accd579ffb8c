"""The text encoders of pipelines, with their tokenizers."""
