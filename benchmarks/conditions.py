"""What every result carries: machine, versions, commit, command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mirabelle.run.environment import environment

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]


def conditions() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    return {"command": f"python {Path(sys.argv[0]).name}", "commit": commit.stdout.strip(), **environment()}


def write(name: str, numbers: dict[str, Any], page: str) -> None:
    """results/<name>.json with the numbers and their conditions, results/<name>.md for people."""
    RESULTS.mkdir(exist_ok=True)
    where = conditions()
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    footer = (
        f"\n`{where['command']}` at commit {where['commit']}; {where['processor']}, {where['cores']} cores, {where['threads']} threads, "
        f"{where['cpu_capability']}; {versions}.\n"
    )
    (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": where, **numbers}, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(page + footer)
    print(page)
