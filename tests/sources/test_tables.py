"""Tables as people have them: words, missing values, dates, and files that are written in other habits."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest
import torch

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.task.preprocessing import Table, from_json, to_json

ROWS = 60


def task(path: Path, **arguments: object) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


def table(path: Path, first: str, row: str, *, encoding: str = "utf-8", rows: int = ROWS, **arguments: object) -> Table:
    """The preprocessing of a file whose rows are a pattern with k, the number of the row."""
    lines = [first, *(eval(f"f{row!r}", {"k": k}) for k in range(rows))]
    path.write_text("\n".join(line for line in lines if line) + "\n", encoding)
    found = task(path, **arguments).preprocessing
    assert isinstance(found, Table)
    assert from_json(to_json(found)) == found
    return found


def test_words_become_a_feature_each_and_one_for_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("color,size,y\n" + "".join(f"{('blue', 'red')[k % 2]},{k % 7},{k % 2}\n" for k in range(ROWS)))
    found = task(path)
    assert isinstance(found.preprocessing, Table)
    assert found.preprocessing.features == ("color=blue", "color=red", "color=other", "size")
    assert found.preprocessing.sentence == "The network takes 4 features: color (3), size."
    assert torch.equal(found.test.inputs[:, :2], torch.nn.functional.one_hot(found.test.targets, 2).float())
    assert not found.test.inputs[:, 2].any()
    (tmp_path / "new.csv").write_text("extra,size,color\nx,3,red\ny,4,mauve\n")
    (_, first), (_, second) = found.preprocessing.samples(tmp_path / "new.csv")
    assert first.inputs[:3].tolist() == [0, 1, 0]
    assert second.inputs[:3].tolist() == [0, 0, 1]
    assert first.notes == ()
    assert second.notes == (
        f'{tmp_path / "new.csv"}, line 3, column "color": "mauve" is none of the words that were learned; it counts as other',
    )


def test_everything_is_learned_from_the_training_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [[f"{k}" if k % 5 else "", ("a", "b")[k % 2], f"{k % 2}"] for k in range(200)]

    def written() -> Task:
        path.write_text("x,w,y\n" + "\n".join(map(",".join, rows)))
        return task(path)

    before = written()
    assert isinstance(before.preprocessing, Table)
    mean, deviation = before.preprocessing.mean[0], before.preprocessing.deviation[0]
    assert abs(float(before.train.inputs[:, 0].mean())) < 1e-4
    trained = {round(row[0] * deviation + mean) for row in before.train.inputs.tolist() if not row[1]}
    for k, row in enumerate(rows):
        if row[0] and k not in trained:
            row[:2] = ["10000", "z"]
    after = written()
    assert after.preprocessing == before.preprocessing
    assert torch.equal(after.train.inputs, before.train.inputs)
    assert after.test.inputs[:, 0].max() > 50


def test_missing_numbers_are_the_median_and_a_flag(tmp_path: Path) -> None:
    gaps = ("", "NA", "n/a", "?", "NaN", "null", "None")
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{gaps[k // 10] if k % 10 == 0 else k % 10},{k % 2}\n" for k in range(70)))
    found = task(path)
    assert isinstance(found.preprocessing, Table)
    assert found.preprocessing.features == ("x", "x missing")
    assert found.preprocessing.fill == {"x": 5.0}
    inputs = torch.cat([part.inputs for part in (found.train, found.validation, found.test)])
    assert int(inputs[:, 1].sum()) == 7
    middle = (5 - found.preprocessing.mean[0]) / found.preprocessing.deviation[0]
    torch.testing.assert_close(inputs[inputs[:, 1] == 1, 0], torch.full((7,), middle))
    assert set(inputs[:, 1].tolist()) == {0.0, 1.0}


def test_a_cell_without_value_where_training_had_none_is_refused(tmp_path: Path) -> None:
    found = table(tmp_path / "t.csv", "x,y", "{k / 2},{k % 2}")
    (tmp_path / "new.csv").write_text("x\n1.5\nNA\n")
    with pytest.raises(UserError, match=r'(?s)E131.*new\.csv, line 3, column "x": "NA" is not a finite number') as caught:
        list(found.samples(tmp_path / "new.csv"))
    assert "the training rows have a number" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "row", "arguments"),
    [
        ("a;b;y", '{k},{k % 10};"{k % 3}";{k % 2}', {}),
        ("a\tb\ty", "{k}.{k % 10}\t{k % 3}\t{k % 2}", {}),
        ("a|b|y", "{k}.{k % 10}|{k % 3}|{k % 2}", {}),
        ("a b  y", "{k}.{k % 10}   {k % 3} {k % 2} ", {}),
        ("\ufeffa,b,y", '"{k}.{k % 10}", {k % 3},"{k % 2}"', {}),
        ("sep=;\na;b;y", "{k}.{k % 10};{k % 3};{k % 2}", {}),
        ("a,b,y,", "{k}.{k % 10},{k % 3},{k % 2},", {}),
        ("a^b^y", "{k}.{k % 10}^{k % 3}^{k % 2}", {"separator": "^"}),
    ],
)
def test_all_habits_give_the_same_numbers(tmp_path: Path, header: str, row: str, arguments: dict[str, object]) -> None:
    found = table(tmp_path / "t.csv", header, row, **arguments)
    usual = table(tmp_path / "usual.csv", "a,b,y", "{k}.{k % 10},{k % 3},{k % 2}")
    assert (found.columns, found.mean, found.deviation) == (usual.columns, usual.mean, usual.deviation)


@pytest.mark.parametrize(
    ("row", "arguments", "mean"),
    [
        ('"1,{k + 100}.5";{k % 2}', {}, 1129.5),
        ("1.{k + 100},5;{k % 2}", {}, 1129.5),
        ("1 {k + 100},5;{k % 2}", {}, 1129.5),
        ("1'{k + 100}.5;{k % 2}", {}, 1129.5),
        ("1,{k + 100};{k % 2}", {"decimal": "."}, 1129.0),
        ("1,{k + 100};{k % 2}", {"decimal": ","}, 1.129),
        ("1.{k + 100};{k % 2}", {}, 1.129),
        ("{k + 100}e-2;{k % 2}", {}, 1.29),
    ],
)
def test_decimal_marks_and_groups_of_digits(tmp_path: Path, row: str, arguments: dict[str, object], mean: float) -> None:
    assert table(tmp_path / "t.csv", "a;y", row, **arguments).mean[0] == pytest.approx(mean, rel=1e-2)


def test_numbers_with_another_decimal_mark_are_no_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'(?s)E131.*line 2, column "a": "0.5" is not a finite number'):
        table(tmp_path / "t.csv", "a;y", "{k}.5;{k % 2}", decimal=",")
    with pytest.raises(UserError, match=r'(?s)E131.*line 2, column "a": "0%" is not a finite number.*write a number'):
        table(tmp_path / "t.csv", "a;y", "{k}%;{k % 2}")
    with pytest.raises(UserError, match=r'(?s)E131.*line 3, column "a": "1.5" is not a finite number'):
        table(tmp_path / "t.csv", "a;y", "{k}{',.'[k % 2]}5;{k % 2}", decimal=",")
    with pytest.raises(UserError, match=r'(?s)E131.*column "a": "\d+[,.]5" is not a finite number'):
        table(tmp_path / "t.csv", "a;y", "{k}{',.'[k % 2]}5;{k % 2}")


def test_what_can_be_read_in_two_ways_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'(?s)E131.*column "a": numbers such as "1,100" can be read.*decimal = ","'):
        table(tmp_path / "t.csv", "a;y", "1,{k + 100};{k % 2}")
    with pytest.raises(UserError, match=r'(?s)E131.*column "a": in dates such as "1/1/2020".*day_first = true'):
        table(tmp_path / "t.csv", "a;y", "{k % 12 + 1}/{k % 12 + 1}/2020;{k % 2}")
    assert table(tmp_path / "t.csv", "a;y", "{k % 12 + 1}/{k % 12 + 1}/2020;{k % 2}", day_first=False).dates == {"a": "mdy"}


@pytest.mark.parametrize(
    ("row", "order"),
    [
        ("2020-{k % 12 + 1:02}-{k % 28 + 1:02},{k % 2}", "ymd"),
        ("{k % 28 + 1}.{k % 12 + 1}.2020,{k % 2}", "dmy"),
        ("{k % 28 + 1}/{k % 12 + 1}/2020,{k % 2}", "dmy"),
        ("{k % 12 + 1}/{k % 28 + 1}/2020,{k % 2}", "mdy"),
    ],
)
def test_dates_become_days_and_parts_of_year_and_week(tmp_path: Path, row: str, order: str) -> None:
    found = table(tmp_path / "t.csv", "when,y", row)
    assert found.dates == {"when": order}
    day = {"ymd": "2020-03-04", "dmy": "4.3.2020", "mdy": "3/4/2020"}[order]
    (tmp_path / "new.csv").write_text(f"when\n{day}\n")
    ((_, sample),) = found.samples(tmp_path / "new.csv")
    days = (dt.date(2020, 3, 4) - dt.date(1970, 1, 1)).days
    expected = [
        (days - found.mean[0]) / found.deviation[0],
        *(wave(2 * np.pi * days / 365.2425) for wave in (np.sin, np.cos)),
        *(wave(2 * np.pi * 2 / 7) for wave in (np.sin, np.cos)),  # a Wednesday
    ]
    week = np.arctan2(sample.inputs[3], sample.inputs[4]) / (2 * np.pi) * 7 % 7
    assert sample.inputs[:3] == pytest.approx(expected[:3], abs=1e-4)
    assert week == pytest.approx((dt.date(2020, 3, 4) - dt.date(1970, 1, 1)).days % 7 + 3 - 7 * ((days % 7 + 3) // 7), abs=1e-4)


def test_other_encodings_and_breaks_inside_of_quotes(tmp_path: Path) -> None:
    rows = "{('grün', 'blau')[k % 2]};{k};{k % 2}"
    expected = {"Farbe": ("blau", "grün")}
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        assert table(tmp_path / "t.csv", "Farbe;Größe;y", rows, encoding=encoding).words == expected
    path = tmp_path / "t.csv"
    path.write_bytes(b"w;y\n" + "".join(f"{('é', 'è')[k % 2]};{k % 2}\n" for k in range(ROWS)).encode("cp850"))
    assert task(path, encoding="cp850").preprocessing.words == {"w": ("è", "é")}  # type: ignore[union-attr]
    found = table(path, 'w,"a\nb",y', '"{("one", "two")[k % 2]}\nline, with ""quotes""",{k},{k % 2}')
    assert found.words == {"w": ('one\nline, with "quotes"', 'two\nline, with "quotes"')}
    assert found.columns == ("w", "a\nb")


