"""Several processes of one job: the same training as in one, one run, and an end for all when one of them ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from in_processes import STEPS, TERM_NAMES, TRAININGS, all_trained, in_processes, task_of_digits
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.model import device
from mirabelle.objectives import CRD
from mirabelle.run.journal import read_events
from mirabelle.run.launch import Launch, first_host, is_first, launched, meeting_point
from mirabelle.training.data_parallel import check_terms_of_processes

SCRIPT = str(Path(__file__).with_name("in_processes.py"))
OF_WHOLE_BATCHES = {
    "RKD",
    "batch norm of uneven parts",  # which are other parts in one process
    "DIST",
    "MLKD",
    "SimilarityPreserving",
    "ReviewKD",
}  # they compare samples, or see parts alone
DISCRETE = {"quantize.EntropyConstrained"}  # weights jump from one code to the next
FEW = ["prune.Weights", "distill.Student", "uneven", "weighted", "batch norm", "relabelled", "augmented", "Hint"]
RECIPE = """
schema = 1
seed = 5
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = { epochs = 4, batch_size = 32, lr = 3e-3, precision = "float32" }
[[step]]
use = "prune.Weights"
sparsity = 0.6
schedule = "cubic"
train = { epochs = 4, batch_size = 32, lr = 1e-3, precision = "float32" }
"""


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str, str]]:
    """(exit status, standard output, standard error) of all processes."""
    found = []
    for process in processes:
        out, error = process.communicate(timeout=seconds)
        found.append((process.returncode, out, error))
    return found


def compare_with_one_process(names: Sequence[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for status, _, error in ended(in_processes([SCRIPT, str(folder), *names]), 500):
        assert status == 0, error
    two = torch.load(folder / "found.pt")
    one = all_trained(names, task_of_digits(), folder / "one")
    for name in names:
        assert one[name].keys() == two[name].keys()
        for key, value in one[name].items():
            if name in OF_WHOLE_BATCHES | DISCRETE:
                assert two[name][key].isfinite().all()
            else:
                torch.testing.assert_close(two[name][key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Gradual masks, a student, uneven parts, class weights, common batch norms, the teacher's cache for targets and views."""
    compare_with_one_process(FEW, tmp_path)


@pytest.mark.slow
def test_every_step_term_and_setting_trains_in_two_processes_as_in_one(tmp_path: Path) -> None:
    compare_with_one_process([*STEPS, *TRAININGS, *TERM_NAMES], tmp_path)


def run_of(recipe: Path, out: Path, *options: str) -> list[str]:
    return ["-m", "mirabelle", "run", str(recipe), "--out", str(out), "--quiet", *options]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes, undisturbed."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "recipe.toml").write_text(RECIPE)
    statuses = ended(in_processes(run_of(folder / "recipe.toml", folder / "out")))
    assert [status for status, _, _ in statuses] == [0, 0], statuses
    assert statuses[1][1:] == ("", "")
    assert "report:" in statuses[0][1]
    return folder / "out"


SHIPPED = ("model.safetensors", "model.onnx", "architecture.json")


def same_files(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SHIPPED)


def killed(recipe: Path, out: Path, seconds: float, victims: Sequence[int]) -> list[tuple[int, str, str]]:
    """Start a run in two processes, and kill some of them after a while from the first event on."""
    processes = in_processes(run_of(recipe, out))
    begin = time.monotonic()
    while not any(event["event"] == "begin" for event in read_events(out)) and time.monotonic() - begin < 60:
        time.sleep(0.02)
    time.sleep(seconds)
    for rank in victims:
        processes[rank].send_signal(signal.SIGKILL)
    return ended(processes)


