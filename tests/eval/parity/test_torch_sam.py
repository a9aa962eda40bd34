"""The reference is the official model in names, shapes and results; and its random weights leave nothing idle."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.config import MODELS, SamConfig
from tests.reference.sam_pair import CONFIG, HQ_CONFIG, TINY_CONFIG

# isort: split
# eval.parity.torch_sam has made them importable.
import segment_anything
import segment_anything_hq

ROOT = pathlib.Path(__file__).resolve().parents[3]
OFFICIAL = {
    "sam_vit_b": segment_anything.sam_model_registry["vit_b"],
    "hq_sam_vit_b": segment_anything_hq.sam_model_registry["vit_b"],
    "hq_sam_vit_tiny": segment_anything_hq.sam_model_registry["vit_tiny"],
    "mobile_sam": segment_anything_hq.sam_model_registry_baseline["vit_tiny"],
}


def layout(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_tensors_are_those_of_the_official_registry(name):
    # TinyViT draws a number while it is built, so it needs a true device.
    with torch.device("cpu" if "vit_b" not in name else "meta"):
        assert layout(torch_sam.build(MODELS[name])) == layout(OFFICIAL[name]())


def test_a_model_without_an_official_twin_is_refused():
    with pytest.raises(TypeError, match="LiteConfig"):
        torch_sam.build(MODELS["sam_nano"])


@pytest.fixture(scope="module")
def tiny():
    """A small TinyViT at the size that the official class knows, and its picture."""
    sam = torch_sam.build(dataclasses.replace(TINY_CONFIG, image_size=1024)).requires_grad_(False)
    torch_sam.randomise(sam, 0)
    return sam.image_encoder, torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))


def test_at_1024_pixels_tiny_vit_is_the_official_one_to_the_bit(tiny):
    encoder, picture = tiny
    embedding, (early,) = encoder(picture)
    official_embedding, (official_early,) = torch_sam.hq_modeling.TinyViT.forward_features(encoder, picture)
    assert embedding.equal(official_embedding)
    assert early.equal(official_early)


def test_without_hq_the_embedding_comes_alone(tiny):
    encoder, picture = tiny
    plain = torch_sam.build(dataclasses.replace(TINY_CONFIG, hq=False, image_size=1024)).image_encoder
    plain.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert plain(picture).equal(encoder(picture)[0])


def biases_in_use(encoder):
    return encoder.layers[1].blocks[0].attn.ab


def test_attention_biases_are_those_loaded_last(tiny):
    encoder, _ = tiny
    other = torch_sam.build(TINY_CONFIG).image_encoder
    other.load_state_dict(encoder.state_dict())
    assert biases_in_use(other).equal(biases_in_use(encoder))


def test_the_official_registrys_model_ignores_its_attention_biases_until_eval_is_called(tmp_path, capsys):
    # Why the reference is not the registry's: it calls eval() before it loads, and gathers zeros.
    sam = torch_sam.build(MODELS["hq_sam_vit_tiny"])
    torch_sam.randomise(sam, 0)
    torch.save(sam.state_dict(), tmp_path / "tiny.pth")
    official = OFFICIAL["hq_sam_vit_tiny"](tmp_path / "tiny.pth")
    assert "All keys matched" in capsys.readouterr().out
    assert not biases_in_use(official.image_encoder).any()
    official.eval()
    assert biases_in_use(official.image_encoder).equal(biases_in_use(sam.image_encoder))


@pytest.fixture(scope="module", params=[CONFIG, HQ_CONFIG, TINY_CONFIG], ids=["SAM", "HQ-SAM", "HQ-SAM tiny"])
def random_sam(request) -> tuple[SamConfig, torch_sam.Official]:
    sam = torch_sam.build(request.param).requires_grad_(False)
    torch_sam.randomise(sam, 0)
    return request.param, sam


def test_no_tensor_is_trivial(random_sam):
    for name, tensor in random_sam[1].state_dict().items():
        if tensor.ndim == 0:
            assert tensor > 0, name
        else:
            assert 0.005 < tensor.std() < 2, name
        assert (tensor > 0).all() or not name.endswith("running_var"), name


def test_activations_stay_bounded_from_the_picture_to_the_embedding(random_sam):
    config, sam = random_sam
    deviations = {}

    def note(name):
        return lambda module, inputs, output: deviations.update({name: output.std().item()})

    for name, module in sam.image_encoder.named_modules():
        if name.rpartition(".")[0].endswith(("blocks", "layers", "neck")) or name == "patch_embed":
            module.register_forward_hook(note(name))
    sam.image_encoder(torch.randn(1, 3, config.image_size, config.image_size))
    assert len(deviations) >= 9
    assert all(0.3 < deviation < 5 for deviation in deviations.values()), deviations


def test_logits_are_on_the_scale_of_trained_models(random_sam):
    config, sam = random_sam
    generator = torch.Generator().manual_seed(1)
    grid, width = config.grid_size, config.embedding_width
    embedding = torch.randn(1, width, grid, grid, generator=generator)
    sparse, dense = sam.prompt_encoder(None, torch.tensor([[0.1, 0.2, 0.6, 0.9]]) * config.image_size, None)
    features = {}
    if config.hq:
        early_width = sam.mask_decoder.compress_vit_feat[0].in_channels
        early = torch.randn(1, grid, grid, early_width, generator=generator)
        features["hq_features"] = torch_sam.picture_features(sam.mask_decoder, embedding, early)
    logits, iou = sam.mask_decoder.predict_masks(
        embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, **features
    )
    for of_kind in (logits[:, :4], logits[:, 4:])[: 1 + config.hq]:
        assert 4 < of_kind.std() < 16
    assert ((iou > -0.5) & (iou < 2)).all()


WITHOUT_SAM2 = """
import sys
sys.modules["sam2"] = None  # as if it were not installed
from eval.parity import torch_sam2, twins
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError
assert not isinstance(twins.build_official(MODELS["mobile_sam"]), torch_sam2.SAM2Base)
try:
    torch_sam2.build(MODELS["sam2_hiera_t"])
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_all_models_but_sam_2_need_no_sam2_and_sam_2_says_how_to_install_it():
    done = subprocess.run([sys.executable, "-c", WITHOUT_SAM2], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sam2_hiera_t: needs sam2, not installed here; SAM2_BUILD_CUDA=0 pip install ")
