"""Trail and profiles -> report.json, report.html and the model card."""

from pathlib import Path

from mirabelle import files
from mirabelle.report.document import Report
from mirabelle.report.page import card, page

__all__ = ["Report", "write_report"]


def write_report(report: Report, folder: Path) -> None:
    """Write README.md, report.html and, last, report.json: where it stands, the run has ended."""
    files.write(folder / "README.md", card(report).encode())
    files.write(folder / "report.html", page(report).encode())
    files.write_json(folder / "report.json", report.to_data())
