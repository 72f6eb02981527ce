"""Studies of Optuna: several workers, a killed one, the same study again, and databases that are not there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirabelle.errors import UserError
from mirabelle.planning.trials import Trials, TrialSettings, _database

optuna = pytest.importorskip("optuna")

WORKER = """
import sys, tempfile, torch
from torch import nn
import mirabelle
from mirabelle.planning import TrialSettings

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
centers, targets = 2.0 * torch.randn(3, 8, generator=draw), torch.arange(600) % 3
inputs = centers[targets] + torch.randn(600, 8, generator=draw)
parts = {"train": (0, 300), "validation": (300, 450), "test": (450, 600)}
task = mirabelle.Task(**{name: (inputs[a:b], targets[a:b]) for name, (a, b) in parts.items()})
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 3))
training = mirabelle.Training(epochs=6, batch_size=32, lr=3e-3, precision="float32")
model = mirabelle.training.fit(model, task, training, mirabelle.Run(tempfile.mkdtemp())).eval()
out, storage, trials = sys.argv[1:4]
settings = TrialSettings(int(trials), storage or None, beat=1, late=3)
goal = {"size": "9%", "max_drop": "20pt", "latency": "any"}
found = mirabelle.auto(model, task, goal, out, trials=settings, tell=lambda line: print(line, flush=True))
print("met", found.met)
"""


def worker(place: Path, storage: str, trials: int) -> subprocess.Popen[str]:
    (place / "worker.py").write_text(WORKER)
    command = [sys.executable, "worker.py", str(place / "auto"), storage, str(trials)]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the model was measured and one trial was carried out."""
    place = tmp_path_factory.mktemp("first")
    first = worker(place, "", 1)
    out, _ = first.communicate(timeout=240)
    assert first.returncode == 0, out
    assert "met True" in out
    return place


@contextmanager
def opened(url: str) -> Iterator[Any]:
    storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def counted(url: str) -> list[int]:
    with opened(url) as storage:
        study = optuna.load_study(study_name="mirabelle", storage=storage)
        return [one.user_attrs["slot"] for one in study.get_trials() if one.state.name in ("COMPLETE", "PRUNED")]


def two_workers(measured: Path, place: Path, url: str, trials: int) -> None:
    """Two workers, of which one is killed in the middle of a trial; every slot is counted, and none twice."""
    shutil.copytree(measured / "auto", place / "auto", ignore=shutil.ignore_patterns("trials", "attempt-1*", "best.json"))
    one, other = worker(place, url, trials), worker(place, url, trials)
    assert one.stdout is not None
    for line in one.stdout:
        if line.startswith("trial "):
            break
    time.sleep(0.3)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    out, _ = other.communicate(timeout=900)
    assert other.returncode == 0, out
    assert sorted(counted(url)) == list(range(trials))
    assert f"best of {trials} trials" in out


@pytest.mark.slow
def test_forty_trials_of_two_workers_on_sqlite(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    two_workers(measured, tmp_path, f"sqlite:///{tmp_path}/db/trials.db", 40)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of our own on a free port, run by a user without privileges."""
    pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) if Path("/usr/lib/postgresql").is_dir() else []
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    folder = programs[-1].parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = Path(f"/tmp/mirabelle-pg-{os.getpid()}")  # a socket's path is short, and all above it must be open to the user
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if as_user and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
    data.mkdir()
    if as_user:
        shutil.chown(data, "nobody")
    environment = {"PATH": os.environ["PATH"], "HOME": str(data), "LC_ALL": "C.UTF-8"}

    def run(*command: str) -> None:
        done = subprocess.run([*as_user, *command], cwd=data, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    try:
        run(str(folder / "initdb"), "-D", str(data / "db"), "-U", "mirabelle", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
        run(str(folder / "pg_ctl"), "-D", str(data / "db"), "-o", options, "-l", str(data / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://mirabelle@127.0.0.1:{port}/postgres"
        finally:
            run(str(folder / "pg_ctl"), "-D", str(data / "db"), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(data, ignore_errors=True)


def test_a_study_on_postgresql(postgresql: str, measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "auto", tmp_path / "auto", ignore=shutil.ignore_patterns("trials", "attempt-1*", "best.json"))
    out, _ = worker(tmp_path, postgresql, 2).communicate(timeout=240)
    assert "best of 2 trials" in out
    assert counted(postgresql) == [0, 1]


@pytest.mark.slow
def test_forty_trials_of_two_workers_on_postgresql(postgresql: str, measured: Path, tmp_path: Path) -> None:
    two_workers(measured, tmp_path, postgresql, 40)


def test_a_database_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/none"
    with pytest.raises(UserError, match="E130") as caught, _database(url):
        optuna.storages.RDBStorage(url)
    assert f"127.0.0.1:{port}" in caught.value.message
    assert "secret" not in str(caught.value)


def bare(out: Path, identity: str = "one") -> Trials:
    """A worker that has nothing to carry out."""
    known: dict[str, Any] = dict.fromkeys(("model", "task", "planner", "plan", "training", "tell"))
    return Trials(out=out, settings=TrialSettings(3), identity=identity, seed=0, **known)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_of_another_goal_is_refused(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/trials.db") as storage:
        bare(tmp_path)._opened(optuna, storage)
        bare(tmp_path)._opened(optuna, storage)
        with pytest.raises(UserError, match=r"E150.*of another model, data or goal"):
            bare(tmp_path, "another")._opened(optuna, storage)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_slot_that_two_workers_queue_at_once_is_tried_once(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/trials.db") as storage:
        worker = bare(tmp_path)
        study = worker._opened(optuna, storage)
        for slot in (2, 2):  # both workers saw it free
            study.enqueue_trial({}, user_attrs={"slot": slot})
        first, second = study.ask(), study.ask()
        assert not worker._is_of_another(first, 2)
        assert worker._is_of_another(second, 2)
        study.tell(first, state=optuna.trial.TrialState.FAIL)  # its worker was killed: the other may take the slot
        assert not worker._is_of_another(second, 2)
        study.tell(second, 0.5)
        study.enqueue_trial({}, user_attrs={"slot": 2})
        assert worker._is_of_another(study.ask(), 2)
