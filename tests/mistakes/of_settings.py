"""Mistakes in the settings of trainings, steps, goals and files."""

from __future__ import annotations

from mistakes.mistake import BASELINE, RUN, Mistake

WEIGHTS = 'use = "prune.Weights"\nsparsity = 0.5\nschedule = "cubic"'
STATIC = 'use = "quantize.Static"\nsamples = 50'


def training(text: str) -> tuple[str, str]:
    """Another setting of the baseline's training."""
    return ("lr = 0.01", text)


def channels(text: str) -> tuple[str, str]:
    return (WEIGHTS, f'use = "prune.Channels"\n{text}')


def student(text: str) -> tuple[str, str]:
    return (WEIGHTS, f'use = "distill.Student"\n{text}')


def weights(text: str) -> tuple[str, str]:
    return ("sparsity = 0.5", text)


def static(text: str) -> tuple[str, str]:
    return ("samples = 50", text)


def goal(text: str) -> tuple[str, str]:
    return ('size = "200%"', text)


OF_SETTINGS = {
    # trainings
    "unknown optimizer": Mistake("E103", "must be one of", '"adamw", or "sgd"', training('optimizer = "adam"'), at="11:52"),
    "unknown schedule of learning rates": Mistake(
        "E103", '"cosine"', "learning rate", training('lr_schedule = "cosin"'), at="11:54"
    ),
    "warmup above 1": Mistake("E110", "warmup must be a number in [0, 1)", "fraction", training("warmup = 1.5"), at="11:49"),
    "momentum of 1": Mistake("E110", "momentum must be a number in [0, 1)", "SGD", training("momentum = 1.0"), at="11:51"),
    "negative weight decay": Mistake("E110", "weight_decay must be", "decay", training("weight_decay = -1"), at="11:55"),
    "gradients clipped to nothing": Mistake(
        "E110", "clip must be a number above 0", "largest norm", training("clip = 0"), at="11:47"
    ),
    "no patience": Mistake(
        "E110", "patience must be a whole number from 1", "early stopping", training("patience = 0"), at="11:51"
    ),
    "empty batches": Mistake(
        "E110", "batch_size must be a whole", "samples", ("batch_size = 32, lr", "batch_size = 0, lr"), at="11:36"
    ),
    "half a sample": Mistake("E103", "got 1.5", "samples", ("batch_size = 32, lr", "batch_size = 1.5, lr"), at="11:36"),
    "worst weights kept": Mistake("E103", '"best", "last"', "weights to return", training('keep = "worst"'), at="11:47"),
    "unknown precision": Mistake("E103", '"float16"; got', "precision", training('precision = "fp8"'), at="11:52"),
    "device of another name": Mistake("E110", 'device is "gpu"', '"cuda:1"', command=(*RUN, "--device", "gpu")),
    "device that is not there": Mistake(
        "E122", '"cuda:63" is not there', "there are: cpu", command=(*RUN, "--device", "cuda:63")
    ),
    "compiled blocks that are computed again": Mistake(
        "E111", "exclude each other", "leave one", training("compile = true, recompute = true")
    ),
    "compiled shards": Mistake(
        "E111", "shard and compile exclude", "leave one", training("shard = true, compile = true"), at="11:48"
    ),
    "shards of weights that a term reads": Mistake(
        "E111",
        "L1 reads whole weights",
        "leave shard out, or the term",
        training('shard = true, objective = [{ term = "L1", weight = 1e-4 }]'),
        at="11:48",
    ),
    "shards of weights that a schedule prunes": Mistake(
        "E111",
        "a gradual schedule changes whole weights",
        "one-shot",
        ('"cubic"\ntrain = { epochs = 1', '"cubic"\ntrain = { shard = true, epochs = 1'),
        at="19:12",
    ),
    "shards in float16": Mistake(
        "E111", "are not scaled", "bfloat16", training('shard = true, precision = "float16"'), at="11:48"
    ),
    "parts without samples": Mistake(
        "E110", "micro_batch must be a whole number from 1", "gradients", training("micro_batch = 0"), at="11:54"
    ),
    "unknown targets": Mistake("E103", '"data", "teacher"', "targets", training('targets = "teach"'), at="11:50"),
    "targets of no teacher": Mistake(
        "E111", "needs a teacher", 'targets = "data"', training('targets = "teacher"'), at="11:50"
    ),
    "until what is no number": Mistake(
        "E110", "until must be a number; got nan", "metric", training("until = nan"), at="11:48"
    ),
    "until a text": Mistake("E103", "until", "metric", training('until = "90%"'), at="11:48"),
    "neither epochs nor steps": Mistake(
        "E111", "either epochs or steps", "epochs = 5", ("epochs = 1, batch_size = 32, lr", "lr")
    ),
    "training is a number": Mistake("E103", "must be a table; got 3", "training", (BASELINE, "train = 3"), at="11:9"),
    "empty objective": Mistake("E103", "a list of tables", "TaskLoss", training("objective = []"), at="11:52"),
    "objective is a number": Mistake("E103", "a list of tables", "TaskLoss", training("objective = 3"), at="11:52"),
    "objective is a name": Mistake("E103", "a list of tables", "TaskLoss", training('objective = "L1"'), at="11:52"),
    "unknown key of a term": Mistake(
        "E102",
        '"SoftTargets.temperatur"',
        "temperature",
        training('objective = [{ term = "SoftTargets", temperatur = 2 }]'),
        at="11:77",
    ),
    "weight of a term under another name": Mistake(
        "E102", '"SoftTargets.alpha"', "available", training('objective = [{ term = "SoftTargets", alpha = 2 }]'), at="11:77"
    ),
    "soft targets without a teacher": Mistake(
        "E111", "needs a teacher", "with_teacher", training('objective = [{ term = "SoftTargets" }]'), at="10:2"
    ),
    # pruning
    "negative sparsity": Mistake("E110", "got -0.1", "fraction removed", weights("sparsity = -0.1"), at="18:12"),
    "sparsity in per cent": Mistake("E103", "got '50%'", "fraction removed", weights('sparsity = "50%"'), at="18:12"),
    "sparsity as if in per cent": Mistake("E110", "got 50", "fraction removed", weights("sparsity = 50"), at="18:12"),
    "no amount": Mistake("E111", "got none", "sparsity = 0.9", weights(""), at="16:3"),
    "threshold of 0": Mistake("E110", "threshold must be a number above 0", "pruned", weights("threshold = 0"), at="18:13"),
    "unknown scope": Mistake("E103", '"layer", "global"', "rank", weights('sparsity = 0.5\nscope = "all"'), at="19:9"),
    "patterns as one text": Mistake(
        "E103", "a list of strings", "patterns", weights('sparsity = 0.5\nexclude = "0"'), at="19:11"
    ),
    "patterns of numbers": Mistake(
        "E103", "a list of strings", "patterns", weights("sparsity = 0.5\ninclude = [0]"), at="19:12"
    ),
    "everything left out": Mistake(
        "E112", "select no parameter", "shorten", weights('sparsity = 0.5\nexclude = ["*"]'), at="16:3"
    ),
    "pattern that is not closed": Mistake("E112", '"0["', "0.weight", weights('sparsity = 0.5\ninclude = ["0["]'), at="19:12"),
    "score of data in a gradual schedule": Mistake(
        "E111", "Taylor needs data", "one-shot", weights('sparsity = 0.5\nscore = "Taylor"'), at="19:9"
    ),
    "weights that return at once": Mistake(
        "E111",
        "one-shot pruning has none",
        '"cubic"',
        (WEIGHTS, f"{WEIGHTS.replace('cubic', 'one-shot')}\nrevive = true"),
        at="20:10",
    ),
    "rounds in a gradual schedule": Mistake(
        "E111", "rounds prune a share of what is left", '"one-shot"', weights("sparsity = 0.5\nrounds = 3"), at="19:10"
    ),
    "blocks of no rows": Mistake(
        "E110", "a list of 2, each a whole number", "whole blocks", weights("sparsity = 0.5\nblock = [0, 4]"), at="19:10"
    ),
    "blocks with three sizes": Mistake(
        "E103", "block", "whole blocks", weights("sparsity = 0.5\nblock = [2, 4, 4]"), at="19:9"
    ),
    "blocks by a threshold": Mistake("E111", "mean score", "sparsity", weights("threshold = 0.1\nblock = [2, 4]"), at="19:9"),
    "unknown recovery": Mistake(
        "E103", '"least-squares"', "corrected", channels('sparsity = 0.5\nrecover = "magic"'), at="19:11"
    ),
    "no amount of channels": Mistake("E111", "got neither", 'macs = "50%"', channels(""), at="16:3"),
    "multiple of 0": Mistake(
        "E110", "multiple must be", "multiple of this number", channels("sparsity = 0.5\nmultiple = 0"), at="19:12"
    ),
    "latency in parsecs": Mistake("E113", "latency cannot be read", '"5 ms"', channels('latency = "1 parsec"'), at="18:11"),
    "negative multiply-accumulates": Mistake("E113", "macs must be above 0", "raise it", channels("macs = -5"), at="18:8"),
    "layers chosen by name": Mistake(
        "E102",
        '"prune.Layers.include"',
        "exclude",
        (WEIGHTS, 'use = "prune.Layers"\nsparsity = 0.5\ninclude = ["0"]'),
        at="19:1",
    ),
    # quantization
    "unknown calibration": Mistake("E103", '"entropy"', "ranges", static('calibration = "minmax"'), at="24:15"),
    "percentile of 0": Mistake("E110", "in (0, 100]", "percentile", static("percentile = 0"), at="24:14"),
    "percentile above 100": Mistake("E110", "in (0, 100]; got 101", "percentile", static("percentile = 101"), at="24:14"),
    "one bit": Mistake("E110", "in [2, 8] or a table; got 1", "bits per weight", static("weight_bits = 1"), at="24:15"),
    "sixteen bits": Mistake("E110", "in [2, 8] or a table; got 16", "bits per weight", static("weight_bits = 16"), at="24:15"),
    "bits that are no whole number": Mistake("E103", "got 7.5", "bits per weight", static("weight_bits = 7.5"), at="24:15"),
    "negative number of samples": Mistake("E110", "samples must be", "calibration", static("samples = -1"), at="24:11"),
    "unknown granularity": Mistake(
        "E103", '"token", "tensor"', "share a range", (STATIC, 'use = "quantize.Dynamic"\ngranularity = "row"'), at="24:15"
    ),
    "quantized twice": Mistake(
        "E112", "left to quantize", "remove this step", (STATIC, f'{STATIC}\n[[step]]\nuse = "quantize.Dynamic"'), at="25:3"
    ),
    "every layer left out": Mistake("E112", "no module of class Linear", "shorten", static('exclude = ["*"]'), at="22:3"),
    "layers that are not there": Mistake(
        "E112", 'pattern "conv"', "available: 0, 1, 2", (STATIC, 'use = "quantize.Weights"\ninclude = ["conv"]'), at="24:12"
    ),
    "neither size nor change": Mistake(
        "E111", "got neither", "max_damage = 0.005", (STATIC, 'use = "quantize.RateDistortion"'), at="22:3"
    ),
    "size of no unit": Mistake(
        "E113", "size cannot be read", "kB", (STATIC, 'use = "quantize.RateDistortion"\nsize = "4 bits"'), at="22:3"
    ),
    # distillation
    "student of nothing": Mistake("E111", "either `model`, or `width`", "width = 0.5", student(""), at="16:3"),
    "student in two ways": Mistake(
        "E111", "either `model`, or `width`", "width = 0.5", student('model = "./parts.py:net"\nwidth = 0.5'), at="16:3"
    ),
    "student that is not there": Mistake(
        "E120", 'no function "small"', "did you", student('model = "./parts.py:small"'), at="18:9"
    ),
    "student of other inputs": Mistake(
        "E121", "the model fails on inputs", "shapes", student('model = "./parts.py:flat"'), at="16:3"
    ),
    "student without width": Mistake("E110", "in (0, 1]; got 0.0", "share", student("width = 0.0"), at="18:9"),
    "student that is wider": Mistake("E110", "in (0, 1]; got 2", "share", student("width = 2"), at="18:9"),
    "unknown start of a student": Mistake(
        "E103", '"teacher", "random"', "initial weights", student('model = "./parts.py:net"\nstart = "copy"'), at="19:9"
    ),
    "start of a student that is not derived": Mistake(
        "E111", "derived by `width`", "leave out start", student('model = "./parts.py:net"\nstart = "teacher"'), at="19:9"
    ),
    "arguments of a student": Mistake(
        "E120",
        "unexpected keyword argument 'widht'",
        "in Python",
        student('model = "./parts.py:net"\narguments = { widht = 4 }'),
    ),
    "arguments of a student that are no table": Mistake(
        "E103", "must be a table; got 4", "factory", student('model = "./parts.py:net"\narguments = 4'), at="19:13"
    ),
    "student after quantization": Mistake(
        "E105",
        "distill.Student (step 3) cannot follow",
        "legal order",
        (STATIC, f'{STATIC}\n[[step]]\nuse = "distill.Student"\nmodel = "./parts.py:net"\ntrain = {{ epochs = 1 }}'),
        at="26:7",
    ),
    # goals and files
    "unknown part of the goal": Mistake("E102", '"goal.sise"', '"size"', goal('sise = "1%"'), at="14:1"),
    "negative size": Mistake("E113", "goal.size cannot be read", '"5 kB"', goal('size = "-5 kB"'), at="14:8"),
    "no size": Mistake("E113", "goal.size must be above 0", "raise it", goal("size = 0"), at="14:8"),
    "no latency": Mistake("E113", "goal.latency must be above 0", "raise it", goal('latency = "0 ms"'), at="14:11"),
    "many operations": Mistake("E113", "goal.macs cannot be read", '"5 M"', goal('macs = "many"'), at="14:8"),
    "negative drop": Mistake("E113", "goal.max_drop cannot be read", '"5pt"', goal('max_drop = "-1pt"'), at="14:12"),
    "accuracy in per cent": Mistake(
        "E113", "goal.metric cannot be reached; got 93", "at most 1", goal("metric = 93"), at="14:10"
    ),
    "goal is a list": Mistake("E103", "a string or a number", "44 kB", goal("size = [1]"), at="14:8"),
    "unknown codec": Mistake("E106", '"codecs.zip"', "Deflate", ("[goal]", '[artifact]\ncodecs = ["zip"]\n[goal]'), at="14:11"),
    "codec outside a list": Mistake(
        "E103", "a list of strings", "codecs", ("[goal]", '[artifact]\ncodecs = "x"\n[goal]'), at="14:10"
    ),
    "unknown key of the artifact": Mistake(
        "E102", '"artifact.codec"', '"codecs"', ("[goal]", "[artifact]\ncodec = []\n[goal]"), at="14:1"
    ),
}
