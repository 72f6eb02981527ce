"""Folders of tiny random transformers with their data go through the command line: inspect, init, check, run, predict, and back.

python benchmarks/transformers_folders.py                   the folders that results/transformers_folders.json lacks
python benchmarks/transformers_folders.py --only bert,gpt2  these again

Each folder goes through `mirabelle inspect`, `init`, `check`, `run` and `predict`, and what comes out is loaded by `from_pretrained`. Of
the recipe that `init` prints the step that trains is left out, the goal asks for a size (random models have no accuracy to keep), and
texts have 24 tokens; nothing else is changed. The table "Thirty folders of transformers" of docs/frameworks.md is written after each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers_vision
from conditions import write

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).absolute().parent
RESULTS, PAGE = HERE / "results" / "transformers_folders.json", HERE.parent / "docs" / "frameworks.md"
HEADING = "### Thirty folders of transformers"
COMMANDS = ("inspect", "init", "check", "run", "predict", "from_pretrained")
WORDS = "the a film is was very good bad not and but plot actor scene story slow fast funny sad long short i it we".split()  # noqa: SIM905 (one line)
ENCODER = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
DECODER = {**ENCODER, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3}
ROTARY = {**DECODER, "num_key_value_heads": 1}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": "p2c|c2p", "position_biased_input": False}
DISTIL = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32}
OPT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "word_embed_proj_dim": 16}
PAIRS = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 3}


@dataclass(frozen=True)
class Case:
    """A folder of transformers with its data and an input for `predict`."""

    name: str
    make: Callable[[Path], None]
    data: str
    predict: str


def cases() -> list[Case]:
    """The folders for texts."""
    positions = {"max_position_embeddings": 64}
    films = ("films.tsv", "new.tsv")
    rows = [
        ("bert", "BertForSequenceClassification", {**ENCODER, **positions}, films),
        ("distilbert", "DistilBertForSequenceClassification", {**DISTIL, **positions}, films),
        ("roberta", "RobertaForSequenceClassification", {**ENCODER, **positions, "pad_token_id": 0}, films),
        ("electra", "ElectraForSequenceClassification", {**ENCODER, **positions, "embedding_size": 8}, films),
        ("deberta-v2", "DebertaV2ForSequenceClassification", {**ENCODER, **DEBERTA, **positions}, films),
        ("albert", "AlbertForSequenceClassification", {**ENCODER, **positions, "embedding_size": 8}, films),
        ("mpnet", "MPNetForSequenceClassification", {**ENCODER, **positions, "pad_token_id": 0}, films),
        ("tags", "BertForTokenClassification", {**ENCODER, **positions}, ("tags.conll", "tags.conll")),
        ("answers", "BertForQuestionAnswering", {**ENCODER, **positions}, ("questions.json", "questions.json")),
        ("masked", "BertForMaskedLM", {**ENCODER, **positions}, ("text.txt", "masked.txt")),
        ("gpt2", "GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}, ("text.txt", "new.txt")),
        ("llama", "LlamaForCausalLM", ROTARY, ("text.txt", "new.txt")),
        ("gpt-neox", "GPTNeoXForCausalLM", DECODER, ("text.txt", "new.txt")),
        ("opt", "OPTForCausalLM", {**OPT, **positions, "pad_token_id": 0}, ("text.txt", "new.txt")),
        ("qwen2", "Qwen2ForCausalLM", ROTARY, ("text.txt", "new.txt")),
        ("mamba", "MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, ("text.txt", "new.txt")),
        ("t5", "T5ForConditionalGeneration", T5, ("pairs.tsv", "pairs.tsv")),
        ("bart", "BartForConditionalGeneration", {**PAIRS, **positions}, ("pairs.tsv", "pairs.tsv")),
        ("marian", "MarianMTModel", {**PAIRS, **positions}, ("pairs.tsv", "pairs.tsv")),
    ]
    made = [Case(name, _maker(kind, settings), *files) for name, kind, settings, files in rows]
    return [*made, Case("sentences", _sentences, "films.tsv", "new.tsv")]


def _maker(kind: str, settings: dict[str, Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        import transformers

        tokens = _save_tokenizer(folder)
        model = getattr(transformers, kind)
        torch.manual_seed(0)
        made = model(model.config_class(vocab_size=tokens, **settings))
        for parameter in made.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        made.save_pretrained(folder)

    return make


def _save_tokenizer(folder: Path) -> int:
    import tokenizers
    import transformers

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({name: k for k, name in enumerate(names)}, unk_token="[UNK]"))  # noqa: S106 (no password)
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.decoder = tokenizers.decoders.WordPiece()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, **{f"{name}_token": token for name, token in special.items()}
    )
    fast.save_pretrained(folder)
    return len(names)


def _sentences(folder: Path) -> None:
    """A folder as sentence-transformers saves it: a transformer, the mean over its tokens, and vectors of length 1."""
    _maker("BertModel", {**ENCODER, "max_position_embeddings": 64})(folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )


def write_data(folder: Path) -> None:
    """Texts, tags, questions and pairs of texts."""
    draw = random.Random(0)  # noqa: S311 (words of an example)

    def words(count: int) -> list[str]:
        return [draw.choice(WORDS) for _ in range(count)]

    films = [f"{' '.join(text)}\t{'pos' if text[0] < 'g' else 'neg'}" for text in (words(6) for _ in range(80))]
    (folder / "films.tsv").write_text("\n".join(["text\tlabel", *films]) + "\n")
    (folder / "new.tsv").write_text("\n".join(["text\tlabel", *films[:3]]) + "\n")
    (folder / "text.txt").write_text(" ".join(words(2500)))
    (folder / "new.txt").write_text("the film was\nit is very\n")
    (folder / "masked.txt").write_text("the film [MASK] very good\n")
    tagged = ["\n".join(f"{word}\t{'B-ADJ' if word in WORDS[5:9] else 'O'}" for word in words(5)) for _ in range(40)]
    (folder / "tags.conll").write_text("\n\n".join(tagged) + "\n")
    pairs = [f"{' '.join(text)}\t{' '.join(reversed(text))}" for text in (words(4) for _ in range(60))]
    (folder / "pairs.tsv").write_text("\n".join(["source\ttarget", *pairs]) + "\n")
    articles = []
    for k in range(30):
        text = words(8)
        answer = {"text": text[3], "answer_start": len(" ".join(text[:3])) + 1}
        asked = {"id": str(k), "question": " ".join(words(3)), "answers": [answer]}
        articles.append({"title": str(k), "paragraphs": [{"context": " ".join(text), "qas": [asked]}]})
    (folder / "questions.json").write_text(json.dumps({"version": "1.1", "data": articles}))


def call(*words: str) -> tuple[int, str, str]:
    """(exit status, output, first line of an error) of a command."""
    from mirabelle.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.run(list(words))
    with Path("errors.log").open("a") as log:
        log.write(f"{words}: {status}\n{err.getvalue()}\n{out.getvalue() if words[0] == 'init' else ''}")
    told = [line for line in err.getvalue().splitlines() if line.startswith(("error", "internal"))]
    return status, out.getvalue(), told[0] if told else ""


def shortened(recipe: str) -> str:
    """The recipe that `init` prints, without the step that trains, with a goal for the size and with short texts."""
    before, _, rest = recipe.partition("# Sets the least important weights to zero")
    after = rest[re.search(r"^# Quantizes", rest, re.MULTILINE).start() :]
    recipe = re.sub(r'^max_drop = "1%".*$', 'size = "110%"', before + after, flags=re.MULTILINE)
    return re.sub(r"(window|max_length) = \d+", r"\1 = 24", recipe)


def taken(case: Any) -> dict[str, str]:
    """What each command said to a folder: "yes", or its first error; "" for those behind an error."""
    told = dict.fromkeys(COMMANDS, "")
    run = f"runs/{case.name}"
    steps: dict[str, tuple[str, ...]] = {
        "inspect": ("inspect", f"./{case.name}"),
        "init": ("init", "--model", f"./{case.name}", "--data", f"./{case.data.removeprefix('./')}"),
        "check": ("check", f"{case.name}.toml"),
        "run": ("run", f"{case.name}.toml", "--out", run, "--quiet"),
        "predict": ("predict", run, case.predict),
    }
    for name, words in steps.items():
        if name == "predict" and not case.predict:
            told[name] = "–"
            continue
        status, printed, error = call(*words)
        told[name] = error or ("yes" if status == 0 else f"exit status {status}")
        if status:
            return told
        if name == "init":
            Path(f"{case.name}.toml").write_text(shortened(printed))
    told["from_pretrained"] = came_back(Path(run) / "huggingface")
    return told


def came_back(folder: Path) -> str:
    """ "yes" if `from_pretrained` finds all weights of the model in a folder, and no others; else its error."""
    import transformers

    try:
        kind = json.loads((folder / "config.json").read_text())["architectures"][0]
        _, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # noqa: BLE001 (it is told)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    odd = {what: sorted(map(str, names)) for what, names in found.items() if names}
    return f"from_pretrained tells {odd}" if odd else "yes"


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of folders, joined by commas, that are run again")
    parser.add_argument("--folder", type=Path, help="where the folders are made; by default a temporary one")
    given = parser.parse_args()
    every: list[Any] = [*cases(), *transformers_vision.cases()]
    found = json.loads(RESULTS.read_text("utf-8"))["folders"] if RESULTS.is_file() else {}
    only = set(filter(None, given.only.split(","))) or {case.name for case in every} - set(found)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_data(folder)
        transformers_vision.write_data(folder)
        os.chdir(folder)
        for case in (case for case in every if case.name in only):
            torch.manual_seed(0)
            case.make(folder.absolute() / case.name)
            found[case.name] = taken(case)
            print(case.name, found[case.name], flush=True)
            save(every, found)


def save(every: Sequence[Any], found: dict[str, dict[str, str]]) -> None:
    """Write the results so far, and the section of the page."""
    table = section(every, found)
    with contextlib.redirect_stdout(io.StringIO()):
        kept = "\n\nEach row was kept when it was made, at commits up to the one below.\n"
        write("transformers_folders", {"folders": found}, table.replace(HEADING, "# Folders of transformers") + kept)
    text = re.sub(rf"(?ms)^{HEADING}$.*?(?=^#|\Z)", "", PAGE.read_text("utf-8"))
    before, heading, after = text.partition("\n## Keras\n")
    PAGE.write_text(f"{before.rstrip()}\n\n{table}\n{heading}{after}", "utf-8")


def section(every: Sequence[Any], found: dict[str, dict[str, str]]) -> str:
    """The table: what each command said to each folder, and below it the lines of the refusals."""
    ran = [case for case in every if case.name in found]
    works = sum(all(said in ("yes", "–") for said in found[case.name].values()) for case in ran)
    refusals = sorted({said for case in ran for said in found[case.name].values()} - {"yes", "–", ""})
    numbers = {said: position for position, said in enumerate(refusals, start=1)}
    shown = {"yes": "yes", "–": "–", "": "", **{said: f"no ({number})" for said, number in numbers.items()}}
    lines = [
        HEADING,
        "",
        "`cd benchmarks && python transformers_folders.py` makes folders of tiny random transformers, with tokenizer or processor and data, takes",
        "each through `inspect`, `init`, `check`, `run` and `predict`, and loads what comes out by `from_pretrained`,",
        "which must find every weight and no other. `--only bert,gpt2` takes some of them again.",
        "Of the recipe that `init` prints the step that trains is left out, the goal asks for a size, since random models have no accuracy to keep,",
        "and texts have 24 tokens.",
        "",
        f"{works} of {len(ran)} go through everything; for the others the numbers in the table stand for the lines below it.",
        "A dash: there is no file of inputs that `predict` reads.",
        "",
        f"| folder | data | {' | '.join(COMMANDS)} |",
        f"|---|---|{'---|' * len(COMMANDS)}",
    ]
    for case in ran:
        said = " | ".join(shown[found[case.name][name]] for name in COMMANDS)
        lines.append(f"| {case.name} | `{case.data.removeprefix('./')}` | {said} |")
    lines += ["", *(f"{number}. {said}" for said, number in numbers.items())]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
