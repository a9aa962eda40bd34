"""Official weights become a checkpoint folder, exactly and whole, or one line says why not."""

import functools
import importlib.util
import pathlib
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from convert.rules import rule_of, source_name  # noqa: E402
from convert.sam_to_flax import main, recognise  # noqa: E402
from stablesam_jax.build import build, shapes  # noqa: E402
from stablesam_jax.checkpoint import load_model  # noqa: E402
from stablesam_jax.config import MODELS, SamConfig, ViTConfig  # noqa: E402
from stablesam_jax.errors import InputError  # noqa: E402
from stablesam_jax.model.sam import Sam  # noqa: E402
from stablesam_jax.params import flatten  # noqa: E402

TINY = SamConfig(encoder=ViTConfig(width=16, depth=2, heads=2, global_blocks=(1,)), image_size=32)


def official_shapes(config):
    """Names and shapes that our table expects of a state dict."""
    expected = {}
    for path, leaf in flatten(shapes(Sam(config))).items():
        axes = rule_of(path).axes
        expected[source_name(path)] = leaf.shape if axes is None else tuple(leaf.shape[i] for i in np.argsort(axes))
    return expected


def random_state(config):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in official_shapes(config).items()}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return tmp_path / "tiny.pth", tmp_path / "tiny", random_state(TINY)


def run(checkpoint, output):
    main(["--checkpoint", str(checkpoint), "--output", str(output)])


def refusal(capsys, checkpoint, output):
    """The one line that the command answers with."""
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, output)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.fixture
def modeling(monkeypatch):
    """segment_anything's classes alone: the package itself would import torchvision."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra [parity]")
    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("segment_anything")
    package.__path__ = [str(pathlib.Path(spec.origin).parent)]
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    yield importlib.import_module("segment_anything.modeling")
    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("model", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_names_and_shapes_are_those_of_the_official_classes(model, modeling):
    config = MODELS[model]
    encoder = config.encoder
    with torch.device("meta"):
        sam = modeling.Sam(
            image_encoder=modeling.ImageEncoderViT(
                embed_dim=encoder.width,
                depth=encoder.depth,
                num_heads=encoder.heads,
                use_rel_pos=True,
                window_size=encoder.window_size,
                global_attn_indexes=encoder.global_blocks,
                norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
            ),
            mask_decoder=modeling.MaskDecoder(
                transformer_dim=256,
                transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            ),
        )
    state = {name: tuple(tensor.shape) for name, tensor in sam.state_dict().items()}
    assert state == official_shapes(config)
    assert recognise(state) == model


def test_a_conversion_keeps_every_bit_and_says_what_it_did(tiny, capsys):
    file, output, state = tiny
    torch.save(state, file)
    run(file, output)
    printed = capsys.readouterr().out
    assert "model    tiny" in printed
    assert f"tensors  {len(state)}" in printed
    _, params = build(output)
    for path, leaf in flatten(params).items():
        axes = rule_of(path).axes
        source = state[source_name(path)].numpy()
        np.testing.assert_array_equal(leaf, source if axes is None else source.transpose(axes))
    assert load_model(output)[2]["source"]["file"] == "tiny.pth"


def test_vit_b_converts(tmp_path):
    # One number for each tensor: as large as the real file, but quick to compress.
    state = {
        name: torch.full(shape, float(index))
        for index, (name, shape) in enumerate(official_shapes(MODELS["sam_vit_b"]).items())
    }
    torch.save(state, tmp_path / "b.pth")
    run(tmp_path / "b.pth", tmp_path / "b")
    name, params, _ = load_model(tmp_path / "b")
    assert name == "sam_vit_b"
    for path, leaf in flatten(params).items():
        assert (leaf == state[source_name(path)].flatten()[0].item()).all()


def test_half_precision_is_widened_and_said(tiny, capsys):
    file, output, state = tiny
    torch.save({name: tensor.half() for name, tensor in state.items()}, file)
    run(file, output)
    assert f"remark   {len(state)} tensors widened from half precision to float32" in capsys.readouterr().out
    token = load_model(output)[1]["mask_decoder"]["iou_token"]
    np.testing.assert_array_equal(token, state["mask_decoder.iou_token.weight"].half().float().numpy())


def _without_a_tensor(state):
    del state["mask_decoder.iou_token.weight"]


def _with_one_more(state):
    state["mask_decoder.extra.weight"] = torch.ones(2)


def _with_a_wrong_shape(state):
    state["image_encoder.pos_embed"] = torch.ones(1, 4, 4, 16)


def _in_double_precision(state):
    state["image_encoder.neck.1.bias"] = torch.ones(256, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_tensor, "missing (1): mask_decoder.iou_token.weight"),
        (_with_one_more, "unexpected (1): mask_decoder.extra.weight"),
        (_with_a_wrong_shape, "image_encoder.pos_embed (1, 4, 4, 16) instead of (1, 2, 2, 16)"),
        (_in_double_precision, "image_encoder.neck.1.bias float64 instead of float32"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(tiny, capsys, change, message):
    file, output, state = tiny
    change(state)
    torch.save(state, file)
    assert message in refusal(capsys, file, output)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_an_existing_output_is_left_alone(tiny, capsys):
    file, output, state = tiny
    torch.save(state, file)
    output.mkdir()
    assert "exists already" in refusal(capsys, file, output)
    assert list(output.iterdir()) == []


def test_a_missing_file_is_one_line(tiny, capsys):
    file, output, _ = tiny
    assert "no such file" in refusal(capsys, file, output)


def test_a_conversion_that_dies_before_the_rename_leaves_nothing(tiny, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    file, output, state = tiny
    torch.save(state, file)
    monkeypatch.setattr(pathlib.Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        run(file, output)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("name", "stranger"),
    [
        ("mask_decoder.hf_token.weight", "HQ-SAM"),
        ("image_encoder.trunk.pos_embed", "SAM 2"),
        ("image_encoder.layers.0.blocks.0.conv1.c.weight", "TinyViT"),
        ("transformer.layers.0.self_attn.q_proj.weight", "a mask decoder alone"),
        ("conv1.weight", "0 wide and 0 blocks deep"),
    ],
)
def test_other_models_are_called_by_their_name(name, stranger):
    with pytest.raises(InputError, match=stranger):
        recognise({name: (1,)})
