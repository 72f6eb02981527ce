"""`mirabelle report`: what a run found out, told again; or how far it has come."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import json_option


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the page to this file, and nothing into FOLDER.")
@json_option
def command(folder: Path, out: Path | None, *, as_json: bool) -> int:
    """Write report.html and README.md of the run in FOLDER again, from its report.json, and print what they say.

    Of a run that has not ended it tells how far it has come.

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
        found = progress_of(folder)
        if as_json:
            click.echo(json.dumps(found.to_data(), indent=2))
        else:
            print_progress(found, at_work(folder))
        return 0
    report = read_report(folder)
    page = write_pages(report, folder, page_at=output_of(out, ".html", path) if out else None)
    if as_json:
        click.echo(path.read_text("utf-8"), nl=False)
    else:
        print_report(report, page)
    return 0
