"""Processes that share a folder of entries, read and write at once, and are killed.

python -m tests.reference.crowd FOLDER WRITERS KILLS LIMIT

Prints JSON: entries read and found wrong by all writers, the most bytes that the folder ever held, and what the killed
ones left behind.
"""

import json
import mmap
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

from stablesam_jax.files.checkpoint import describe
from stablesam_jax.files.feature_cache import EntryFolder

SHAPE = (50, 100)
ENTRY_SIZE = 2 * 50 * 100 + 1024
BATCH = 4
ENTRIES = 150
ARRAYS = {"features": ["float16", list(SHAPE)]}


def key(number):
    return f"{number % 4:02x}{number:062x}"


def entry(number):
    return {"features": np.random.default_rng(number).standard_normal(SHAPE).astype(np.float16)}


def work(folder, limit, counts, seed):
    """Reads a batch of entries and writes those that are missing, for ever."""
    entries = EntryFolder(folder, arrays=ARRAYS, limit=limit)
    assert describe(entry(0)) == ARRAYS
    draw = random.Random(seed)
    while True:
        missing = []
        for number in draw.sample(range(ENTRIES), BATCH):
            found = entries.read(key(number))
            if found is None:
                missing.append(number)
            else:
                counts[0] += 1
                counts[1] += not np.array_equal(found["features"], entry(number)["features"])
        for number in missing:
            entries.make_room(ENTRY_SIZE)
            entries.write(key(number), entry(number))


def main(folder, writers, kills, limit):
    counts = np.frombuffer(mmap.mmap(-1, 16 * (writers + kills)), np.int64).reshape(-1, 2)
    started = 0

    def start():
        nonlocal started
        child = os.fork()
        if child == 0:
            work(folder, limit, counts[started], seed=started)
        started += 1
        return child

    def size():
        for child in running:
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
        total = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
        for child in running:
            os.kill(child, signal.SIGCONT)
        return total

    def kill(child):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    draw = random.Random(0)
    running = [start() for _ in range(writers)]
    largest = 0
    for _ in range(kills):
        time.sleep(draw.uniform(0.05, 0.15))
        largest = max(largest, size())
        kill(running.pop(0))
        running.append(start())
    for child in running:
        kill(child)
    left = len(list(pathlib.Path(folder).rglob("*.tmp")))
    reads, wrong = counts.sum(0).tolist()
    print(json.dumps({"reads": reads, "wrong": wrong, "largest": largest, "left": left, "started": started}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
