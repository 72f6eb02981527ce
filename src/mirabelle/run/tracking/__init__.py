"""A run watched in other people's tools: TensorBoard, Weights & Biases. Off by default, never fatal, same names in each."""

from mirabelle.run.tracking.tracker import Tracker, require, tracker_for

__all__ = ["Tracker", "require", "tracker_for"]
