"""Torch modules: their tensors, the values of their layers, and the edits that turn a dense model into a compressed one."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.model.architecture import Architecture, architecture_of, replace_module, replayed
    from mirabelle.model.call_results import CallResults, with_call_results
    from mirabelle.model.edits import Cut, Edit, Replace
    from mirabelle.model.output_scale import ScaleOutput, with_output_scale
    from mirabelle.model.plain_attention import PlainAttention
    from mirabelle.model.plain_weights import Fold
    from mirabelle.model.replacement import Replacement
    from mirabelle.model.state import copied, fingerprint, in_eval_mode, load_tensors, tensors_of_module
    from mirabelle.model.taps import Taps, features_of
    from mirabelle.model.ties import Tie, tie

__all__ = [
    "Architecture",
    "CallResults",
    "Cut",
    "Edit",
    "Fold",
    "PlainAttention",
    "Replace",
    "Replacement",
    "ScaleOutput",
    "Taps",
    "Tie",
    "architecture_of",
    "copied",
    "features_of",
    "fingerprint",
    "in_eval_mode",
    "load_tensors",
    "replace_module",
    "replayed",
    "tensors_of_module",
    "tie",
    "with_call_results",
    "with_output_scale",
]
__getattr__ = lazily(
    "mirabelle.model",
    {
        "architecture": ["Architecture", "architecture_of", "replace_module", "replayed"],
        "call_results": ["CallResults", "with_call_results"],
        "edits": ["Cut", "Edit", "Replace"],
        "output_scale": ["ScaleOutput", "with_output_scale"],
        "plain_attention": ["PlainAttention"],
        "plain_weights": ["Fold"],
        "replacement": ["Replacement"],
        "state": ["copied", "fingerprint", "in_eval_mode", "load_tensors", "tensors_of_module"],
        "taps": ["Taps", "features_of"],
        "ties": ["Tie", "tie"],
    },
)
