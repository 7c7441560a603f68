"""Data sets of people: readers of the published formats, and the crops that networks are trained on."""

from training.datasets.reading import read_set

__all__ = ["read_set"]
