"""Logging of a run to TensorBoard or Weights & Biases: off by default, same names in both; failures never end a run."""

from mirabelle.run.tracking.tracker import Tracker, require, tracker_for

__all__ = ["Tracker", "require", "tracker_for"]
