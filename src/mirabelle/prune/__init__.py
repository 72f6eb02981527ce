"""Steps that remove what matters least: one file a step."""

from mirabelle.prune.channels import Channels
from mirabelle.prune.weights import Weights

__all__ = ["Channels", "Weights"]
