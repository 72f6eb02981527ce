"""Load transformers models from a folder, the Hugging Face Hub or ModelScope, as modules that return tensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.records.record import Count, record
from mirabelle.records.trust import check_trusted
from mirabelle.sources.missing import missing
from mirabelle.sources.models.example_inputs import EXAMPLES, example_inputs
from mirabelle.sources.names import HUBS, path_of
from mirabelle.task.batch import Batch, Inputs

_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "object-detection": "AutoModelForObjectDetection",
}
_USES = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill",
    "ForCausalLM": "continue",
    "LMHeadModel": "continue",
    "ForConditionalGeneration": "write",
    "MTModel": "write",
}
_GIVES = {
    "classify": "one class for each text",
    "tag": "a class for each word",
    "answer": "the answer as a part of a text",
    "fill": "the tokens that are hidden",
    "continue": "the token that follows",
    "write": "a second text",
}
_SEVERAL = (("logits", "pred_boxes"), ("class_queries_logits", "masks_queries_logits"), ("image_embeds", "text_embeds"))
_ONE = ("logits", "image_embeds", "text_embeds", "predicted_depth", "last_hidden_state")
_SEGMENTS = "ForSemanticSegmentation"  # end of the names of the classes of such models
_FEW = 5  # names in a message
_SETTINGS = ("self", "kwargs", "labels", "use_cache", "return_dict", "output_attentions", "output_hidden_states")
_ENDS = 2  # outputs of question answering: start and end


@record
class Head:
    """The head of a transformers model. Layers without saved weights are initialized randomly and need training.

    Args:
        head: "sequence-classification", "token-classification", "question-answering", "masked-lm", "causal-lm",
            "image-classification", "audio-classification", "ctc", "semantic-segmentation" or "object-detection"; by default
            that of the first architecture in config.json.
        labels: number of outputs of a classifier; by default the number in config.json.
    """

    head: (
        Literal[
            "sequence-classification",
            "token-classification",
            "question-answering",
            "masked-lm",
            "causal-lm",
            "image-classification",
            "audio-classification",
            "ctc",
            "semantic-segmentation",
            "object-detection",
        ]
        | None
    ) = None
    labels: Count | None = None


class HuggingFaceModel(nn.Module):
    """A transformers model as a module with tensors as inputs and one tensor, the logits, as output.

    Inputs have names; a single one may be given without its name. For question answering the output is (batch, tokens, 2), the
    logits of start and end; the logits of a semantic segmentation have the size of its images, (batch, classes, height, width),
    by bilinear interpolation; a model without a head returns its last hidden states. A detector returns two tensors, the
    logits and the boxes of its queries; a model of images and texts the embeddings of both.

    Args:
        model: the transformers model.
        origin: the folder that it was loaded from; its tokenizer or processor is copied when the model is saved.
        untrained: names of tensors of a new head, which its file does not contain; they are random.
        unused: names of tensors of its file that the model does not have, such as those of another head.
        class_names: names of the classes in the order of the outputs; empty if they have no names.
    """

    def __init__(
        self,
        model: nn.Module,
        origin: Path | None = None,
        untrained: Sequence[str] = (),
        unused: Sequence[str] = (),
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.origin = origin
        self.untrained = tuple(untrained)
        self.unused = tuple(unused)
        self.class_names = tuple(class_names)
        self.eval()

    def forward(self, *alone: Tensor, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if alone:
            if len(alone) > 1:
                message = f"the model is given {len(alone)} inputs without names"
                raise UserError("E121", message, "give several inputs as a dict, by the names of the model's arguments")
            inputs = {str(self.model.main_input_name): alone[0], **inputs}
        outputs = tensors_of(self.model(**inputs))
        if isinstance(outputs, Tensor) and type(self.model).__name__.endswith(_SEGMENTS):
            return F.interpolate(outputs, size=inputs["pixel_values"].shape[-2:], mode="bilinear", align_corners=False)
        return outputs

    def example(self) -> Batch | None:
        """Two samples of inputs whose sizes the config tells; None if it does not tell them.

        Tokens are ones, at most 16; pixels and waveforms are drawn from a normal distribution.
        """
        model: Any = self.model
        inputs = example_inputs(model, self.origin, _positions(model))
        return None if inputs is None else Batch(inputs, torch.zeros(EXAMPLES))

    def check(self, inputs: Inputs) -> None:
        """Raise an error unless the model takes inputs of these names, and texts of this length.

        Raises:
            UserError: E131 for inputs without names, or that the model does not take; E110 for texts that are too long.
        """
        model: Any = self.model
        known = [name for name in inspect.signature(model.forward).parameters if name not in _SETTINGS]
        if not isinstance(inputs, Mapping):
            if isinstance(inputs, Tensor) and not _reads_tokens(model):
                return
            message = f"the model takes inputs by name, such as {model.main_input_name}; the data have none"
            remedy = 'for texts: arguments = { tokenizer = "the folder of the model" }' if _reads_tokens(model) else ""
            raise UserError("E131", message, remedy or "give a task whose inputs are a dict")
        for name in inputs:
            if name not in known:
                few = ", ".join(known[:_FEW])
                remedy = f"leave it out: inputs = {json.dumps([own for own in inputs if own != name])}"
                raise UserError("E131", f"{type(model).__name__} does not take {name}; it takes {few}", remedy)
        writes = model.config.is_encoder_decoder and type(model).__name__.endswith(("ForConditionalGeneration", "MTModel"))
        if writes and "decoder_input_ids" not in inputs:
            message = f"{type(model).__name__} writes texts, and the data have none that it is to write"
            raise UserError("E131", message, 'give pairs of texts, with kind = "sequences" among the arguments of [task]')
        most = _positions(model)
        for name, tensor in inputs.items():
            if most is not None and name.endswith("input_ids") and tensor.shape[1] > most:
                message = f"the texts have {tensor.shape[1]} tokens, the model takes at most {most}"
                raise UserError("E110", message, f"set window or max_length to {most} or less")

    def check_use(self, use: str | None) -> None:
        """Raise an error if the model gives something else than texts are read for.

        Args:
            use: of `mirabelle.task.preprocessing.Text`, "classify" for one class for each text, "answer" for parts of texts;
                None if the outputs stay what they are.

        Raises:
            UserError: E111 if its head is made for another use.
        """
        kind = type(self.model).__name__
        own = next((use for end, use in _USES.items() if kind.endswith(end)), None)
        if use is None or own is None or own == use:
            return
        if (own, use) == ("fill", "continue"):
            message = f"{kind} sees both sides of a token, so it cannot learn which one follows"
            raise UserError("E111", message, 'set kind = "masked" among the arguments of [task]')
        if (own, use) == ("continue", "fill"):
            message = f"{kind} sees only the tokens before a hidden one"
            raise UserError("E111", message, "leave kind out among the arguments of [task]")
        head = next((name for name, auto in _HEADS.items() if _USES.get(auto.removeprefix("AutoModel")) == use), None)
        labels = ", labels = 2" if use in ("classify", "tag") else ""
        new = f'[model] arguments = {{ head = "{head}"{labels} }} puts a new head on it, which must be trained'
        raise UserError(
            "E111", f"{kind} gives {_GIVES[own]}, the data ask for {_GIVES[use]}", new if head else "give other data"
        )

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """Save the folder `huggingface/` with weights, config and tokenizer, for `from_pretrained`.

        Raises:
            UserError: E121 if the config cannot represent the widths of a pruned model.
        """
        from mirabelle.sources.models.saved_huggingface import save_pretrained

        with without_bars():
            save_pretrained(self.model, self.origin, model, folder / "huggingface")
        return "huggingface"


def tensors_of(given: Any) -> Tensor | tuple[Tensor, ...]:
    """The logits from the output of a transformers model; without logits other tensors, of which `HuggingFaceModel` tells."""
    if isinstance(given, Tensor):
        return given
    if "start_logits" in given:
        return torch.stack([given["start_logits"], given["end_logits"]], dim=-1)
    for names in _SEVERAL:
        if all(given.get(name) is not None for name in names):
            return tuple(given[name] for name in names)
    for name in _ONE:
        if name in given:
            found: Tensor = given[name]
            return found
    message = f"the outputs of the model are {', '.join(given)}; there are no logits"
    raise UserError("E121", message, "wrap it in a function that returns a module whose outputs are tensors")


def _reads_tokens(model: Any) -> bool:
    return bool(model.main_input_name == "input_ids")


def _positions(model: Any) -> int | None:
    """The most tokens of a model that learns a vector for each position; None for other models."""
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and (name.endswith("wpe") or ".embed_positions" in name or "position_emb" in name):
            reserved = 0 if module.padding_idx is None or module.num_embeddings > most else module.padding_idx + 1
            return most - reserved
    return None


def module_from_huggingface(name: str, folder: Path, head: Head | None = None) -> HuggingFaceModel:
    """Load a transformers model from a folder or a hub.

    Only safetensors are read, and no code from the model repository is run.

    Args:
        name: "hf:organisation/model" or "ms:organisation/model" (ModelScope), optionally followed by "@revision"; or the path
            of a folder with config.json.
        folder: relative paths refer to it.
        head: the head to use instead of the one in config.json.

    Raises:
        UserError: E160 if transformers (or modelscope) is not installed, E130 if there is no such model, E143 if its weights
            are a pickle, E121 if its architecture is unknown, E140 if its files lack tensors that are not those of a head
            that `head` asks for.
    """
    transformers = library()
    place, revision = place_of(name, folder)
    settings: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    try:
        with without_bars():
            config = transformers.AutoConfig.from_pretrained(place, **settings, **_labels(head))
            kind = _class_of(transformers, config, head)
            model, found = kind.from_pretrained(
                place,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_untrained` refuses them, unless they are of a new head
                **settings,
            )
            untrained = _untrained(name, model, found, new_head=head is not None and head != Head())
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "safetensors" in reason and not isinstance(error, FileNotFoundError):  # which names a shard
            message = f"{name} has no safetensors file, and pickles are not read: {reason}"
            raise UserError("E143", message, "save it with transformers 5") from error
        raise UserError("E130", f"transformers cannot read {name}: {reason}", "check the name, or download it first") from error
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # the key-value cache is not used here
    origin = Path(place) if Path(place).is_dir() else None
    names = () if head is not None and head.labels is not None else _class_names(model.config)
    return HuggingFaceModel(model.float(), origin, untrained, sorted(found["unexpected_keys"]), names)


def _class_names(config: Any) -> tuple[str, ...]:
    """The names of the classes in a config, in the order of the outputs; empty for those that transformers makes up."""
    names = getattr(config, "id2label", None) or {}
    found = tuple(str(names[k]) for k in sorted(names))
    return () if found == tuple(f"LABEL_{k}" for k in range(len(found))) else found


def _untrained(name: str, model: Any, found: Mapping[str, Any], *, new_head: bool) -> list[str]:
    """The tensors that no file contains, all of a head that is asked for; E140 for any others.

    Args:
        name: of the model.
        model: as transformers has loaded it. Tied tensors, and buffers that are computed, are not missing.
        found: what transformers says about the loading.
        new_head: whether `Head` asks for a head.
    """
    shapes = {key: f" {tuple(given)} instead of {tuple(own)}" for key, given, own in found["mismatched_keys"]}
    absent = sorted({*found["missing_keys"], *shapes})
    base = f"{model.base_model_prefix}."
    is_base = not hasattr(model, model.base_model_prefix)
    wrong = [key for key in absent if not new_head or is_base or (key.startswith(base) and ".pooler." not in f".{key}")]
    if wrong:
        few = ", ".join(f"{key}{shapes.get(key, '')}" for key in wrong[:_FEW]) + (", …" if len(wrong) > _FEW else "")
        message = f"the files of {name} do not contain {len(wrong)} of its tensors, or in another shape: {few}"
        remedy = "give the whole model; a head that is to be new is asked for by arguments = { head = …, labels = … }"
        raise UserError("E140", message, remedy)
    return absent


def library() -> Any:
    """The package transformers.

    Raises:
        UserError: E160 if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        message = f"Hugging Face models need transformers: {error}"
        raise UserError("E160", message, "pip install 'mirabelle[huggingface]'") from error
    return transformers


