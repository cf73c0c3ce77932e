"""Pipelines whose ranks hold several chunks of layers."""
