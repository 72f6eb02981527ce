"""The results of a run as report.json, report.html and a model card (README.md), and the progress of an unfinished run."""

from pathlib import Path

from mirabelle.report.document import Report, read_report
from mirabelle.report.findings import ConstantAnswer, Difference, Significance
from mirabelle.report.learning_curves import Curve, curves, left_by_steps, speed_of_steps
from mirabelle.report.page import write_pages
from mirabelle.report.progress import RunProgress, progress_of
from mirabelle.run import files
from mirabelle.run.journal import read_events

__all__ = [
    "ConstantAnswer",
    "Curve",
    "Difference",
    "Report",
    "RunProgress",
    "Significance",
    "curves",
    "left_by_steps",
    "progress_of",
    "read_events",
    "read_report",
    "speed_of_steps",
    "write_pages",
    "write_report",
]


def write_report(report: Report, folder: Path) -> None:
    """Write README.md, report.html and report.json into `folder`; report.json comes last and marks the run as finished."""
    data = report.to_data()
    write_pages(Report.from_data(data), folder)
    files.write_json(folder / "report.json", data)
