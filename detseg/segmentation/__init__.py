"""Semantic segmentation: models, losses and metrics."""