def test_a_process_that_dies_ends_the_job_with_one_line_and_the_run_goes_on_to_the_same_bits(
    reference: Path, tmp_path: Path
) -> None:
    recipe, out = reference / "recipe.toml", tmp_path / "out"
    (status, _, error), _ = killed(recipe, out, 0.3, [1])
    if status:  # it may have ended before
        assert status == 3
        assert error.startswith("error[E204]: one of the 2 processes has ended\nhelp: run the same command again")
        assert len(error.splitlines()) == 2
    assert [code for code, _, _ in ended(in_processes(run_of(recipe, out)))] == [0, 0]
    assert same_files(out, reference)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(reference: Path, tmp_path: Path) -> None:
    recipe, out = reference / "recipe.toml", tmp_path / "out"
    killed(recipe, out, 0.3, [0, 1])
    done = subprocess.run([sys.executable, *run_of(recipe, out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads((folder / "report.json").read_text())["end"]["metric"]["value"] for folder in (out, reference)]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.03)


@pytest.mark.slow
def test_runs_of_two_processes_that_are_killed_anywhere_end_with_the_same_bits(reference: Path, tmp_path: Path) -> None:
    draws = random.Random(24)
    for number in range(10):
        out = tmp_path / str(number)
        for _ in range(3):
            killed(reference / "recipe.toml", out, draws.uniform(0, 4), draws.choice([[0], [1], [0, 1]]))
        assert [code for code, _, _ in ended(in_processes(run_of(reference / "recipe.toml", out)))] == [0, 0]
        assert same_files(out, reference), number


def runs_of_different_recipes(folder: Path, first: str, second: str) -> list[subprocess.Popen[str]]:
    """Two processes of one job, each with a recipe of its own."""
    for rank, text in enumerate((first, second)):
        (folder / f"{rank}.toml").write_text(text)
    (folder / "start.py").write_text(
        "import os, sys\nfrom mirabelle.cli.main import run\n"
        "sys.exit(run(['run', f'{sys.argv[1]}/{os.environ[\"RANK\"]}.toml', '--out', f'{sys.argv[1]}/out']))\n"
    )
    return in_processes([str(folder / "start.py"), str(folder)])


@pytest.mark.slow
def test_processes_with_different_recipes_are_refused(tmp_path: Path) -> None:
    (status, _, error), (other_status, _, other) = ended(
        runs_of_different_recipes(tmp_path, RECIPE, RECIPE.replace("seed = 5", "seed = 6"))
    )
    assert (status, other_status) == (2, 2)
    assert "error[E111]: process 1 has another recipe, model or data than the first: seed: 5 in the first, 6 here" in error
    assert other == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_wrong_with_one_process_alone_is_told_with_its_number(tmp_path: Path) -> None:
    first, second = runs_of_different_recipes(tmp_path, RECIPE, RECIPE.replace("digits_mlp", "digits_mlq"))
    _, error = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert error.startswith("process 1: error[E120]: ")


@pytest.mark.slow
def test_a_model_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "local.py"
    script.write_text(
        "import sys, torch, mirabelle\nfrom torch import nn\nfrom mirabelle import prune\n"
        "def made():\n    class Net(nn.Linear):\n        pass\n    return Net(4, 2)\n"
        "x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))\n"
        "task = mirabelle.Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))\n"
        "torch.manual_seed(0)\n"
        "step = prune.Weights(sparsity=0.5, train=mirabelle.Training(epochs=1))\n"
        "mirabelle.compress(made(), task, [step], out=sys.argv[1])\n"
    )
    (status, _, error), (_, _, other) = ended(in_processes([str(script), str(tmp_path / "out")]))
    assert status == 1
    assert "error[E121]: the model or a setting cannot be sent to the other processes" in error
    assert "LedElsewhereError" in other


@pytest.mark.slow
def test_every_process_gets_the_result_of_compress(tmp_path: Path) -> None:
    script = tmp_path / "all.py"
    script.write_text(
        "import sys, torch, mirabelle\nfrom torch import nn\nfrom mirabelle import prune\n"
        "x = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))\n"
        "task = mirabelle.Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))\n"
        "torch.manual_seed(0)\n"
        "found = mirabelle.compress(nn.Linear(4, 2), task, [prune.Weights(sparsity=0.5)], out=sys.argv[1])\n"
        "print(found.profile.metric.value, found.model.weight.tolist())\n"
    )
    (status, out, error), (other_status, other, _) = ended(in_processes([str(script), str(tmp_path / "out")]))
    assert (status, other_status) == (0, 0), error
    assert out == other
    assert "[" in out


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch(1, 4, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 1, 2)),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            Launch(5, 8, 1, 4),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, without srun
    ],
)
def test_the_place_of_a_process(variables: dict[str, str], place: Launch | None) -> None:
    assert launched(variables) == place


def test_a_place_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r'E100.*RANK must be a whole number; it is "one"'):
        launched({"RANK": "one", "WORLD_SIZE": "2"})


def test_jobs_of_slurm_meet_at_their_first_machine() -> None:
    job = {"SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "1234567"}
    found = meeting_point(job)
    assert found["MASTER_PORT"] != meeting_point({**job, "SLURM_STEP_ID": "1"})["MASTER_PORT"]
    assert found == {"MASTER_ADDR": "gpu07", "MASTER_PORT": str(20_000 + 1234567 % 20_000)}
    assert meeting_point({"MASTER_ADDR": "here", "MASTER_PORT": "1"}) == {"MASTER_ADDR": "here", "MASTER_PORT": "1"}
    assert first_host("node-1,node-2") == "node-1"


def test_each_process_of_a_machine_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "devices_present", lambda: ["cpu", "cuda:0", "cuda:1"])
    monkeypatch.setattr(device, "launched", lambda: Launch(3, 4, 1, 2))
    assert [str(device.named_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(UserError, match=r'E111.*device is "cuda:1", and 2 processes'):
        device.named_device("cuda:1")
    monkeypatch.setattr(device, "devices_present", lambda: ["cpu", "cuda:0"])  # Slurm shows each process its own
    with monkeypatch.context() as slurm:
        slurm.setenv("SLURM_STEP_NUM_TASKS", "4")
        assert str(device.named_device("auto")) == "cuda:0"
    monkeypatch.setattr(device, "devices_present", lambda: ["cpu", "cuda:0", "cuda:1"])
    monkeypatch.setattr(device, "launched", lambda: Launch(2, 3, 2, 3))
    with pytest.raises(UserError, match=r'E122.*3 processes on this machine need a device each; "cuda:2" is not there'):
        device.named_device("cuda")


def test_other_commands_are_done_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not is_first()
    assert main.run(["doctor"]) == 0
    assert main.run(["init", "run"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "x")
    assert main.run(["doctor"]) == 2


@pytest.mark.slow
def test_an_interruption_of_the_first_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(RECIPE.replace("epochs = 4", "epochs = 400"))
    processes = in_processes(run_of(tmp_path / "long.toml", tmp_path / "out"))
    while not any(event["event"] == "epoch" for event in read_events(tmp_path / "out")) and processes[0].poll() is None:
        time.sleep(0.05)
    processes[0].send_signal(signal.SIGTERM)
    (status, _, error), (other_status, _, other) = ended(processes, 30)
    assert (status, other_status) == (143, 3)
    assert error == "terminated; run the same command again to continue from the last checkpoint\n"
    assert other == ""


def test_terms_that_remember_samples_need_a_single_process() -> None:
    with pytest.raises(UserError, match=r"E111.*CRD remembers every sample, and each of 2 processes sees a part"):
        check_terms_of_processes(1.0 * CRD(), 2)
    check_terms_of_processes(1.0 * CRD(), 1)
