"""Exported programs take any number of pictures, prompts and tokens, and give what the model gives."""

import functools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from convert import to_stablehlo as module
from convert.to_stablehlo import DECODER, ENCODER, SUFFIX, exported, main
from stablesam_jax.config import PluginConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict.predictor import Predictor
from tests.reference import small

LOGITS, MEAN_LOGITS, IOU = 2.5e-5, 4e-6, 2e-6  # DESIGN 8, in standard deviations; of the predicted IoU absolute


FIRST_PASS = PluginConfig(first_pass=(0.8, 0.7, 0.1, 0.5))
SYSTEMS = {
    "stable": small.stable_nano,
    "first pass": functools.partial(small.system, hq=False, plugin=FIRST_PASS),
    "hq": functools.partial(small.system, hq=True, plugin=PluginConfig()),
}


@functools.cache
def programs(system):
    """Serialised and read again."""
    return {
        name: export.deserialize(bytearray(program.serialize()))
        for name, program in exported(*SYSTEMS[system](), ("cpu",)).items()
    }


def inputs(batch, count, tokens, seed=0):
    rng = np.random.default_rng(seed)
    side, mask = small.CONFIG.image_size, small.CONFIG.mask_size
    pictures = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    return pictures, Prompts(
        coords=rng.uniform(0, side, (batch, count, tokens, 2)).astype(np.float32),
        labels=rng.integers(-1, 4, (batch, count, tokens)).astype(np.int32),
        valid=rng.random((batch, count, tokens)) < 0.8,
        masks=rng.normal(size=(batch, count, mask, mask)).astype(np.float32),
        masks_valid=rng.random((batch, count)) < 0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "batch", "count", "tokens"),
    [
        ("stable", 1, 1, 2),
        ("stable", 3, 2, 5),
        ("stable", 1, 4, 20),
        ("first pass", 3, 2, 3),
        ("hq", 1, 2, 2),
        ("hq", 3, 1, 4),
    ],
)
def test_one_export_takes_any_numbers_and_gives_what_the_model_gives(system, batch, count, tokens):
    """With 20 tokens the model itself uses another order of matmuls, equal up to rounding."""
    sam, params = SYSTEMS[system]()
    pictures, prompts = inputs(batch, count, tokens)
    fields = {name: getattr(prompts, name) for name in ("coords", "labels", "valid", "masks", "masks_valid")}
    embedding = programs(system)[ENCODER].call({"pictures": pictures})
    found = programs(system)[DECODER].call(embedding, fields)

    def direct(pictures, prompts):
        embedding = sam.apply({"params": params}, pictures, method="encode")
        return embedding.features, sam.apply({"params": params}, embedding, prompts, masks="all", method="decode")

    features, expected = jax.jit(direct)(pictures, prompts)
    assert found["low_res_masks"].shape == (batch, count, 4, *[sam.config.mask_size] * 2)
    np.testing.assert_allclose(embedding["features"], features, atol=4e-5 * features.std(), rtol=0)
    difference = np.abs(np.asarray(found["low_res_masks"] - expected.low_res_masks)) / expected.low_res_masks.std()
    assert difference.max() <= LOGITS
    assert np.sqrt(np.square(difference).mean()) <= MEAN_LOGITS
    if sam.config.hq:
        scale = expected.hq_masks.std()
        np.testing.assert_allclose(found["hq_masks"], expected.hq_masks, atol=LOGITS * scale, rtol=0)
    np.testing.assert_allclose(found["iou_predictions"], expected.iou_predictions, atol=IOU, rtol=0)


@pytest.mark.slow
def test_the_files_run_in_a_process_without_this_package(tmp_path, monkeypatch):
    """By the example of their own readme."""
    monkeypatch.setattr(module, "load_model", lambda system: small.stable_nano())
    main(["--system", "stable", "--output", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{name}{ending}" for name in (ENCODER, DECODER) for ending in (SUFFIX, ".stablehlo")),
        "README.md",
    }
    code = (tmp_path / "out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    picture = np.random.default_rng(0).integers(0, 255, (320, 400, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "out/picture.jpg", quality=100)
    stop = "import sys; sys.modules['stablesam_jax'] = None\n"
    ended = subprocess.run(
        [sys.executable, "-c", stop + code], cwd=tmp_path / "out", capture_output=True, text=True, env=os.environ
    )
    assert ended.returncode == 0, ended.stderr
    rows, columns, area = map(int, re.match(r"\((\d+), (\d+)\) (\d+) ", ended.stdout).groups())
    predictor = Predictor(*small.stable_nano())
    mask, _, _ = predictor.predict(
        box=[40, 30, 300, 250], multimask_output=False, picture=predictor.encode(tmp_path / "out/picture.jpg")
    )
    assert (rows, columns) == (320, 400)
    assert abs(area - int(mask.sum())) <= 0.01 * mask.size  # Pillow resizes with other edges than the predictor


def test_an_output_that_exists_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--system", "sam_nano", "--output", str(tmp_path)])
    assert end.value.code == 2
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err


def test_a_users_own_function_of_the_models_structures_can_be_serialised():
    """`Prompts`, `ImageEmbedding` and `Masks`, fields that are None included."""
    prompts = Prompts(coords=np.zeros((1, 1, 2, 2), np.float32), labels=np.zeros((1, 1, 2), np.int32), valid=None)
    embedding = ImageEmbedding(features=np.ones((1, 2, 2, 3), np.float32))
    program = export.export(jax.jit(lambda embedding, prompts: (embedding, prompts)))(embedding, prompts)
    again = export.deserialize(bytearray(program.serialize()))
    assert again.in_tree == program.in_tree
    found = again.call(embedding, prompts)
    assert isinstance(found[0], ImageEmbedding)
    assert isinstance(found[1], Prompts)
    np.testing.assert_array_equal(found[0].features, embedding.features)
