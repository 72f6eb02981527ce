"""The process in which wandb runs.

It reads lines of JSON from standard input: first the settings of the run, then its rows. It writes to standard output when it
is ready or has failed. It is started as a script, imports nothing from mirabelle, and ends when its input ends, also if the run
is killed.
"""

from __future__ import annotations

import json
import netrc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

# Log only our rows: no console output, code, git state, packages or machine data. Settings unknown to this version are skipped.
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "label_disable": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": 30.0,
    "finish_timeout": 30.0,
}
_FAILED, _UNFINISHED = 1, 1


def main() -> int:
    # Private copies of the pipes, which the service of wandb does not inherit; the output of wandb itself is discarded.
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        _serve(requests, answers)
    except Exception as error:  # noqa: BLE001 (reported to the run, which prints a warning)
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return _FAILED
    return 0


def _serve(requests: IO[str], answers: IO[str]) -> None:
    first = json.loads(requests.readline())
    import wandb

    settings = wandb.Settings(**{name: value for name, value in _SETTINGS.items() if name in wandb.Settings.model_fields})
    mode = _mode(wandb.setup(settings).settings)
    run = wandb.init(**first, resume="allow", mode=mode, settings=settings)
    known_rows = run.step  # rows that the wandb server has already, if the run is resumed
    _answer(answers, {"ready": mode})
    groups: set[str] = set()
    status = _UNFINISHED
    for request in map(json.loads, requests):
        if "finish" in request:
            status = request["finish"]
            break
        group = request["group"]
        if group not in groups:
            groups.add(group)
            run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        if request["index"] >= known_rows:
            run.log({**request["scalars"], f"{group}/step": request["position"]}, step=request["index"], commit=True)
    run.finish(exit_code=status)
    wandb.teardown()


def _mode(settings: Any) -> Any:
    """The mode set by WANDB_MODE or the settings of wandb; otherwise "online" if an API key is configured, else "offline"."""
    if "WANDB_MODE" in os.environ or settings.mode != "online":
        return settings.mode
    return "online" if settings.api_key or settings.identity_token_file or _in_netrc(settings.base_url) else "offline"


def _in_netrc(url: str) -> bool:
    """Whether `wandb login` has stored a key for this server in a .netrc file."""
    configured = os.environ.get("NETRC")
    paths = [Path(configured).expanduser()] if configured else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        return any(urlsplit(url).hostname in netrc.netrc(path).hosts for path in paths if path.is_file())
    except (netrc.NetrcParseError, OSError):
        return False


def _answer(answers: IO[str], answer: Mapping[str, str]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
