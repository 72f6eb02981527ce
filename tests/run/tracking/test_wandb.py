"""wandb without a network: its file holds the history; its processes go with the run; whatever it does, the run goes on."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import mirabelle.run.tracking.wandb as room
from mirabelle.run.tracking import Tracker

if TYPE_CHECKING:
    from conftest import Small

pytestmark = pytest.mark.usefixtures("bare_wandb")


@pytest.fixture
def tracker(small: Small) -> Tracker:
    return small.tracker("wandb")


def records(file: Path) -> list:
    """The records of a .wandb file: seven bytes of header, then LevelDB's log of blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, found, parts = file.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(folder: Path) -> list[dict[str, float]]:
    """The rows of the latest offline run."""
    latest = max((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [
        {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(latest)
        if record.HasField("history")
    ]


def below() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]


def points(rows: list[dict[str, float]], name: str, axis: str) -> list[tuple[float, float]]:
    return [(row[axis], row[name]) for row in rows if name in row]


def test_an_offline_run_holds_the_same_names_steps_and_values(
    small: Small, tracker: Tracker, capfd: pytest.CaptureFixture
) -> None:
    before = below()
    small.happen(tracker, *small.events)
    assert len(below()) > len(before)
    tracker.close()
    assert below() == before
    rows = history(small.folder)
    names = {name for row in rows for name in row if not name.startswith("_")}
    assert {name for name in names if not name.endswith("/step")} == small.names
    losses = points(rows, "1-prune.weights/train/loss", "1-prune.weights/step")
    assert losses == [(10 * number, 1 / number) for number in range(1, 6)]
    assert points(rows, "trail/size_bytes/packed", "trail/step") == [(1, 1000)]
    assert points(rows, "goal/met", "goal/step") == [(0, 0)]
    assert small.warnings == []
    assert capfd.readouterr() == ("", "")


def test_the_run_is_named_for_its_folder_and_holds_the_recipe(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, small.epoch(1))
    tracker.close()
    (file,) = (small.folder / "wandb").glob("offline-run-*/*.wandb")
    (run,) = (record.run for record in records(file) if record.HasField("run"))
    assert (run.project, run.display_name) == ("mirabelle", "small")
    config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    assert config == {"schema": 1, "model": {"from": "net.py:net"}, "step": [{"use": "prune.Weights"}]}


def test_a_killed_and_resumed_run_keeps_its_id_and_is_not_doubled(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, *small.events[:5])
    tracker.close()
    resumed = small.tracker("wandb")
    small.happen(resumed, *small.events[3:])
    resumed.close()
    files = list((small.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    rates = points(history(small.folder), "1-prune.weights/lr", "1-prune.weights/step")
    assert [step for step, _ in rates] == [10, 20, 30, 40, 50]
    assert small.warnings == []


def test_a_run_that_is_killed_leaves_its_history_and_no_process(small: Small) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from conftest import epoch
from mirabelle.run.tracking import tracker_for
tracker = tracker_for("wandb", Path({str(small.folder)!r}), print)
for number in range(1, 4):
    tracker(epoch(number))
print("told", flush=True)
time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"told\n"
    processes = psutil.Process(run.pid).children(recursive=True)
    assert processes
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    _, left = psutil.wait_procs(processes, timeout=20)
    assert left == []
    assert len(history(small.folder)) == 3


def fake_wandb(place: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wandb's process imports in place of wandb."""
    (place / "fake" / "wandb").mkdir(parents=True)
    (place / "fake" / "wandb" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place / "fake"), *filter(None, [os.environ.get("PYTHONPATH")])]))


_FAKE = """
class Settings:
    model_fields = {{}}
    mode, api_key, identity_token_file, base_url = "online", None, None, "https://example.org"
class Run:
    step = 0
    def define_metric(self, *names, **settings): {define}
    def log(self, *rows, **settings): {log}
    def finish(self, **settings): {finish}
setup = lambda settings: type("Setup", (), {{"settings": Settings()}})
def init(**settings): {init}; return Run()
def teardown(): {teardown}
"""
_FAILURES = {
    "on import": "raise ImportError('a library is missing')",
    "by a crash": "import os; os.abort()",
    "in init": _FAKE.format(define="pass", log="pass", finish="pass", init="raise OSError('no\\nnetwork')", teardown="pass"),
    "in define_metric": _FAKE.format(define="raise ValueError()", log="pass", finish="pass", init="pass", teardown="pass"),
    "in log": _FAKE.format(define="pass", log="raise RuntimeError('broken')", finish="pass", init="pass", teardown="pass"),
    "in finish": _FAKE.format(define="pass", log="pass", finish="raise KeyError('x')", init="pass", teardown="pass"),
    "by sys.exit": _FAKE.format(define="pass", log="pass", finish="pass", init="pass", teardown="raise SystemExit(3)"),
}


@pytest.mark.parametrize("code", _FAILURES.values(), ids=_FAILURES)
def test_a_wandb_that_fails_leaves_the_run_whole_with_one_warning(
    small: Small, tracker: Tracker, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(tmp_path, code, monkeypatch)
    before = below()
    small.happen(tracker, *small.events)
    tracker.close()
    assert len(small.warnings) == 1
    assert small.warnings[0].startswith("tracking with wandb is turned off, the run continues: ")
    assert "\n" not in small.warnings[0]
    assert below() == before


def test_a_wandb_that_hangs_is_let_go(small: Small, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(tmp_path, "import time; time.sleep(100)", monkeypatch)
    monkeypatch.setattr(room, "_BEGIN_SECONDS", 0.2)
    before = below()
    small.happen(tracker, *small.events)
    tracker.close()
    assert small.warnings == [
        "tracking with wandb is turned off, the run continues: TimeoutError: wandb did not start within 0.2 s"
    ]
    assert below() == before


def test_a_wandb_that_stops_taking_rows_is_let_go(
    small: Small, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "__import__('time').sleep(100)"
    fake_wandb(tmp_path, _FAKE.format(define="pass", log=hangs, finish="pass", init="pass", teardown="pass"), monkeypatch)
    monkeypatch.setattr(room, "_WRITE_SECONDS", 0.2)
    small.happen(tracker, *(small.epoch(number) for number in range(1, 1000)))  # more than a pipe holds
    tracker.close()
    assert len(small.warnings) == 1
    assert "wandb has read nothing for 0.2 s" in small.warnings[0]


def test_a_wandb_that_does_not_end_is_let_go_with_what_to_do(
    small: Small, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "__import__('time').sleep(100)"
    fake_wandb(tmp_path, _FAKE.format(define="pass", log="pass", finish=hangs, init="pass", teardown="pass"), monkeypatch)
    monkeypatch.setattr(room, "_CLOSE_SECONDS", 0.2)
    small.happen(tracker, *small.events)
    begin = time.monotonic()
    tracker.close()
    assert time.monotonic() - begin < 10
    assert len(small.warnings) == 1
    assert "not everything was sent" in small.warnings[0]
    assert "wandb sync" in small.warnings[0]


@pytest.mark.parametrize(
    ("variables", "login", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "online"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "disabled"),
        ({}, "machine wandb.example.org login user password secret", "online"),
        ({}, "machine elsewhere.example.org login user password secret", "offline"),
        ({}, "machine", "offline"),
    ],
)
def test_nothing_is_sent_unless_a_key_is_configured_or_wandb_is_told_to(
    variables: dict[str, str], login: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    from mirabelle.run.tracking.wandb_process import _mode

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path(os.environ["NETRC"]).write_text(login)
    settings = wandb.Settings(base_url="https://wandb.example.org")
    settings.update_from_env_vars(os.environ)
    assert _mode(settings) == mode
