"""Random choices that every machine makes alike: which pictures `--limit` takes, and generators that names seed."""

import hashlib
import json

import numpy as np


def even_draw(total: int, limit: int | None, seed: int) -> list[int]:
    """Draws indices evenly: one at random from each of `limit` equal parts of the sorted names.

    Names often begin with their kind, so that the first ones are all of one.

    Args:
        total: number of pictures.
        limit: number of indices; all if None, or if there are no more.
        seed: of the draw.

    Returns:
        ascending indices.
    """
    if limit is None or limit >= total:
        return list(range(total))
    edges = np.arange(limit + 1) * total // limit
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()


def rng_of(*key: str | int) -> np.random.Generator:
    """A generator that depends on the key alone; hash() would differ between processes.

    JSON delimits the parts, whatever characters a picture's name has.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
