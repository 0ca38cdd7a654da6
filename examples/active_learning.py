"""Active learning: ask for the labels that the model is least sure of, and grow a store of them.

    python examples/active_learning.py

Needs scikit-learn; writes `votes.zarr` and `pool.zarr` into the current folder and takes a few
seconds. Run it again and it goes on: the votes that are there stay, and more are asked for.

Two stores. `votes.zarr` keeps what annotators said, one row a labelled scan with its number in the
pool as id; each round extends it. `pool.zarr` keeps what the newest model says of the whole pool;
each round replaces it, at the moment when the new one is whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import fostore
from fostore.evaluate import accuracy, select_uncertain_samples

VOTES, POOL = Path("votes.zarr"), Path("pool.zarr")
NUM_ANNOTATORS, FIRST, MORE = 5, 40, 20


def ask(digits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """What annotators say of some scans: votes (n, 10); each of them errs once in ten times."""
    votes = np.zeros((len(numbers), 10), np.uint8)
    for row, number in zip(votes, numbers.tolist(), strict=True):
        rng = np.random.default_rng(number)  # the same scan, the same answers
        slips = rng.random(NUM_ANNOTATORS) < 0.1
        np.add.at(row, np.where(slips, rng.integers(0, 10, NUM_ANNOTATORS), digits[number]), 1)
    return votes


def label(digits: np.ndarray, numbers: np.ndarray) -> fostore.Store:
    """Have scans labelled, and extend the store of votes by them; the store, opened."""
    with fostore.create(
        VOTES, num_classes=10, kind="counts", dtype="uint8", ids="int64", exists="resume"
    ) as writer:
        writer.append(ask(digits, numbers), ids=numbers)
    return fostore.open(VOTES)


def train(images: np.ndarray, votes: fostore.Store) -> LogisticRegression:
    """A model of the scans that have votes: each digit counts by its share of them."""
    shares = votes.take(np.arange(len(votes)))
    scans, digits = np.nonzero(shares)
    model = LogisticRegression(max_iter=1000)
    return model.fit(images[votes.ids][scans], digits, sample_weight=shares[scans, digits])


def main(rounds: int) -> None:
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    test, images, digits_of_test, digits = (
        images[order[:597]],
        images[order[597:]],
        digits[order[:597]],
        digits[order[597:]],
    )

    votes = fostore.open(VOTES) if VOTES.exists() else label(digits, np.arange(FIRST))
    for number in range(rounds + 1):
        model = train(images, votes)
        generator = fostore.FirstOrderDataGenerator(model, output_mode="probs")
        said = generator.generate_distributions(test, progress=False)
        print(f"{len(votes)} labelled scans: accuracy {accuracy(said, digits_of_test):.3f}")
        if number == rounds:
            break
        pool = generator.generate_distributions(
            images, store=POOL, exists="overwrite", progress=False
        )
        others = np.setdiff1d(np.arange(len(images)), votes.ids)
        chosen = others[select_uncertain_samples(pool.select(others), n=MORE)]
        votes = label(digits, chosen)

    drawn = np.random.default_rng(1).permutation(len(images))[: len(votes)]
    shares = ask(digits, drawn)
    scans, said_digits = np.nonzero(shares)
    blind = LogisticRegression(max_iter=1000).fit(
        images[drawn][scans], said_digits, sample_weight=shares[scans, said_digits] / NUM_ANNOTATORS
    )
    print(f"as many scans drawn at random: accuracy {blind.score(test, digits_of_test):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    main(parser.parse_args().rounds)