@contextmanager
def without_bars() -> Iterator[None]:
    """A context without progress bars and warnings of transformers, which would disturb Mirabelle's own progress display."""
    logging = library().utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def place_of(name: str, folder: Path) -> tuple[str, str | None]:
    """(argument of from_pretrained, revision or None) for a folder, or for a model on a hub."""
    if not name.startswith(HUBS):
        path = path_of(name, folder)
        if not path.is_dir():  # transformers would look for it on a hub
            raise missing("folder of a transformers model", name, path)
        return str(path), None
    check_trusted(name)
    hub, _, rest = name.partition(":")
    place, _, revision = rest.partition("@")
    return (_snapshot(place, revision or None), None) if hub == "ms" else (place, revision or None)


def _snapshot(place: str, revision: str | None) -> str:
    """The local folder into which ModelScope has downloaded a model."""
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        message = f"ModelScope models need the package modelscope: {error}"
        raise UserError("E160", message, "pip install 'mirabelle[modelscope]'") from error
    try:
        found: str = snapshot_download(place, revision=revision)
    except Exception as error:
        message = f"ModelScope cannot download {place}: {first_line(error)}"
        raise UserError("E130", message, "check the name, or name a folder") from error
    return found


def _labels(head: Head | None) -> dict[str, int]:
    """The config setting for the number of outputs; question answering has two, for the first and last token."""
    if head is None:
        return {}
    count = _ENDS if head.head == "question-answering" else head.labels
    return {} if count is None else {"num_labels": count}


def _class_of(transformers: Any, config: Any, head: Head | None) -> Any:
    """The transformers class for a head, or else the first architecture in the config."""
    if head is not None and head.head is not None:
        return getattr(transformers, _HEADS[head.head])
    names = list(config.architectures or ())
    if not names:
        remedy = 'for example: "architectures": ["BertForSequenceClassification"]'
        raise UserError("E121", "config.json has no architecture", remedy)
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise UserError("E121", f'transformers has no "{names[0]}"', did_you_mean(names[0], dir(transformers)))
    return kind
