"""Mistakes in models, data and commands: files that are missing, damaged or of another kind."""

from __future__ import annotations

from mistakes.mistake import BASELINE, RUN, Mistake, typed

ROWS = b"a,b,c,d,e,f,g,h,y\n" + b"".join(b"%d,1,2,3,4,5,6,7,%d\n" % (row, row % 3) for row in range(60))


def model(name: str) -> tuple[str, str]:
    return ('"./parts.py:net"', f'"{name}"')


def data(name: str, arguments: str = "") -> tuple[str, str]:
    given = f"\narguments = {arguments}" if arguments else ""
    return ('"./parts.py:task"', f'"{name}"{given}')


def table(arguments: str = '{ target = "y" }') -> tuple[str, str]:
    return data("./rows.csv", arguments)


OF_FILES = {
    # models
    "model is a number": Mistake("E103", '"model.from" must be a string', "factory", ('"./parts.py:net"', "5"), at="5:8"),
    "model without a name": Mistake("E104", 'missing key "model.from"', "factory", ('from = "./parts.py:net"', ""), at="4:2"),
    "arguments of the model are no table": Mistake(
        "E103", "a table; got 3", "keyword", ('net"', 'net"\narguments = 3'), at="6:13"
    ),
    "graph that is not there": Mistake("E130", "no model at", "relative to the recipe", model("./model.onnx"), at="5:8"),
    "graph that is a text": Mistake(
        "E141",
        "not an ONNX model, or it is damaged",
        "fetch it again",
        model("./m.onnx"),
        files={"m.onnx": b"dear diary"},
        at="5:8",
    ),
    "Keras file that is not there": Mistake("E130", "no model at", "relative to the recipe", model("./model.keras"), at="5:8"),
    "Keras file that is a text": Mistake(
        "E141", "not a Keras file", "fetch it again", model("./m.keras"), files={"m.keras": b"dear diary"}, at="5:8"
    ),
    "folder that is no model": Mistake("E130", "no config.json", "check the path", model("./data"), at="5:8"),
    "weights in place of a model": Mistake("E143", "holds weights", "weights = …", model("./extra.safetensors"), at="5:8"),
    "weights that are a folder": Mistake("E130", "no weights at", "safetensors", (BASELINE, 'weights = "data"'), at="11:11"),
    "weights that are a number": Mistake("E103", "a string or a table", "safetensors", (BASELINE, "weights = 3"), at="11:11"),
    "baseline of nothing": Mistake("E111", "needs either `train` or `weights`", "epochs = 10", (BASELINE, ""), at="10:2"),
    # tables
    "table without the target": Mistake(
        "E110", 'no column "yy"', '"y"', table('{ target = "yy" }'), files={"rows.csv": ROWS}, at="8:8"
    ),
    "empty table": Mistake("E130", "is empty", "header", table(), files={"rows.csv": b""}, at="8:8"),
    "table of a header": Mistake("E130", "no rows", "at least one row", table(), files={"rows.csv": b"a,y\n"}, at="8:8"),
    "row that is too short": Mistake(
        "E131", "line 62: the row has 2 cells", "in quotes", table(), files={"rows.csv": ROWS + b"1,2\n"}, at="8:8"
    ),
    "table that is no text": Mistake(
        "E131", "is no .csv file in UTF-8", "save it", table(), files={"rows.csv": bytes(range(256)) * 4}, at="8:8"
    ),
    "table in another encoding": Mistake(
        "E131", "is no .csv file in UTF-8", "save it", table(), files={"rows.csv": b"a,y\n" + b"\x81,1\n" * 20}, at="8:8"
    ),
    "unknown kind of a table": Mistake(
        "E103", '"regression"', "kind", table('{ target = "y", kind = "x" }'), files={"rows.csv": ROWS}, at="9:36"
    ),
    "unknown column to ignore": Mistake(
        "E110", 'no column "z"', "available", table('{ target = "y", ignore = ["z"] }'), files={"rows.csv": ROWS}, at="8:8"
    ),
    "more than all rows for test": Mistake(
        "E110", "in (0, 1); got 1.5", "fraction", table('{ target = "y", test_fraction = 1.5 }'), files={"rows.csv": ROWS}
    ),
    "unknown metric of a table": Mistake(
        "E110", 'metric "acc"', '"accuracy"', table('{ target = "y", metric = "acc" }'), files={"rows.csv": ROWS}, at="8:8"
    ),
    "unknown loss of a table": Mistake(
        "E110",
        'loss "crossentropy"',
        '"cross_entropy"',
        table('{ target = "y", loss = "crossentropy" }'),
        files={"rows.csv": ROWS},
    ),
    # other data
    "arrays that are a text": Mistake(
        "E143", "which may run code", "arrays of numbers", data("./x.npz"), files={"x.npz": b"dear"}
    ),
    "columns that are a text": Mistake(
        "E131",
        "is not a .parquet file",
        "save it again",
        data("./x.parquet", '{ target = "y" }'),
        files={"x.parquet": b"dear"},
        at="8:8",
    ),
    "folder of arrays that are a text": Mistake(
        "E131", "is damaged", "save it again", data("./arrays/"), files={"arrays/inputs.npy": b"dear"}
    ),
    "folder of columns that are a text": Mistake(
        "E131",
        "is not a .parquet file",
        "save it again",
        data("./columns/", '{ target = "y" }'),
        files={"columns/0.parquet": b"dear"},
        at="8:8",
    ),
    "text without a tokenizer": Mistake(
        "E104",
        '"task.arguments.tokenizer"',
        "folder of a model",
        data("./x.tsv", '{ text = "a" }'),
        files={"x.tsv": b"a\tlabel\nx\t1\n"},
        at="9:1",
    ),
    "line that is no JSON": Mistake(
        "E131",
        "line 1 is not valid JSON",
        "one object in each line",
        data("./x.jsonl", '{ tokenizer = "./t" }'),
        files={"x.jsonl": b"{"},
        at="8:8",
    ),
    "questions that are no JSON": Mistake(
        "E131",
        "is not valid JSON",
        "save it again",
        data("./x.json", '{ tokenizer = "./t" }'),
        files={"x.json": b"{"},
        at="8:8",
    ),
    "data of an unknown kind": Mistake(
        "E143", "not supported as data", ".csv", data("./x.xlsx"), files={"x.xlsx": b"PK"}, at="8:8"
    ),
    "photos without classes": Mistake("E130", "no class folders", "<class>", data("./p"), files={"p/notes": b""}, at="8:8"),
    "photos of one class": Mistake(
        "E131", "at least two class folders", "other classes", data("./p"), files={"p/cat/a.png": b"x"}
    ),
    "photos that are none": Mistake(
        "E131", "cannot be read as an image", "intact", data("./p"), files={"p/cat/a.png": b"x", "p/dog/b.png": b"y"}, at="8:8"
    ),
    "recordings that are none": Mistake(
        "E131", "cannot be read as a recording", ".wav", data("./s"), files={"s/a/a.wav": b"x", "s/b/b.wav": b"y"}, at="8:8"
    ),
    "half a thread to decode with": Mistake(
        "E103", "workers", "threads", data("./p", "{ workers = 0.5 }"), files={"p/cat/a.png": b"x"}, at="9:25"
    ),
    "fewer threads than none": Mistake(
        "E110", "workers must be", "threads", data("./p", "{ workers = -1 }"), files={"p/cat/a.png": b"x"}, at="9:25"
    ),
    "cache that is a path": Mistake(
        "E103", "cache", "cache folder", data("./p", '{ cache = "/tmp" }'), files={"p/cat/a.png": b"x"}, at="9:23"
    ),
    "damaged files that are counted": Mistake(
        "E103", "skip_unreadable", "left out", data("./s", "{ skip_unreadable = 3 }"), files={"s/a/a.wav": b"x"}, at="9:33"
    ),
    "photos of which none can be read": Mistake(
        "E131",
        "no image can be read",
        "intact",
        data("./p", "{ skip_unreadable = true }"),
        files={"p/cat/a.png": b"x", "p/dog/b.png": b"y"},
        at="8:8",
    ),
    "shards that are not there": Mistake(
        "E130", "there is no shard", "fetch it", data("./train-{00..09}.tar"), files={"train-00.tar": b"x"}, at="8:8"
    ),
    "shards that match nothing": Mistake("E130", "no shard matches", "check", data("./train-*.tar"), at="8:8"),
    "shard that is none": Mistake(
        "E131", "it is no tar file", "skip_unreadable", data("./x.tar"), files={"x.tar": b"dear diary" * 99}, at="8:8"
    ),
    "shard that is compressed": Mistake(
        "E131", "is compressed by gzip", "decompress", data("./x.tar"), files={"x.tar": b"\x1f\x8b" + b"0" * 999}, at="8:8"
    ),
    "shard with a field without a name": Mistake(
        "E103", "label", "json", data("./x.tar", "{ label = 3 }"), files={"x.tar": b"x"}, at="9:23"
    ),
    "setting that shards do not have": Mistake(
        "E102", "reduce_labels", "labels", data("./x.tar", "{ reduce_labels = true }"), files={"x.tar": b"x"}, at="9:15"
    ),
    # commands
    "predict with nothing": Mistake("E100", "Missing argument", "mirabelle predict --help", command=typed("predict")),
    "verify of an impossible name": Mistake("E130", "cannot be used", "check the path", command=typed("verify", "x" * 300)),
    "inspect of an impossible name": Mistake("E130", "cannot be used", "check the path", command=typed("inspect", "x" * 300)),
    "bench of an impossible name": Mistake("E130", "cannot be used", "check the path", command=typed("bench", "x" * 300)),
    "pack of an impossible name": Mistake("E130", "cannot be used", "check the path", command=typed("pack", "x" * 300)),
    "predict of an impossible name": Mistake(
        "E130", "cannot be used", "check the path", command=typed("predict", "x" * 300, "a.png")
    ),
    "predict with no file": Mistake("E130", "no file at no.onnx", "check", command=typed("predict", "no.onnx", "a.png")),
    "predict with a text": Mistake(
        "E143", "neither .onnx nor .mira", "folder of a run", command=typed("predict", "notes.txt", "a.png")
    ),
    "bench of nothing": Mistake("E100", "Missing argument", "mirabelle bench --help", command=typed("bench")),
    "bench of no file": Mistake("E130", "no file at no.onnx", "check", command=typed("bench", "no.onnx")),
    "bench of empty batches": Mistake(
        "E100", "--batch takes whole numbers from 1", "--batch 1,32", command=typed("bench", "no.onnx", "--batch", "0")
    ),
    "pack of no file": Mistake("E130", "no file at no.onnx", "check", command=typed("pack", "no.onnx")),
    "pack of a text": Mistake("E143", "neither .onnx nor .mira", "give", command=typed("pack", "notes.txt")),
    "unpack of no file": Mistake("E130", "no file at no.mira", "check", command=typed("unpack", "no.mira")),
    "export to nowhere": Mistake("E100", "Missing option '--out'", "--help", command=typed("export", "./parts.py:net")),
    "export of no file": Mistake(
        "E120", "no Python file", "relative", command=typed("export", "./no.py:net", "--input", "8", "--out", "m.onnx")
    ),
    "export on inputs of a wrong shape": Mistake(
        "E121", "fails on inputs of 9", "shape", command=typed("export", "./parts.py:net", "--input", "9", "--out", "m.onnx")
    ),
    "verify of two": Mistake("E100", "unexpected extra argument", "--help", command=typed("verify", "no.onnx", "no.mira")),
    "verify of no file": Mistake("E130", "no file at no.onnx", "check", command=typed("verify", "no.onnx")),
    "report of no folder": Mistake("E130", "is not a folder", "--out", command=typed("report", "nowhere")),
    "runs of no folder": Mistake("E130", "is not a folder", "folders of your runs", command=typed("runs", "nowhere")),
    "runs of a folder without any": Mistake("E130", "contains no run", "mirabelle run", command=typed("runs", "data")),
    "command of another tool": Mistake("E100", 'no command "optimize"', "available", command=typed("optimize")),
    "recipe that is a folder": Mistake("E130", "no recipe at data", "mirabelle init", command=typed("run", "data")),
    "recipe that is a model": Mistake("E101", "not valid TOML", "correct", command=typed("run", "extra.safetensors")),
    "compare of no file": Mistake("E130", "no recipe at no.toml", "check", command=typed("compare", "no.toml")),
    "compare of a recipe": Mistake("E102", 'unknown key "step"', "available", command=typed("compare", "recipe.toml")),
    "auto without a model": Mistake("E104", "missing --model and --data", "recipe file", command=typed("auto", "--size", "9%")),
    "auto of a file and a model": Mistake(
        "E111",
        "names model and data; got --model",
        "either FILE",
        command=typed("auto", "recipe.toml", "--model", "./parts.py:net"),
    ),
    "auto with a time of another kind": Mistake(
        "E113", "--time cannot be read", "30 min", command=typed("auto", "--time", "soon")
    ),
    "auto with a goal of another kind": Mistake(
        "E113", "goal.size cannot be read", "5%", command=typed("auto", "--size", "small")
    ),
    "auto of no data": Mistake(
        "E130", "no", "", command=typed("auto", "--model", "./parts.py:net", "--data", "./no.npz", "--size", "9%")
    ),
    "check of no recipe": Mistake("E130", "no recipe at no.toml", "check", command=typed("check", "no.toml")),
    "unknown option of run": Mistake("E100", 'no option "--threads"', "did you mean", command=(*RUN, "--threads", "1")),
    "empty setting": Mistake("E100", "takes key=value", "--set step.1.sparsity=0.9", command=(*RUN, "--set", "")),
    "setting without a key": Mistake("E100", "takes key=value", "--set step.1.sparsity=0.9", command=(*RUN, "--set", "=3")),
    "setting of step 0": Mistake("E100", "there is no step 0", "steps count from 1", command=(*RUN, "--set", "step.0.x=1")),
    "unknown option of init": Mistake("E100", 'no option "--kind"', "--help", command=typed("init", "--kind", "x")),
    "doctor of something": Mistake("E100", "unexpected extra argument", "--help", command=typed("doctor", "x")),
    "demo of something": Mistake("E100", "unexpected extra argument", "--help", command=typed("demo", "x")),
    "inspect of a damaged graph": Mistake(
        "E141",
        "not an ONNX model, or it is damaged",
        "fetch it again",
        command=typed("inspect", "m.onnx"),
        files={"m.onnx": b"dear"},
    ),
    "inspect of an empty graph": Mistake(
        "E141", "not an ONNX model", "give an .onnx file", command=typed("inspect", "m.onnx"), files={"m.onnx": b""}
    ),
    "input of no size": Mistake(
        "E110", '--input must be sizes joined by "x"', "1x28x28", command=typed("inspect", "./parts.py:net", "--input", "0")
    ),
    "input of a negative size": Mistake(
        "E110", '--input must be sizes joined by "x"', "1x28x28", command=typed("inspect", "./parts.py:net", "--input", "-8")
    ),
    "input of an unknown name": Mistake(
        "E121", "unexpected keyword argument 'b'", "shape", command=typed("inspect", "./parts.py:net", "--input", "b=8")
    ),
}