def test_a_table_without_a_header_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "german.data"
    with pytest.raises(UserError, match=r"(?s)E131.*line 1 has no names but values: A11, 0, A30.*write header = false"):
        table(path, "", "A1{k % 4 + 1} {k % 9} A3{k % 5} {k % 2 + 1} ")
    found = table(path, "", "A1{k % 4 + 1} {k % 9} A3{k % 5} {k % 2 + 1} ", header=False)
    assert found.columns == ("column_1", "column_2", "column_3")
    assert found.words["column_1"] == ("A11", "A12", "A13", "A14")
    (tmp_path / "new.data").write_text("A12 5 A30\n")
    ((_, without),) = found.samples(tmp_path / "new.data")
    (tmp_path / "new.data").write_text("A12 5 A30 1\n")
    ((_, with_target),) = found.samples(tmp_path / "new.data")
    np.testing.assert_array_equal(without.inputs, with_target.inputs)
    (tmp_path / "new.data").write_text("A12 5\n")
    with pytest.raises(UserError, match=r"(?s)E131.*has 2 columns, the training table 4 and no header"):
        list(found.samples(tmp_path / "new.data"))
    middle = table(path, "", "A1{k % 4 + 1} {k % 2} A3{k % 5}", header=False, target="column_2")
    (tmp_path / "new.data").write_text("A12 A30\n")
    assert [len(sample.inputs) for _, sample in middle.samples(tmp_path / "new.data")] == [11]
    assert table(tmp_path / "years.csv", "2019,2020,2021", "{k},{k % 7},{k % 2}", header=True).columns == ("2019", "2020")


