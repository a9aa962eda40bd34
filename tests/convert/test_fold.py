"""A folded plugin is a plain SAM: exact for the linear form, and its file is one that the official package loads."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from convert import fold, folding
from convert.flax_to_torch import model_state, write_state
from eval.parity import differences, torch_sam, twins
from eval.parity.__main__ import IMAGE
from stablesam_jax.build import assemble, load_model, shapes
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.plugin_file import save_plugin
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import flatten, unflatten
from stablesam_jax.prompts import Prompt
from tests.reference import official, small
from tests.reference.sam_pair import quick_jit

from segment_anything import sam_model_registry  # isort: skip

LINEAR = PluginConfig(resample="linear", router=False, strength=0.8)
PROMPTS = [
    Prompt(box=np.array([60.0, 40, 300, 280], np.float32)),
    Prompt(points=np.array([[200.0, 150], [90, 40]], np.float32), labels=np.array([1, 0], np.int32)),
]


def drawn(config):
    """A plugin with values that affect masks in every leaf."""
    rng = np.random.default_rng(4)

    def draw(path, shape):
        deviation = 1.5 / shape[-2] ** 0.5 if path.endswith(("down", "up", "kernel")) else 0.3
        return (path.endswith("scale") + deviation * rng.standard_normal(shape)).astype(np.float32)

    return unflatten(
        {path: draw(path, leaf.shape) for path, leaf in flatten(shapes(assemble(config))["plugin"]).items()}
    )


def unfolded(config, plugin=LINEAR):
    """The official model with random weights, as ours with a random plugin."""
    twin = torch_sam.build(config)
    torch_sam.randomise(twin, seed=0)
    config = dataclasses.replace(config, plugin=dataclasses.replace(plugin, embedding_width=config.embedding_width))
    return assemble(config), twins.convert(twin.state_dict(), config) | {"plugin": drawn(config)}


def outputs(sam, params, picture):
    """What parity compares, of a model with a plugin."""
    batch = twins.stack_prompts(PROMPTS, picture.shape[:2], sam.config)

    def run(params, pixels):
        variables = {"params": params}
        embedding = sam.apply(variables, pixels, method="encode")
        forms = [sam.apply(variables, embedding, batch, method="decode", **form) for form in twins.FORMS]
        masks, ious = zip(*((one.low_res_masks[0], one.iou_predictions[0]) for one in forms), strict=True)
        return embedding.features[0], jax.numpy.concatenate(masks, axis=1), jax.numpy.concatenate(ious, axis=1)

    pixels = twins.preprocess(picture, sam.config)[None]
    features, masks, ious = map(np.array, quick_jit(run)(params, pixels))
    full = twins.upscale_logits(masks, picture.shape[:2], sam.config.frame)
    return {
        twins.EMBEDDING: features,
        twins.LOW_RES: masks,
        twins.DECODER: masks,
        twins.IOU: ious,
        twins.FULL_RES: full,
    }


def check_parity(ours, twin, picture):
    """The folded file in the official package against the model that was folded, within the bounds of parity."""
    theirs = twins.run_official(twin.eval(), picture, PROMPTS, ours)
    compared = {name: theirs[name] for name in (twins.DECODER, twins.LOW_RES, twins.IOU, twins.FULL_RES)}
    rows = differences.compare(ours, compared)
    assert all(row.ok for row in rows), rows


def test_the_linear_form_is_folded_exactly_and_the_official_classes_load_it(tmp_path):
    sam, params = unfolded(official.VIT)
    picture = np.asarray(Image.open(IMAGE))
    ours = outputs(sam, params, picture)
    plain, folded = folding.fold(sam, params, {})
    assert plain.config == official.VIT
    write_state(model_state(folded), tmp_path / "folded.pth")
    twin = torch_sam.build(official.VIT)
    twin.load_state_dict(torch.load(tmp_path / "folded.pth", weights_only=True), strict=True)
    check_parity(ours, twin, picture)
    changed = {path for path, leaf in flatten(folded).items() if leaf is not flatten(params)[path]}
    places = ("layers_0/cross_attn_token_to_image", "final_attn_token_to_image")
    leaves = ("k_proj/kernel", "v_proj/kernel", "v_proj/bias")
    assert changed == {f"mask_decoder/transformer/{place}/{leaf}" for place in places for leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("config", [dataclasses.replace(official.VIT, hq=True), official.SAM2], ids=["hq", "sam 2"])
def test_of_hq_sam_and_sam_2_too_and_the_official_classes_load_the_file(config, tmp_path):
    sam, params = unfolded(config)
    base = {part: params[part] for part in ("image_encoder", "prompt_encoder", "mask_decoder")}
    save_model(tmp_path / "base", base, config=config, source={})
    plugin = tmp_path / "plugin.safetensors"
    save_plugin(plugin, params["plugin"], config=sam.config.plugin, metadata={})
    system, output = f"{tmp_path / 'base'}+{plugin}", tmp_path / "folded.pt"
    videos = None
    if config.sam2:
        videos = tmp_path / "official.pt"
        torch.save({"model": official.state_dict(config)}, videos)
    fold.convert(fold.Options(system=system, output=output, limit=1, prompts=1, video_weights=videos))
    state = torch.load(output, weights_only=True)
    twin = torch_sam.build(config)
    twin.load_state_dict(state["model"] if config.sam2 else state, strict=True)
    picture = np.asarray(Image.open(IMAGE))
    check_parity(twins.run_ours(sam, params, picture, PROMPTS), twin, picture)


def test_weights_for_videos_are_of_a_file_of_sam_2(tmp_path):
    for output, message in (("out.pth", "stable_sam_nano_one_object is no SAM 2"), ("out", "out is a folder")):
        options = fold.Options(
            system="stable_sam_nano_one_object", output=tmp_path / output, video_weights=tmp_path / "official.pt"
        )
        with pytest.raises(InputError, match=message):
            fold.convert(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("attentions", [(2, 0), (0, 1, 2)], ids=str)
def test_every_attention_gets_its_own_maps(attentions):
    sam, params = unfolded(official.VIT, dataclasses.replace(LINEAR, attentions=attentions))
    plain, folded = folding.fold(sam, params, {})
    batch = twins.stack_prompts(PROMPTS, (333, 500), sam.config)
    features = np.random.default_rng(0).standard_normal((1, 2, 2, 32), np.float32)
    decode = {
        name: np.asarray(quick_jit(model.apply, static_argnames="method")(
            {"params": leaves}, ImageEmbedding(features), batch, method="decode"
        ).low_res_masks)
        for name, model, leaves in (
            ("unfolded", sam, params),
            ("folded", plain, folded),
            ("base", plain, {part: leaves for part, leaves in params.items() if part != "plugin"}),
        )
    }  # fmt: skip
    deviation = decode["unfolded"].std()
    assert np.abs(decode["folded"] - decode["unfolded"]).max() < 2.5e-5 * deviation
    assert np.abs(decode["base"] - decode["unfolded"]).max() > 0.1 * deviation


def test_deformable_sampling_at_its_start_folds_to_the_weights_of_the_base():
    sam, params = small.system(hq=False, plugin=PluginConfig())
    _, folded = folding.fold(sam, params, {0: (0.5, 0.5), 2: (0.3, 0.7)})
    base = small.nano()[1]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7), folded, dict(base))


def test_of_deformable_sampling_projection_strength_and_mean_alpha_are_folded():
    sam, params = small.system(hq=False, plugin=PluginConfig(strength=0.5))
    rng = np.random.default_rng(0)
    project = {"kernel": rng.standard_normal((256, 256), np.float32), "bias": rng.standard_normal(256, np.float32)}
    params = params | {"plugin": params["plugin"] | {"dsp": params["plugin"]["dsp"] | {"project": project}}}
    _, folded = folding.fold(sam, params, {0: (0.6, 0.2), 2: (0.4, 0.8)})
    before, after = (
        tree["mask_decoder"]["transformer"]["layers_0"]["cross_attn_token_to_image"] for tree in (params, folded)
    )
    x = rng.standard_normal((5, 256), np.float32)
    mixed = 0.5 * (0.6 * (x @ project["kernel"] + project["bias"]) + 0.2 * x) + 0.5 * x
    expected = mixed @ before["v_proj"]["kernel"] + before["v_proj"]["bias"]
    np.testing.assert_allclose(x @ after["v_proj"]["kernel"] + after["v_proj"]["bias"], expected, rtol=1e-3, atol=1e-3)
    keys = mixed @ before["k_proj"]["kernel"] - x @ after["k_proj"]["kernel"]
    np.testing.assert_allclose(keys, np.broadcast_to(keys[:1], keys.shape), atol=1e-3)  # the same for all cells


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "X: has no plugin to fold; name one, as BASE"),
        ({"first_pass": (0.8, 0.4, 0.2, 0.4)}, "acts only where a first pass finds a poor mask"),
        ({"resample": "cbam"}, "is spatial attention"),
        ({"amplitude": "gate"}, "by a gate, which is not linear"),
    ],
)
def test_what_no_weights_can_hold_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        folding.check_foldable("X", None if changes is None else PluginConfig(**changes))


def test_a_first_pass_is_refused_and_nothing_is_overwritten(tmp_path, capsys):
    def refusal(*arguments):
        with pytest.raises(SystemExit) as stop:
            fold.main(arguments)
        assert stop.value.code == 2
        assert list(tmp_path.iterdir()) == there
        return capsys.readouterr().err

    there = []
    system = ("--system", "stable_sam_nano_one_object")
    assert "first pass" in refusal("--system", "stable_sam_nano", "--output", str(tmp_path / "out"))
    assert "at least 1" in refusal(*system, "--output", str(tmp_path / "out"), "--limit", "0")
    (tmp_path / "out.md").write_text("mine")
    there = list(tmp_path.iterdir())
    assert "out.md: exists already" in refusal(*system, "--output", str(tmp_path / "out"))


@pytest.mark.slow
def test_the_command_writes_a_folder_and_a_report(tmp_path, capsys):
    sam, params = small.stable_nano()
    save_model(tmp_path / "stable", params, config=sam.config, source={})
    data = small.save_pairs(tmp_path / "pairs", 2)
    fold.main(
        [
            "--system",
            str(tmp_path / "stable"),
            "--output",
            str(tmp_path / "folded"),
            "--data-dir",
            str(data),
            "--prompts",
            "2",
        ]
    )
    printed = capsys.readouterr().out
    report = (tmp_path / "folded.md").read_text()
    for line in ("| unfolded |", "| folded |", "| base |", "| pixels of folded that differ from unfolded, in % |"):
        assert line in printed
        assert line in report
    assert "alpha at 0" in report
    plain, folded = load_model(tmp_path / "folded")
    assert plain.config == dataclasses.replace(sam.config, plugin=None)
    assert folded.keys() == {"image_encoder", "prompt_encoder", "mask_decoder"}


@pytest.mark.slow
def test_a_folded_vit_b_is_an_official_file_with_the_logits_of_its_plugin(tmp_path):
    sam, params = unfolded(MODELS["sam_vit_b"])
    base = {part: leaves for part, leaves in params.items() if part != "plugin"}
    save_model(tmp_path / "base", base, config=MODELS["sam_vit_b"], source={})
    plugin = tmp_path / "plugin.safetensors"
    save_plugin(plugin, params["plugin"], config=sam.config.plugin, metadata={"base": "sam_vit_b"})
    output = tmp_path / "folded.pth"
    fold.convert(fold.Options(system=f"{tmp_path / 'base'}+{plugin}", output=output, limit=1, prompts=1))
    twin = sam_model_registry["vit_b"](checkpoint=output)  # loads with strict=True
    picture = np.asarray(Image.open(IMAGE))
    check_parity(outputs(sam, params, picture), twin, picture)
