"""`mirabelle report`: shows the results of a finished run, or the progress of an unfinished one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import json_option


@click.command("report", short_help="Show the results or the progress of a run.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the HTML page to this file instead, and nothing into FOLDER."
)
@json_option
def command(folder: Path, out: Path | None, *, as_json: bool) -> int:
    """Recreate report.html and README.md of the run in FOLDER from its report.json, and print a summary.

    For an unfinished run, print its progress.

    \b
    Example:
      mirabelle report runs/digits --out digits.html
    """
    from mirabelle.cli.arguments import output_of
    from mirabelle.cli.display import print_progress, print_report
    from mirabelle.report import progress_of, read_report, write_pages
    from mirabelle.run.lock import at_work

    path = folder / "report.json"
    if not path.exists():
        progress = progress_of(folder)
        if as_json:
            click.echo(json.dumps(progress.to_data(), indent=2))
        else:
            print_progress(progress, at_work(folder))
        return 0
    report = read_report(folder)
    page = write_pages(report, folder, page_at=output_of(out, ".html", path) if out else None)
    if as_json:
        click.echo(path.read_text("utf-8"), nl=False)
    else:
        print_report(report, page)
    return 0
