"""The process in which wandb runs: takes lines of JSON, the run first and then its rows; says when it is ready or has failed.

It is started as a file, imports nothing of mirabelle, and ends with its requests: also when the run was killed.
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

# Only what we send, no console, code, git, packages or machine; a version that lacks one of these settings does without.
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
    # Our own ends of the pipes, which wandb's service does not inherit; what wandb prints goes nowhere.
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    try:
        _serve(requests, answers)
    except Exception as error:  # noqa: BLE001 (told to the run, which warns)
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return _FAILED
    return 0


def _serve(requests: IO[str], answers: IO[str]) -> None:
    first = json.loads(requests.readline())
    import wandb

    settings = wandb.Settings(**{name: value for name, value in _SETTINGS.items() if name in wandb.Settings.model_fields})
    mode = _mode(wandb.setup(settings).settings)
    run = wandb.init(**first, resume="allow", mode=mode, settings=settings)
    known_rows = run.step  # of a run that goes on, wandb's server holds these already
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
    """What WANDB_MODE or wandb's own settings say; else "online" where an API key is configured."""
    if "WANDB_MODE" in os.environ or settings.mode != "online":
        return settings.mode
    return "online" if settings.api_key or settings.identity_token_file or _in_netrc(settings.base_url) else "offline"


def _in_netrc(url: str) -> bool:
    """Whether `wandb login` has left a key for this server."""
    named = os.environ.get("NETRC")
    places = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        return any(urlsplit(url).hostname in netrc.netrc(place).hosts for place in places if place.is_file())
    except (netrc.NetrcParseError, OSError):
        return False


def _answer(answers: IO[str], answer: Mapping[str, str]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
