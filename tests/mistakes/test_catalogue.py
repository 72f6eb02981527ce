"""The catalogue of mistakes: each is one line first, then help, the right exit status, no traceback, and nothing lost."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.errors import CODES
from mistakes.mistake import BASELINE, RUN, Mistake, setting, typed
from mistakes.of_files import OF_FILES
from mistakes.of_settings import OF_SETTINGS

MISTAKES = {
    # the command line
    "unknown command": Mistake("E100", 'no command "runn"', 'did you mean "run"?', command=typed("runn")),
    "unknown option": Mistake(
        "E100", 'no option "--sede"', "did you mean --seed?", command=typed("run", "r.toml", "--sede", "1")
    ),
    "argument missing": Mistake("E100", "Missing argument 'RECIPE'", "mirabelle run --help", command=typed("run")),
    "argument too many": Mistake("E100", "unexpected extra argument", "--help", command=typed("run", "a", "b")),
    "option without value": Mistake("E100", "requires an argument", "mirabelle run --help", command=typed("run", "a", "--out")),
    "seed is no number": Mistake("E100", "'x' is not a valid integer", "--help", command=typed("run", "r", "--seed", "x")),
    "seed is negative": Mistake("E100", "-1 is not in the range", "--help", command=typed("run", "r", "--seed", "-1")),
    "unknown tracker": Mistake("E100", "'mlflow' is not one of", "--help", command=(*RUN, "--track", "mlflow")),
    "setting without equals": Mistake("E100", "--set takes key=value", "--set step.1.sparsity=0.9", command=setting("goal")),
    "setting of a step too far": Mistake(
        "E100", "there is no step 9; there are", "steps count from 1", command=setting("step.9.x=1")
    ),
    "setting inside a number": Mistake("E100", "is not in a table", "whole path", command=setting("seed.x.y=1")),
    "setting with a wrong key": Mistake(
        "E102", "--set step.1.sparcity=1: unknown key", "sparsity", command=setting("step.1.sparcity=1")
    ),
    "setting out of range": Mistake("E110", "--set step.1.sparsity=2", "in [0, 1)", command=setting("step.1.sparsity=2")),
    "shape that is none": Mistake(
        "E110", '--input must be sizes joined by "x"', "1x28x28", command=typed("inspect", "parts.py:net", "--input", "8;8")
    ),
    # the text of a recipe
    "recipe missing": Mistake("E130", "no recipe at nowhere.toml", "mirabelle init", command=typed("run", "nowhere.toml")),
    "no TOML": Mistake("E101", "this is not valid TOML", "correct the line", ("[task]", "[task"), at="7:6"),
    "string without quotes": Mistake("E101", "this is not valid TOML", "quotes", ('"cubic"', "cubic"), at="19:12"),
    "key twice": Mistake("E101", "this is not valid TOML", "correct", ("seed = 0", "seed = 0\nseed = 1"), at="3:9"),
    "schema missing": Mistake("E104", 'missing key "schema"', "schema = 1", ("schema = 1", "")),
    "schema of the future": Mistake("E142", "schema = 2 is not known", "upgrade", ("schema = 1", "schema = 2"), at="1:10"),
    "seed of a recipe": Mistake("E103", '"seed" must be a whole number', "seed = 0", ("seed = 0", "seed = 1.5"), at="2:8"),
    "unknown table": Mistake("E102", 'unknown key "modle"', 'did you mean "model"?', ("[model]", "[modle]"), at="4:2"),
    "no model": Mistake("E104", "missing table [model]", "add [model]", ("[model]", "[baseline.x]")),
    "no steps": Mistake("E104", "missing table [step]", "add [[step]]", ("[[step]]", "[[goal.x]]")),
    "step is no list": Mistake("E103", '"step" must be a list', "two brackets", command=setting("step=1")),
    "unknown key of the task": Mistake("E102", '"task.dta"', 'did you mean "data"?', ("data =", "dta ="), at="8:1"),
    "data is a number": Mistake("E103", '"task.data" must be a string', "data:", ('"./parts.py:task"', "3"), at="8:8"),
    "unknown key of a step": Mistake(
        "E102", 'unknown key "prune.Weights.sparcity"', 'did you mean "sparsity"?', ("sparsity", "sparcity"), at="18:1"
    ),
    "unknown key of a training": Mistake(
        "E102",
        'unknown key "prune.Weights.train.epoks"',
        "epochs",
        ("1, batch_size = 32 }\n\n[[", "1, epoks = 3 }\n\n[["),
        at="20:23",
    ),
    "wrong type": Mistake(
        "E103", '"prune.Weights.sparsity" must be a number', "fraction removed", ("0.5", '"0.5"'), at="18:12"
    ),
    "truth for a number": Mistake("E103", "must be a number in [0, 1); got True", "fraction", ("0.5", "true"), at="18:12"),
    "out of range": Mistake(
        "E110", "sparsity must be a number in [0, 1); got 1.0", "fraction removed", ("0.5", "1.0"), at="18:12"
    ),
    "not a number": Mistake("E110", "in [0, 1); got nan", "fraction removed", ("0.5", "nan"), at="18:12"),
    "no epochs": Mistake(
        "E110", "epochs must be a whole number from 1", "passes over", ("epochs = 1", "epochs = 0"), at="11:20"
    ),
    "negative learning rate": Mistake("E110", "lr must be a number above 0", "learning rate", ("0.01", "-0.01"), at="11:45"),
    "unknown schedule": Mistake("E103", "schedule 'qubic' is not known", "choose one-shot", ('"cubic"', '"qubic"'), at="19:12"),
    "schedule backwards": Mistake(
        "E111", "begin = 0.9 is greater", "begin ≤ end", ('"cubic"', "{ begin = 0.9, end = 0.1 }"), at="19:22"
    ),
    "schedule's key": Mistake("E102", '"schedule.power2"', "power", ('"cubic"', "{ power2 = 1 }"), at="19:14"),
    "unknown step": Mistake(
        "E106", 'step "prune.Wieghts" is not known', "prune.Weights", ("prune.Weights", "prune.Wieghts"), at="17:7"
    ),
    "code for a step": Mistake("E106", 'step "os.system" is not known', "available", ("prune.Weights", "os.system"), at="17:7"),
    "step without use": Mistake("E104", 'the key "use"', "prune.Weights", ('use = "quantize.Static"', ""), at="22:3"),
    "unknown score": Mistake(
        "E106", '"scores.Magnitud"', "Magnitude", ("sparsity = 0.5", 'sparsity = 0.5\nscore = "Magnitud"'), at="19:9"
    ),
    "unknown term": Mistake(
        "E106", '"objectives.SoftTarget"', "SoftTargets", ("lr = 0.01", 'objective = [{ term = "SoftTarget" }]'), at="11:62"
    ),
    "term without name": Mistake(
        "E104", 'needs the key "term"', "TaskLoss", ("lr = 0.01", "objective = [{ weight = 1.0 }]"), at="11:53"
    ),
    "weight of a term": Mistake(
        "E103",
        "the weight of L1 must be a finite number",
        "0.5",
        ("lr = 0.01", 'objective = [{ term = "L1", weight = "x" }]'),
        at="11:77",
    ),
    "temperature of a term": Mistake(
        "E110",
        "SoftTargets.temperature must be a number above 0",
        "temperature:",
        ("lr = 0.01", 'objective = [{ term = "SoftTargets", temperature = 0 }]'),
        at="11:91",
    ),
    "goal without unit": Mistake(
        "E113", "goal.max_drop cannot be read", "5pt", ('size = "200%"', 'max_drop = "1"'), at="14:12"
    ),
    "goal in elephants": Mistake("E113", "goal.size cannot be read", "5 kB", ('"200%"', '"2 elephants"'), at="14:8"),
    "two amounts": Mistake(
        "E111",
        "give one of sparsity, threshold",
        "sparsity = 0.9",
        ("sparsity = 0.5", "sparsity = 0.5\nthreshold = 1.0"),
        at="16:3",
    ),
    "scope of a threshold": Mistake(
        "E111", "threshold does not rank", "leave scope out", ("sparsity = 0.5", 'threshold = 0.1\nscope = "global"'), at="19:9"
    ),
    "epochs and steps": Mistake(
        "E111", "give either epochs or steps", "epochs = 5", ("epochs = 1, batch_size = 32, lr", "epochs = 1, steps = 2, lr")
    ),
    "baseline of both kinds": Mistake(
        "E111", "either `train` or `weights`", "for example", ("[goal]", 'weights = "w.safetensors"\n[goal]'), at="10:2"
    ),
    "weights named twice": Mistake(
        "E111",
        "both name weights",
        "keep one",
        (
            '\n[task]\ndata = "./parts.py:task"\n\n[baseline]\ntrain = { epochs = 1, batch_size = 32, lr = 0.01 }',
            'weights = "a.safetensors"\n[task]\ndata = "./parts.py:task"\n[baseline]\nweights = "b.safetensors"',
        ),
        at="10:11",
    ),
    "gradual without training": Mistake(
        "E111",
        "prune.Weights needs a training",
        "give `train`",
        ("train = { epochs = 1, batch_size = 32 }\n\n[[", "[["),
        at="16:3",
    ),
    "student without training": Mistake(
        "E111",
        "distill.Student needs a training",
        "give `train`",
        (
            'use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"\ntrain = { epochs = 1, batch_size = 32 }',
            'use = "distill.Student"\nmodel = "a:b"',
        ),
        at="16:3",
    ),
    "illegal order": Mistake(
        "E105",
        "prune.Weights (step 2) cannot follow quantize.Static (step 1)",
        "legal order: prune.Weights, quantize.Static",
        ('[[step]]\nuse = "prune', '[[step]]\nuse = "quantize.Static"\n[[step]]\nuse = "prune'),
        at="19:7",
    ),
    "factors after pruning": Mistake(
        "E105",
        "factorize.Linear (step 2) cannot follow prune.Weights (step 1)",
        "legal order: factorize.Linear, prune.Weights, quantize.Static",
        ('[[step]]\nuse = "quantize', '[[step]]\nuse = "factorize.Linear"\nrank = 4\n[[step]]\nuse = "quantize'),
        at="23:7",
    ),
    "rank given twice": Mistake(
        "E111",
        "give one of energy, rank, ratio, ranks, or limits for macs, parameters, size, latency; got energy, rank",
        "for example: energy = 0.9",
        ('[[step]]\nuse = "prune', '[[step]]\nuse = "factorize.Linear"\nrank = 4\nenergy = 0.5\n[[step]]\nuse = "prune'),
    ),
    "rank above every matrix": Mistake(
        "E110",
        "rank = 999 is larger than every matrix: the largest full rank is",
        "lower `rank`",
        ('[[step]]\nuse = "prune', '[[step]]\nuse = "factorize.Linear"\nrank = 999\n[[step]]\nuse = "prune'),
    ),
    "no energy": Mistake(
        "E110",
        "energy must be",
        "share of the sum of squared singular values",
        ('[[step]]\nuse = "prune', '[[step]]\nuse = "factorize.Linear"\nenergy = 0.0\n[[step]]\nuse = "prune'),
        at="18:10",
    ),
    "joint with its own training": Mistake(
        "E111",
        "has its own training",
        "remove its `train`",
        (
            'use = "quantize.Static"\nsamples = 50',
            'use = "training.Joint"\ntrain.epochs = 1\n[[step.steps]]\nuse = "prune.Weights"\nsparsity = 0.1\ntrain.epochs = 1',
        ),
    ),
    "quantize in a joint training": Mistake(
        "E111",
        "quantize.Static does not act during training",
        "a separate step",
        (
            'use = "quantize.Static"\nsamples = 50',
            'use = "training.Joint"\ntrain = { epochs = 1 }\nsteps = [{ use = "quantize.Static" }]',
        ),
        at="25:18",
    ),
    # models
    "name without function": Mistake(
        "E130", "no model at parts", 'did you mean "./parts.py:function"', ("./parts.py:net", "parts"), at="5:8"
    ),
    "module not found": Mistake(
        "E120", 'module "no.such" cannot be imported', "install it", ("./parts.py:net", "no.such:net"), at="5:8"
    ),
    "file not found": Mistake(
        "E120", "no Python file at", "relative to the recipe", ("./parts.py:net", "./part.py:net"), at="5:8"
    ),
    "function not found": Mistake(
        "E120", 'has no function "nett"', 'did you mean "net"?', ("parts.py:net", "parts.py:nett"), at="5:8"
    ),
    "file is no Python": Mistake(
        "E120", "raised SyntaxError", "in Python to see why", ("./parts.py:net", "./broken.py:net"), at="5:8"
    ),
    "file raises": Mistake("E120", "raised ZeroDivisionError", "by hand", ("./parts.py:net", "./explodes.py:net"), at="5:8"),
    "factory raises": Mistake(
        "E120", "raised ZeroDivisionError: a mistake", "in Python to see why", ("parts.py:net", "parts.py:raises"), at="5:8"
    ),
    "factory gives no module": Mistake(
        "E121", "returned int", "torch.nn.Module", ("parts.py:net", "parts.py:number"), at="5:8"
    ),
    "factory's arguments": Mistake(
        "E120", "unexpected keyword argument", "in Python to see why", ('net"', 'net"\narguments = { depth = 3 }'), at="5:8"
    ),
    "model on other shapes": Mistake(
        "E121", "the model fails on inputs of torch.float32 (2, 8)", "shapes", ("parts.py:net", "parts.py:Images")
    ),
    "model that gives a pair": Mistake("E121", "returns a tuple, not a tensor", "wrap it", ("parts.py:net", "parts.py:Pair")),
    "model of NaN": Mistake(
        "E121", 'NaN or infinite values; its tensor "2.bias"', "weights that work", ("parts.py:net", "parts.py:infinite")
    ),
    "pattern that matches nothing": Mistake(
        "E112", 'pattern "conv*"', "available: ", ("50\n", '50\ninclude = ["0", "conv*"]\n'), at="25:17"
    ),
    # data
    "unknown data": Mistake(
        "E130", '"didgits" is not a built-in data set', 'did you mean "digits"?', ("./parts.py:task", "didgits"), at="8:8"
    ),
    "place of the data unknown": Mistake(
        "E130", 'the data folder of "mnist" is not known', "--data-dir", ("./parts.py:task", "mnist"), at="8:8"
    ),
    "data not in their place": Mistake(
        "E130",
        "no train-images-idx3-ubyte.gz",
        "--data-dir",
        ("./parts.py:task", "mnist"),
        (*RUN, "--data-dir", "nowhere"),
        at="8:8",
    ),
    "data damaged": Mistake(
        "E131", "is not an IDX file", "download", ("./parts.py:task", "mnist"), (*RUN, "--data-dir", "data"), at="8:8"
    ),
    "task raises": Mistake(
        "E120", "raised ZeroDivisionError", "in Python to see why", ("parts.py:task", "parts.py:raises"), at="8:8"
    ),
    "task is none": Mistake("E131", "returned int", "mirabelle.Task", ("parts.py:task", "parts.py:number"), at="8:8"),
    "labels too high": Mistake(
        "E132", "labels must be in [0, 2], one", "number the classes", ("parts.py:task", "parts.py:high_labels")
    ),
    "labels negative": Mistake(
        "E132", "the test data have -1 to 1", "number the classes", ("parts.py:task", "parts.py:negative_labels")
    ),
    "data empty": Mistake("E131", "the same length, above 0", "check the data", ("parts.py:task", "parts.py:empty"), at="8:8"),
    "data with NaN": Mistake("E131", "NaN", "clean", ("parts.py:task", "parts.py:nan"), at="8:8"),
    "data of two lengths": Mistake("E131", "the same length", "check", ("parts.py:task", "parts.py:lengths"), at="8:8"),
    "targets of a wrong type": Mistake(
        "E131", "each output needs one target", "int64", ("parts.py:task", "parts.py:float_targets")
    ),
    "several targets": Mistake(
        "E131",
        "targets must be one tensor; got a tuple of 2",
        "into one tensor",
        ("parts.py:task", "parts.py:two_targets"),
        at="8:8",
    ),
    "named targets": Mistake(
        "E131", "targets must be one tensor; got a dict of 2", "into one tensor", ("parts.py:task", "parts.py:named_targets")
    ),
    "loader of several targets": Mistake(
        "E131", "targets must be one tensor; got a list of 2", "into one tensor", ("parts.py:task", "parts.py:loader_of_pairs")
    ),
    # what outputs mean
    "metric of numbers for classes": Mistake(
        "E111", "metric r2 takes", "another metric", ("parts.py:task", "parts.py:numbers_for_classes"), at="8:8"
    ),
    "metric of classes for numbers": Mistake(
        "E111", "metric accuracy takes classes or labels", "another metric", ("parts.py:task", "parts.py:classes_for_numbers")
    ),
    "extra metric of spans": Mistake(
        "E111", "metric exact_match takes span", "another metric", ("parts.py:task", "parts.py:spans_for_classes")
    ),
    "class without a test sample": Mistake(
        "E131", "roc_auc is not defined on the test data", "every class", ("parts.py:task", "parts.py:missing_class")
    ),
    "target that never varies": Mistake(
        "E131", "1 of 3 numbers are the same", "negative_squared_error", ("parts.py:task", "parts.py:constant_number")
    ),
    "labels of many values": Mistake(
        "E132", "targets of labels are 0 or 1", "loss of classes", ("parts.py:task", "parts.py:many_classes_of_labels")
    ),
    "loss of all pairs": Mistake(
        "E131", "the loss compares all pairs", "give targets", ("parts.py:task", "parts.py:pairs_of_samples")
    ),
    "loss of every sample": Mistake(
        "E110", "a loss must be one number", 'reduction = "mean"', ("parts.py:task", "parts.py:vector_loss"), at="8:8"
    ),
    "likelihood of logits": Mistake(
        "E131", "the loss takes log-probabilities", "log-softmax", ("parts.py:task", "parts.py:likelihood")
    ),
    "softmax before cross entropy": Mistake(
        "E131", "the model ends in Softmax", "before the softmax", ("parts.py:net", "parts.py:rates")
    ),
    "one output and classes": Mistake(
        "E132", "labels must be in [0, 0]", "binary_cross_entropy", ("parts.py:net", "parts.py:lone")
    ),
    "outputs of another kind": Mistake(
        "E111",
        'outputs_are = "classes", but the loss takes numbers',
        "leave `outputs_are` out",
        ("parts.py:task", "parts.py:contradiction"),
        at="8:8",
    ),
    "sensitivity of three classes": Mistake(
        "E131", "sensitivity is defined for two classes; the outputs have 3", "roc_auc", ("parts.py:task", "parts.py:unsaid")
    ),
    "perplexity of labels": Mistake(
        "E111", "negative_perplexity takes classes", "another metric", ("parts.py:task", "parts.py:perplexity_of_labels")
    ),
    "data without length": Mistake(
        "E131", "IterableDataset has no length", "Dataset", ("parts.py:task", "parts.py:iterable"), at="8:8"
    ),
    "shuffled and unsplit": Mistake(
        "E131", "a loader that shuffles cannot be split", "validation", ("parts.py:task", "parts.py:shuffled"), at="8:8"
    ),
    "data of strings": Mistake("E131", "inputs must be numbers", "tokens", ("parts.py:task", "parts.py:strings"), at="8:8"),
    "unknown metric": Mistake(
        "E110", 'metric "acuracy"', 'did you mean "accuracy"?', ("parts.py:task", "parts.py:bad_metric"), at="8:8"
    ),
    "metric of one number": Mistake(
        "E131", "returned shape () for", "one score for each sample", ("parts.py:task", "parts.py:flat_metric")
    ),
    # weights
    "weights missing": Mistake("E130", "no weights at", "safetensors", (BASELINE, 'weights = "w.safetensors"')),
    "tensor missing": Mistake(
        "E140", "missing 2.weight", "of this architecture", (BASELINE, 'weights = "missing.safetensors"')
    ),
    "tensor left over": Mistake("E140", "extra more", "of this architecture", (BASELINE, 'weights = "extra.safetensors"')),
    "tensor of another shape": Mistake(
        "E140", "2.weight is (3, 9), the model has (3, 8)", "architecture", (BASELINE, 'weights = "shapes.safetensors"')
    ),
    "weights damaged": Mistake(
        "E141", "not an intact safetensors file", "save it again", (BASELINE, 'weights = "torn.safetensors"')
    ),
    "pickle offered": Mistake(
        "E143", "is a pickle, which may contain code", "safetensors", (BASELINE, 'weights = "weights.pt"')
    ),
    "weights of the baseline at their line": Mistake(
        "E130", "no weights at", "safetensors", (BASELINE, 'weights = "w.safetensors"'), at="11:11"
    ),
    # what fresh pairs of eyes found
    "more outputs than classes": Mistake(
        "E132",
        "the model has 3 outputs, the data have 10 classes: 0, 1, 2, 3, 4, …",
        "10 outputs",
        ('net"\n\n[task]\ndata = "./parts.py:task"', 'flat"\n\n[task]\ndata = "digits"'),
        at="5:8",
    ),
    "setting of a table that is not there": Mistake(
        "E102",
        '--set baseline.trian.epochs=3: unknown key "baseline.trian"',
        "train",
        command=setting("baseline.trian.epochs=3"),
    ),
    "option that is almost one": Mistake(
        "E100", 'no option "--ot"', "did you mean --out?", command=typed("run", "a", "--ot", "b")
    ),
    "batch of one under batch norm": Mistake(
        "E121",
        "every training batch has one sample",
        "a larger batch size",
        ("parts.py:net", "parts.py:normed"),
        (*RUN, "--set", "baseline.train.batch_size=1"),
        at="11:9",
    ),
    "file that ends the program": Mistake("E120", "raised SystemExit", "by hand", ("parts.py:net", "exits.py:net"), at="5:8"),
    "joint training of a number": Mistake(
        "E103",
        "must be a list of tables; got 3",
        "[[step.steps]]",
        ('use = "quantize.Static"\nsamples = 50', 'use = "training.Joint"\ntrain.epochs = 1\nsteps = 3'),
        at="25:9",
    ),
    "seed too large": Mistake("E103", '"seed" must be', "seed = 0", ("seed = 0", "seed = 18446744073709551616"), at="2:8"),
    "decisions that are none": Mistake(
        "E103", '"decisions" must be a table', "leave it out", ("seed = 0", "decisions = 3"), at="2:13"
    ),
    "execution that is none": Mistake(
        "E103",
        "must be one of",
        "correct it",
        ("[goal]", '[decisions]\n"steps/0-baseline/execution" = "bfloat"\n[goal]'),
        at="14:32",
    ),
    "infinite goal": Mistake("E113", "goal.size must be finite", "leave it out", ('"200%"', "inf"), at="14:8"),
    "infinite weight of a term": Mistake(
        "E103", "finite number", "0.5", ("lr = 0.01", 'objective = [{ term = "L1", weight = inf }]'), at="11:77"
    ),
    "infinite learning rate": Mistake("E110", "a finite one", "learning rate", ("0.01", "inf"), at="11:45"),
    "recipe of an impossible name": Mistake(
        "E130", "cannot be read", "permissions", command=typed("check", "x" * 300 + ".toml")
    ),
    "folder of an impossible name": Mistake(
        "E151", "cannot be used", "--out", command=typed("run", "recipe.toml", "--out", "x" * 300)
    ),
    "unknown setting of data": Mistake(
        "E102",
        'unknown key "task.arguments.sizee"',
        "size",
        ("./parts.py:task", './photos"\narguments = { sizee = 3 }\n#'),
        at="9:15",
    ),
    "init of data without a slash": Mistake(
        "E130", '"data" is not a built-in data set', '"./data"', command=typed("init", "--data", "data")
    ),
    "init of a pickle": Mistake("E143", "may contain code", "safetensors", command=typed("init", "--weights", "weights.pt")),
    # other commands
    "init of a model that is not there": Mistake(
        "E120", "no Python file", "check", command=typed("init", "--model", "./no.py:net")
    ),
    "init of a function that is not there": Mistake(
        "E120", "no function", "net", command=typed("init", "--model", "./parts.py:nett")
    ),
    "init of data that are not there": Mistake(
        "E130", "no folder of images at ./photos", "check", command=typed("init", "--data", "./photos")
    ),
    "inspect of nothing": Mistake("E130", "no file at no.onnx", "check", command=typed("inspect", "no.onnx")),
    "inspect of a text": Mistake("E143", "notes.txt is no model", ".onnx", command=typed("inspect", "notes.txt")),
    "groups of a file": Mistake(
        "E143", "no.mira contains no torch module", "function that builds it", command=typed("inspect", "no.mira", "--groups")
    ),
    "groups of no file": Mistake("E130", "no model at no.onnx", "check", command=typed("inspect", "no.onnx", "--groups")),
    "groups without inputs": Mistake(
        "E130", "the input of the model is unknown", "--input", command=typed("inspect", "./parts.py:net", "--groups")
    ),
    "groups on inputs of a wrong shape": Mistake(
        "E121", "fails on inputs of 9", "shape", command=typed("inspect", "./parts.py:net", "--groups", "--input", "9")
    ),
    "input of an unknown type": Mistake(
        "E110", 'unknown dtype "int46"', "int64", command=typed("inspect", "./parts.py:net", "--input", "8:int46")
    ),
    "inputs with and without names": Mistake(
        "E111", "or none", "NAME", command=typed("inspect", "./parts.py:net", "--input", "a=8", "--input", "8")
    ),
    "inputs said twice": Mistake(
        "E111",
        "both define the model's input",
        "one of them",
        command=typed("inspect", "./parts.py:net", "--input", "8", "--data", "digits"),
    ),
    "groups of a model that cannot be traced": Mistake(
        "E121",
        "its control flow depends on values of tensors, at",
        "prune.Weights",
        command=typed("inspect", "./parts.py:Decides", "--groups", "--input", "8"),
    ),
    "sensitivity without data": Mistake(
        "E130", "is unknown", "--data", command=typed("inspect", "./parts.py:net", "--sensitivity")
    ),
    "sensitivity on drawn inputs": Mistake(
        "E111", "needs data", "--data", command=typed("inspect", "./parts.py:net", "--sensitivity", "--input", "8")
    ),
    "sensitivity on unknown data": Mistake(
        "E130",
        '"digit" is not a built-in data set',
        "digits",
        command=typed("inspect", "./parts.py:net", "--sensitivity", "--data", "digit"),
    ),
    "sensitivity with a pickle": Mistake(
        "E143",
        "may contain code",
        "safetensors",
        command=typed("inspect", "./parts.py:net", "--sensitivity", "--data", "./parts.py:task", "--weights", "weights.pt"),
    ),
    "samples without sensitivity": Mistake(
        "E111", "--samples", "--sensitivity", command=typed("inspect", "./parts.py:net", "--input", "8", "--samples", "9")
    ),
    "channels of a model that cannot be traced": Mistake(
        "E121",
        "cannot be traced by torch.export: its control flow",
        "prune.Weights",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Channels"\nsparsity = 0.5'),
        command=(*RUN, "--set", "model.from=./parts.py:Decides"),
    ),
    "no channels to cut": Mistake(
        "E112",
        "no channel, neuron or head can be cut",
        "prune.Weights",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Channels"\nsparsity = 0.5'),
        command=(*RUN, "--set", "model.from=./parts.py:single"),
    ),
    "ignored channels that are not there": Mistake(
        "E112",
        'pattern "laier.*" matches nothing',
        "available",
        (
            'use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"',
            'use = "prune.Channels"\nsparsity = 0.5\nexclude = ["laier.*"]',
        ),
        at="19:12",
    ),
    "goal below what every layer must keep": Mistake(
        "E114",
        "macs of at most 1 cannot be reached: the least possible is",
        "lower `minimum`",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Channels"\nmacs = 1'),
        at="18:8",
    ),
    "goal and sparsity of channels": Mistake(
        "E111",
        "give either a sparsity or limits for macs, parameters, size, latency; got both",
        "sparsity = 0.5",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Channels"\nmacs = "50%"\nsparsity = 0.5'),
    ),
    "goal of channels in elephants": Mistake(
        "E113",
        "macs cannot be read; got '5 elephants'",
        "write a number and a unit",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Channels"\nmacs = "5 elephants"'),
        at="18:8",
    ),
    "layers of a model that has none to drop": Mistake(
        "E112",
        "no layer can be dropped: none of the model's modules adds its input",
        "prune.Channels",
        ('use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"', 'use = "prune.Layers"\nsparsity = 0.5'),
    ),
    "check of a bad recipe": Mistake(
        "E102", "unknown key", "did you mean", ("sparsity", "sparcity"), typed("check", "recipe.toml"), at="18:1"
    ),
    "report of no run": Mistake("E130", "data contains no run", "--out", command=typed("report", "data")),
    "verify of no run": Mistake("E130", "data contains no run", "folder of a run", command=typed("verify", "data")),
    "bench of a text": Mistake("E143", "neither .onnx nor .mira", "give", command=typed("bench", "notes.txt")),
    "unpack of a text": Mistake("E143", "notes.txt: this is not a .mira file", "packed", command=typed("unpack", "notes.txt")),
    "folder is a file": Mistake(
        "E151", "notes.txt is a file", "name a folder", command=typed("run", "recipe.toml", "--out", "notes.txt")
    ),
    "folder is someone's": Mistake(
        "E150", "data is not empty and contains no run", "--out", command=typed("run", "recipe.toml", "--out", "data")
    ),
    "folder cannot be made": Mistake(
        "E151", "cannot be used", "--out", command=typed("run", "recipe.toml", "--out", "/proc/run")
    ),
    "run without data": Mistake(
        "E130", "no folder of images at", "relative to the recipe", ("./parts.py:task", "./photos"), at="8:8"
    ),
}
MISTAKES |= OF_SETTINGS | OF_FILES


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_as_promised(name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    mistake = MISTAKES[name]
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    recipe = place / "recipe.toml"
    assert mistake.change[0] in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(*mistake.change, 1 if mistake.change[0] != "[[step]]" else -1))
    for path, content in mistake.files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    before = digest(place)
    status = main.run(mistake.command)
    out, told = capsys.readouterr()
    first, *rest = told.splitlines()
    assert "Traceback" not in told
    assert first.startswith("error[E"), told
    ours = [
        k for k, line in enumerate(told.splitlines()) if line.startswith(f"error[{mistake.code}]: ") and mistake.says in line
    ]
    assert ours, told
    assert status == CODES[mistake.code][0] == 2, told
    block = told.splitlines()[ours[0] :]
    assert mistake.helps in next(line for line in block if line.startswith("help: ")), told
    if mistake.at:
        assert f"recipe.toml:{mistake.at}: " in block[0], told
        assert set(block[2].partition("|")[2].strip()) == {"^"}, told
        line, column = map(int, mistake.at.split(":"))
        assert block[1].partition(" | ")[2] == recipe.read_text().splitlines()[line - 1]
        assert block[2].partition(" | ")[2].index("^") == column - 1
    assert out == ""
    assert digest(place) == before, "a mistake leaves everything as it was"
    assert rest, "one line alone is no help"


def test_the_catalogue_is_long_enough() -> None:
    assert len(MISTAKES) >= 200


def test_model_data_and_weights_that_are_not_there_are_told_beside_the_rest(place: Path, capsys) -> None:
    recipe = place / "recipe.toml"
    text = recipe.read_text().replace("./parts.py:net", "./parts.py:nett").replace("./parts.py:task", "./rows.csv")
    text = text.replace("\n[baseline]", "arguments = { targett = 1 }\n\n[baseline]", 1).replace(
        BASELINE, 'weights = "w.safetensors"'
    )
    recipe.write_text(text.replace("sparsity = 0.5", "sparsity = 5"))
    for command in (RUN, ("check", "recipe.toml")):
        assert main.run(command) == 2
        told = capsys.readouterr().err
        codes = [line[6:10] for line in told.splitlines() if line.startswith("error[")]
        assert sorted(codes) == ["E102", "E110", "E120", "E130", "E130"], told
        assert told.count(" ^") == told.count("help: ") == len(codes), told


def test_all_mistakes_of_a_recipe_are_told_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = place / "recipe.toml"
    text = recipe.read_text().replace("seed = 0", "seed = -1").replace("data =", "dat =").replace('"200%"', '"x"')
    recipe.write_text(text.replace("sparsity = 0.5", "sparsity = 5").replace("samples = 50", "sample = 50"))
    recipe.write_text(recipe.read_text() + '[[step]]\nuse = "prune.Weights"\nthreshold = 0.1\n')
    assert main.run(RUN) == 2
    told = capsys.readouterr().err
    codes = [line[6:10] for line in told.splitlines() if line.startswith("error[")]
    assert sorted(codes) == ["E102", "E102", "E103", "E104", "E105", "E110", "E113"]
    assert told.count("help: ") == len(codes)
