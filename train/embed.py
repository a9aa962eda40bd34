"""`python -m train.embed [PRESET] [--option value ...]`: fills the feature cache before a training run.

It takes the options of the run; only those that affect views and encoder matter. The run's folder is not touched.
Existing entries are read and verified, so the same command continues where it was stopped.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from eval.loop import to_picture
from stablesam_jax import parallel, params
from stablesam_jax.commands import called
from stablesam_jax.data.pipeline import BatchConfig, Feeding, Views, make_sample
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.feature_cache import FeatureCache
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import Sam
from train.options import parse_run
from train.presets import PRESETS, TrainConfig
from train.progress import clock
from train.setup import prepare
from train.step import encoder_halves
from train.stopping import stop_signals

COMPARED_VIEWS = 16  # views on which masks from cached features are compared with masks from float32 features
LINE_SECONDS = 10.0  # between two lines of progress


def embed(config: TrainConfig) -> None:
    """Encodes all views of all training pictures, and reports the effect of float16 on masks."""
    if config.cache is None:
        raise InputError("--cache: name the folder to fill, as .cache/features, here and for the training run.")
    parts = prepare(config)
    cache, views = parts.cache, parts.views
    assert cache is not None
    if len(views) > cache.capacity:
        raise InputError(
            f"--cache-limit {config.cache_limit:g}: holds {cache.capacity:,} views for certain, of {len(views):,} that "
            f"take {len(views) * cache.entry_size / 2**30:.3g} GiB; allow more, or take fewer --views or --epochs."
        )
    with stop_signals() as stop:
        for done in fill(cache, views):
            if stop.requested and done < len(views):
                print(f"stopped after {done:,} views; the same command continues", flush=True)
                return
    share, compared = rounding(cache, parts.sam, parts.tree, views, neck_trains=parts.neck_trains)
    print(f"float16: {100 * share:.4f} % of the mask pixels differ on {compared} views with true boxes", flush=True)


def fill(cache: FeatureCache, views: Views) -> Iterator[int]:
    """Encodes missing views; yields the number of views done so far and prints progress."""
    together = parallel.ROWS * jax.local_device_count()  # all devices are busy with such a batch
    frames = grain.MapDataset.range(len(views)).map(lambda index: views[int(index)][0]).batch(together)
    options = grain.ReadOptions(num_threads=Feeding().threads, prefetch_buffer_size=4)
    done = printed = 0
    printed_at = time.monotonic()
    for pictures in frames.to_iter_dataset(options):
        cache(pictures)
        if cache.fault is not None:
            sys.exit(1)  # the cache has printed the error
        done += len(pictures)
        moment = time.monotonic()
        if moment - printed_at > LINE_SECONDS or done == len(views):
            speed = (done - printed) / (moment - printed_at)
            print(
                f"{done:,}/{len(views):,} views, {cache.encoded:,} encoded  {speed:.1f} views/s  "
                f"{clock((len(views) - done) / speed)} left  {cache.entries.size / 2**30:.2f} GiB on disk",
                flush=True,
            )
            printed, printed_at = done, moment
        yield done


def rounding(
    cache: FeatureCache, sam: Sam, tree: params.Params, views: Views, *, neck_trains: bool
) -> tuple[float, int]:
    """Measures the effect of rounding features to float16 on masks.

    Args:
        cache: filled.
        sam: the model.
        tree: its parameters.
        views: at most `COMPARED_VIEWS` of them are used, evenly spaced.
        neck_trains: as `encoder_halves`.

    Returns:
        share of the mask pixels, at the input's size, that differ between the encoder's features and the cached ones,
        for the box around the first object; and the number of views.
    """
    _, finish = encoder_halves(sam, neck_trains=neck_trains)
    size = sam.config.image_size

    @jax.jit
    def decode(tree: params.Params, features: Any, boxes: Prompts) -> Any:
        embedding = finish(tree, features)
        return sam.apply({"params": tree}, embedding, boxes, hq_token_only=sam.config.hq, method="decode")

    def masks(features: Any, boxes: Prompts) -> np.ndarray:
        logits = decode(tree, features, boxes).low_res_masks
        return to_picture(np.asarray(logits)[0, 0, 0], (size, size))

    batch = BatchConfig(
        pictures=1, prompts_per_picture=1, kinds={"gt-box": 1.0}, mask_size=sam.config.mask_size, seed=views.config.seed
    )
    chosen = np.unique(np.linspace(0, len(views) - 1, COMPARED_VIEWS).astype(int))
    shares = []
    for index in chosen:
        sample = make_sample(views, batch, int(index), int(index))
        picture, *tokens = (sample[name][None] for name in ("picture", "coords", "labels", "valid"))
        boxes = Prompts(*map(jnp.asarray, tokens))
        shares.append((masks(cache.encode(picture), boxes) != masks(cache(picture), boxes)).mean())
    return float(np.mean(shares)), len(chosen)


def main() -> None:
    """Parses the preset and the options, and encodes."""
    with exit_on_input_error():
        config = parse_run(called("embed"), PRESETS)
        parallel.split_cpu(config.batch_size)
        keep_compiled_programs()
        embed(config)


if __name__ == "__main__":
    main()