def test_columns_that_say_nothing_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    header, rows = ",name,same,empty,number,x,y\n", (f"{k},N{k},one,,{k + 5},{k % 7},{k % 2}\n" for k in range(ROWS))
    path.write_text(header + "".join(rows))
    found = task(path)
    assert isinstance(found.preprocessing, Table)
    assert found.preprocessing.columns == ("number", "x")
    assert found.notes == (
        "Column name is left out: almost every row has a text of its own, as in names and identifiers.",
        'Column same is left out: it has one value in all training rows, "one".',
        "Column empty has no value in any row; it is left out.",
        'Column number numbers the rows. If it is only an identifier, leave it out: ignore = ["number"].',
        "The first column has no name and numbers the rows; it is left out.",
    )


def test_many_words_become_one_code(tmp_path: Path) -> None:
    row = "z{k % 100},{k % 5},{k % 2}"
    found = table(tmp_path / "t.csv", "city,x,y", row, rows=2000)
    assert found.features == ("city", "x")
    assert len(found.codes["city"]) == 100
    (tmp_path / "new.csv").write_text(f"city,x\n{found.codes['city'][9]},1\nnowhere,1\n")
    known, unknown = (sample.inputs[0] for _, sample in found.samples(tmp_path / "new.csv"))
    assert (known, unknown) == (pytest.approx(0.1), 0)
    embedded = table(tmp_path / "t.csv", "city,x,y", row, rows=2000, embed=["city"])
    known, unknown = (sample.inputs[0] for _, sample in embedded.samples(tmp_path / "new.csv"))
    assert (float(known), float(unknown)) == (1 + embedded.codes["city"].index(found.codes["city"][9]), 0)


