"""Figures of segmentation and detection: pure functions and collectors of arrays."""
