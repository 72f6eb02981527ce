"""Each source through each step, whole and killed once: the table "Sources, steps and goals" of docs/frameworks.md.

python benchmarks/sources_and_steps.py          runs the cells that results/sources_and_steps.json lacks, and writes the table
python benchmarks/sources_and_steps.py --again  runs all of them
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from runs_of_sources import GOALS, SOURCES, STEPS, outcome_of  # noqa: E402

RESULTS, PAGE = Path(__file__).with_name("results") / "sources_and_steps.json", ROOT / "docs" / "frameworks.md"
HEADING = "### Sources, steps and goals"


def main() -> None:
    warnings.simplefilter("ignore")
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() and "--again" not in sys.argv else {}
    cells = [(source, step, "") for step in STEPS for source in SOURCES]
    cells += [(source, "quantize.Dynamic", goal) for goal in GOALS for source in SOURCES]
    with tempfile.TemporaryDirectory() as folder:
        for source, step, goal in cells:
            key = f"{source} | {goal or step}"
            if key not in found:
                begin = time.process_time()
                outcome = outcome_of(Path(folder), source, step, goal)
                found[key] = f"differs: {', '.join(outcome.differs)}" if outcome.differs else outcome.said
                print(f"{time.process_time() - begin:5.1f} s", key, found[key], flush=True)
                RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_page(found)


def write_page(found: dict[str, str]) -> None:
    """Replace the section of the page."""
    text = re.sub(rf"(?ms)^{HEADING}$.*?(?=^#|\Z)", "", PAGE.read_text("utf-8"))
    before, heading, after = text.partition("\n## Metrics and losses")
    PAGE.write_text(f"{before.rstrip()}\n\n{section(found)}\n{heading}{after}", "utf-8")


def section(found: dict[str, str]) -> str:
    refusals = sorted({said for said in found.values() if said not in ("ok", "")})
    numbers = {said: position for position, said in enumerate(refusals, start=1)}
    rows = [[row, *(found.get(f"{source} | {row}", "") for source in SOURCES)] for row in (*STEPS, *GOALS)]
    lines = [
        HEADING,
        "",
        f"{sum(said == 'ok' for said in found.values())} of {len(found)} runs end as asked; the others are refused in one line "
        "(numbers below the table). Each run",
        "was also gone on with from its folder as a kill in the middle of its events leaves it: model, packed file and weights have the",
        "same bytes as those of the run that was not killed. The last rows are goals, for a run of `quantize.Dynamic`. The command is `python benchmarks/sources_and_steps.py`.",
        "",
        f"| | {' | '.join(SOURCES)} |",
        f"|---|{'---|' * len(SOURCES)}",
        *(f"| `{row}` | {' | '.join(_shown(said, numbers) for said in cells)} |" for row, *cells in rows),
        "",
        *(f"{number}. {said}" for said, number in numbers.items()),
    ]
    return "\n".join(lines).rstrip()


def _shown(said: str, numbers: dict[str, int]) -> str:
    return {"ok": "yes", "": "not run"}.get(said) or f"refused ({numbers[said]})"


if __name__ == "__main__":
    main()
