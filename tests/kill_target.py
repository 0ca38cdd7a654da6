"""Writes a store as fast as it can, telling after each commit how many rows are committed; test_kill.py kills it."""

from __future__ import annotations

import os
import random
import sys
import time

import fostore
from support import probs

if __name__ == "__main__":
    path, total, num_classes, seed = sys.argv[1], *map(int, sys.argv[2:5])
    chance = random.Random(seed)
    writer = fostore.create(
        path,
        num_samples=total,
        num_classes=num_classes,
        unit_rows=1024,
        exists="resume",
        commit_seconds=chance.choice([0, 0.001, 1e9]),
        ids=range(total),
    )
    with writer:
        os.write(1, b"%d\n" % len(writer))
        while writer.missing():
            start, stop = writer.missing()[0]
            stop = min(stop, start + chance.randint(1, 1500))
            time.sleep(0.005)  # a fast machine must not be done before it is killed
            writer.append(probs(stop - start, num_classes, start=start))
            if chance.random() < 0.5:
                writer.commit()
                os.write(1, b"%d\n" % stop)
    os.write(1, b"done\n")