def test_numbers_may_be_names(tmp_path: Path) -> None:
    found = table(tmp_path / "t.csv", "zip,y", "0{k % 3},{k % 2}", categories=["zip"])
    assert found.words == {"zip": ("00", "01", "02")}
    assert found.words == table(tmp_path / "t.csv", "zip,y", "0{k % 3},{k % 2}", categories=["zip"]).words


def test_further_texts_may_stand_for_missing_values(tmp_path: Path) -> None:
    row = "{'-' if k == 7 else k},{k % 2}"
    with pytest.raises(UserError, match=r'(?s)E131.*line 9, column "x": "-" is not a finite number') as caught:
        table(tmp_path / "t.csv", "x,y", row)
    assert 'list the text under missing = ["…"]' in str(caught.value)
    assert "x" in table(tmp_path / "t.csv", "x,y", row, missing=["-"]).fill


@pytest.mark.parametrize(
    ("pair", "labels"),
    [
        (("yes", "no"), ("no", "yes")),
        (("True", "False"), ("False", "True")),
        (("2", "1"), ("1", "2")),
        (("1,0", "0,0"), ("0", "1")),
    ],
)
def test_classes_may_be_words_truth_values_or_numbers(tmp_path: Path, pair: tuple[str, str], labels: tuple[str, ...]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{k};{pair[k % 2]}\n" for k in range(ROWS)))
    assert task(path).labels == labels


def test_a_missing_target_is_told_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'(?s)E131.*t\.csv, line 5, column "y": "NA" is not a target.*remove the row'):
        table(tmp_path / "t.csv", "x,y", "{k},{'NA' if k == 3 else k % 2}")


