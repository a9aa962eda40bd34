"""An export of any tool trains and is evaluated as what is built of it."""

import contextlib
import io
import json

import pytest

from convert.build_dataset import build
from eval.loop import Protocol, Segmenter, evaluate
from stablesam_jax.build import load_model
from stablesam_jax.data import sources
from tests.reference import small
from tests.reference.layouts import EXPORTS, write_export
from train import main as train_main
from train.presets import TrainConfig

STEPS = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.save_nano(tmp_path_factory.mktemp("models") / "base")


def trained(base, data, output):
    """Losses of the steps, and scores of the plugin on the same pictures."""
    config = TrainConfig(
        model=str(base),
        image_size=small.SIZE,
        data_dir=(data,),
        output=output,
        steps=STEPS,
        batch_size=2,
        prompts_per_picture=2,
        held_out=0,
        eval_every=0,
        cache=None,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        train_main.train(config)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    system = load_model(f"{base}+{output / 'plugin.safetensors'}", image_size=small.SIZE)
    (source,) = sources.open_sources([data]).values()
    protocol = Protocol(kinds=("gt-box", "noisy-box"), prompts=2)
    scores = [score for of in evaluate(Segmenter(*system), source, protocol) for score in of]
    return [line["loss"] for line in lines if "loss" in line], scores


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::stablesam_jax.errors.InputWarning")  # parts that are better kept apart
@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_and_what_is_built_of_it_have_the_same_losses_and_scores(tmp_path, name, base):
    folder = write_export(name, tmp_path / "set")
    with contextlib.redirect_stdout(io.StringIO()):
        place = build("auto", folder, tmp_path / "built")
    losses, scores = trained(base, folder, tmp_path / "run")
    assert len(losses) == STEPS
    assert (losses, scores) == trained(base, place, tmp_path / "run_of_built")
