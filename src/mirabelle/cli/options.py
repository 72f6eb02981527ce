"""Options that several commands share, so that each has one name, one meaning and one help text."""

from __future__ import annotations

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on standard error.")
data_option = click.option("--data", help='A built-in set, a folder of class folders, a .csv or .npz file, or "file.py:function".')
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where data sets lie; by default $MIRABELLE_DATA."
)