def test_a_parquet_file_keeps_its_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    days = [dt.date(2020, 1, 1) + dt.timedelta(k) for k in range(ROWS)]
    columns = {
        "number": pa.array([None if k == 5 else k * 1.5 for k in range(ROWS)], pa.float32()),
        "whole": pa.array([k % 9 for k in range(ROWS)], pa.int16()),
        "text": pa.array([None if k % 11 == 0 else ("a", "b")[k % 2] for k in range(ROWS)]),
        "code": pa.array([("c", "d")[k % 2] for k in range(ROWS)]).dictionary_encode(),
        "flag": pa.array([k % 3 == 0 for k in range(ROWS)]),
        "day": pa.array(days, pa.date32()),
        "y": pa.array([k % 2 == 0 for k in range(ROWS)]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=25)
    found = task(tmp_path / "t.parquet")
    assert isinstance(found.preprocessing, Table)
    assert found.labels == ("False", "True")
    assert found.preprocessing.words["flag"] == ("false", "true")
    texts = {name: ["" if cell is None else str(cell) for cell in column.to_pylist()] for name, column in columns.items()}
    (tmp_path / "t.csv").write_text(",".join(texts) + "\n" + "\n".join(map(",".join, zip(*texts.values(), strict=True))))
    same = task(tmp_path / "t.csv")
    assert same.preprocessing == found.preprocessing
    assert torch.equal(same.train.inputs, found.train.inputs)
    parquet.write_table(pa.table({"x": pa.array([[1], [2]]), "y": pa.array([1, 0])}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r'(?s)E131.*column "x" has values of type list<.*name it under ignore'):
        task(tmp_path / "t.parquet")


def test_the_form_of_german_credit_is_read(tmp_path: Path) -> None:
    """german.data of the UCI repository: 20 columns, 13 of them words, between spaces, without a header, classes 1 and 2."""
    generator = np.random.default_rng(0)
    words = {0: 4, 2: 5, 3: 10, 5: 5, 6: 5, 8: 4, 9: 3, 11: 4, 13: 3, 14: 3, 16: 4, 18: 2, 19: 2}
    cells = [
        [f"A{k + 1}{1 + generator.integers(words[k])}" if k in words else str(generator.integers(1, 60)) for k in range(20)]
        for _ in range(400)
    ]
    lines = (f"{' '.join(row)} {1 + row[0].endswith(('1', '2'))} \n" for row in cells)
    (tmp_path / "german.data").write_text("".join(lines))
    found = task(tmp_path / "german.data", header=False, metric="roc_auc")
    assert isinstance(found.preprocessing, Table)
    assert len(found.preprocessing.words) == 13
    assert found.preprocessing.shape == (sum(words.values()) + 13 + 7,)
    assert found.labels == ("1", "2")
    status = found.train.inputs[:, :2].sum(1) > 0  # A11 and A12
    assert torch.equal(status.long(), found.train.targets)


def test_a_tsv_without_a_tokenizer_is_a_table(tmp_path: Path) -> None:
    assert table(tmp_path / "t.tsv", "a\tw\ty", "{k}\t{('u', 'v')[k % 2]}\t{k % 2}").features == ("a", "w=u", "w=v", "w=other")
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"a sentence of {k} words\t{k % 2}\n" for k in range(ROWS)))
    with pytest.raises(
        UserError, match=r"(?s)E131.*no column from which anything can be learned.*texts are read with a tokenizer"
    ):
        task(tmp_path / "t.tsv")


def test_the_preprocessing_of_earlier_files_is_read_and_written_as_it_was() -> None:
    text = '{"columns":["a","b"],"mean":[5,1],"deviation":[5,2]}'
    found = from_json(text)
    assert found == Table(columns=("a", "b"), mean=(5.0, 1.0), deviation=(5.0, 2.0))
    assert to_json(found) == text


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ('a,b\n"1,2\n3,4\n', {}, "E131.*no .csv file: unexpected end of data.*close every quote"),
        ("a,b\n1,2\n", {"encoding": "base64"}, 'E110.*encoding "base64" is not known'),
        ("a,b\n1,2\n", {"separator": "ab"}, "E110.*separator must be one character"),
        ("a,b\n1,2\n1,2,3\n", {}, "E131.*line 3: the row has 3 cells, the header 2"),
        ("a,,y\n1,3,0\n5,5,1\n", {}, "E131.*column 2 has no name"),
        ("a,y\n1\0,0\n", {}, "E131.*bytes that no text has"),
    ],
)
def test_files_that_are_no_tables_are_told_in_one_line(
    tmp_path: Path, content: str, arguments: dict[str, object], words: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        task(tmp_path / "t.csv", **arguments)
    assert len(str(caught.value).splitlines()) == 2
