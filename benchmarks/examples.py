"""The examples, run as a person would, and their tables before and after, kept in examples/README.md.

    python benchmarks/examples.py --data-dir DATA [NAME ...]

Without names all of them. A run that is there is gone on with, so that an interrupted one costs nothing twice; what it took is the
sum of its steps. Text stands in examples/README.md around the marks that this script fills.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from conditions import ROOT, conditions
from mirabelle.report.document import Report
from mirabelle.report.table import conditions as measured_under
from mirabelle.report.table import rows
from mirabelle.report.verdict import verdict
from mirabelle.run import files

PAGE = ROOT / "examples" / "README.md"


def section(name: str, folder: Path) -> str:
    """What a finished run says: the verdict, whether the goal is met, and the table."""
    report = Report.from_data(files.read_json(folder / "report.json"))
    minutes = sum(entry.seconds for entry in report.trail) / 60
    said = verdict(report.start, report.end, report.comparison)
    missed = ", ".join(f"{one.name} is {one.value:.4g}, asked {one.limit:.4g}" for one in report.goal.shortfalls)
    lines = [
        f"`mirabelle run examples/{name}.toml`, {minutes:.1f} minutes. {said[0].upper()}{said[1:]}",
        f"Goal {'met' if not missed else f'not met: {missed}'}.",
        "",
        "| | before | after | reduction |",
        "|---|--:|--:|--:|",
        *(f"| {' | '.join(row)} |" for row in rows(report)),
        "",
        measured_under(report.end, conditions()["processor"]),
    ]
    return "\n".join(lines) + "\n"


def fill(name: str, text: str) -> None:
    page = PAGE.read_text("utf-8")
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not mark or not end:
        raise SystemExit(f"{PAGE} has no place for {name}: <!-- {name} --> and <!-- end of {name} -->")
    PAGE.write_text(f"{before}{mark}\n{text}\n{end}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    page = PAGE.read_text("utf-8")
    known = [path.stem for path in sorted(PAGE.parent.glob("*.toml")) if f"<!-- {path.stem} -->" in page]
    for name in options.names or known:
        folder = ROOT / "runs" / "examples" / name
        command = [str(Path(sys.executable).parent / "mirabelle"), "run", str(PAGE.parent / f"{name}.toml")]
        command += ["--data-dir", str(options.data_dir), "--out", str(folder)]
        code = subprocess.run(command, check=False).returncode
        if not (folder / "report.json").is_file():
            raise SystemExit(f"{name} ended with {code} and no report")
        fill(name, section(name, folder))


if __name__ == "__main__":
    main()
