"""Rows of the training data: batches from files, against decoding the files."""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from bench.case import Case, Options
from stablesam_jax.config import MODELS
from stablesam_jax.data.pipeline import Feeding, Views, batches
from stablesam_jax.data.readers import PairsFolder
from train.presets import PRESETS
from train.setup import describe_batches, describe_views

DATA_BATCHES = 48  # many, since a stream prefetches four more, which the time must hardly contain


def data_cases(options: Options) -> Iterator[Case]:
    """Batches of 8 pictures with 4 prompts at 1024 pixels, occlusion included, against the least that a pipeline does.

    That is to decode the files of as many pictures into arrays, with as many threads.
    """
    recipe = dataclasses.replace(PRESETS["stable-sam"][1], batch_size=8, prompts_per_picture=4)
    model = MODELS["sam_vit_b"]
    config = describe_batches(recipe, model)
    for folder in options.data_dir:
        pictures = PairsFolder(folder)
        views = Views(pictures, dataclasses.replace(describe_views(recipe, model), views=1))
        for number in range(len(views.cutouts)):
            views.cutouts[number]  # loads and caches them: a run does this once

        def make(views: Views = views) -> None:
            stream = batches(views, config, Feeding(threads=options.threads))
            for _ in itertools.islice(stream, DATA_BATCHES):
                pass

        def decode(index: int, pictures: PairsFolder = pictures) -> None:
            for file in pictures.pairs[index % len(pictures)]:
                with Image.open(file) as opened:
                    np.asarray(opened)

        def decode_all(decode: Callable[[int], None] = decode) -> None:
            with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
                list(pool.map(decode, range(DATA_BATCHES * config.pictures)))

        yield Case(f"{DATA_BATCHES * config.pictures} pictures of {folder.name}", make, {"decoding alone": decode_all})
