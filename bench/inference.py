"""Rows of inference against PyTorch: encoding pictures, decoding prompts, and both together.

Both sides have the same random weights and must give the same masks.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

from bench import sam2_peer
from bench.case import Case, Options, Point, Work, count_of, peers, prepared, share_of_flips
from bench.device import on_host, torch_device
from bench.keras_peer import keras_decoder, keras_encoder
from bench.limits import Cost, cost_of
from eval.parity import torch_sam, torch_sam2, twins
from eval.parity.__main__ import IMAGE, draw_params
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import PluginConfig, SamConfig
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.metrics import stability
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.predict import compiled
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import preprocess
from stablesam_jax.predict.stable import JITTERS
from stablesam_jax.prompts import jittered_box

PHOTOGRAPH = (4000, 3000)  # width and height, 12 megapixels
SAME_EMBEDDING = {"float32": 1e-3, "tf32": 0.1, "bfloat16": 0.3}  # largest difference, in standard deviations
SAME_MASKS = {"float32": 1e-4, "tf32": 0.01, "bfloat16": 0.03}  # share of the pixels that may differ
BOX = np.array([0.2, 0.2, 0.8, 0.8])  # shares of width and height


def encoder_cases(options: Options) -> Iterator[Case]:
    """Pictures to their embeddings, without transfers: on a GPU both are in its memory."""
    for (name, config), count in itertools.product(options.configs().items(), options.pictures):
        pixels = _pixels(config, count)
        what = count_of("picture", count)

        def ours(config: SamConfig = config, pixels: np.ndarray = pixels) -> Work:
            encode = compiled.encoder(assemble(config))
            params, pictures = jax.device_put((draw_params(config, seed=0), pixels))
            return lambda: encode(params, pictures).features

        def theirs(wrap: Callable, config: SamConfig = config, pixels: np.ndarray = pixels) -> Work:
            official, pictures = official_model(config), _channels_first(pixels)
            if isinstance(official, torch_sam2.SAM2Base):
                encode = wrap(_mixed(sam2_peer.encoding(official), config))
            else:
                encode = wrap(_encoding(official.image_encoder, config))
            return _without_gradients(lambda: encode(pictures).permute(0, 2, 3, 1))

        def cost(config: SamConfig = config, pixels: np.ndarray = pixels) -> Cost:
            sam = assemble(config)
            return cost_of(functools.partial(sam.apply, method="encode"), {"params": shapes(sam)}, pixels)

        yield Case(
            f"image encoder, {what}",
            prepared(ours),
            peers(options, theirs) | keras_encoder(options, config, pixels),
            name,
            _largest_difference,
            SAME_EMBEDDING[options.dtype],
            cost,
            (Point(name, "pictures", count), Point(f"{config.name}, {what}", "px", config.image_size)),
            count,
        )


def point_cases(options: Options) -> Iterator[Case]:
    """Pictures with one foreground point each to three low-resolution masks.

    Similar to the benchmark of segment-anything-fast, which has a point for every object and also times the resizing of
    masks. Pictures and points are on the device. All pictures are encoded in one batch; PyTorch decodes them one by
    one, as its Sam does.
    """
    for (name, config), count in itertools.product(options.configs().items(), options.pictures):
        pixels = _pixels(config, count)
        points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 2)) * config.image_size
        yield Case(
            f"{count_of('picture', count)} and a point on each",
            prepared(functools.partial(_point, config, pixels, points)),
            peers(options, functools.partial(_official_point, config, pixels, points)),
            name,
            share_of_flips,
            SAME_MASKS[options.dtype],
            functools.partial(_point_cost, config, pixels, points),
            (Point(f"{name}, a point on each", "pictures", count),),
            count,
        )


def decode_cases(options: Options) -> Iterator[Case]:
    """Boxes on one embedding to low-resolution logits: SAM, HQ-SAM or SAM 2, and with the plugin against without."""
    for name, base in options.configs().items():
        sides = [("SAM 2" if base.sam2 else "SAM", base, base)]
        if not base.sam2:
            hq = dataclasses.replace(base, hq=True)
            sides.append(("HQ-SAM", hq, hq))
        sides.append(("Stable-SAM", dataclasses.replace(base, plugin=PluginConfig()), base))
        for what, config, peer in sides:
            for count in options.prompts:
                boxes = _boxes(count, (config.image_size, config.image_size))
                yield Case(
                    f"{what}, {count_of('prompt', count)}",
                    prepared(functools.partial(_decode, config, boxes)),
                    peers(options, functools.partial(_official_decode, peer, boxes))
                    | (keras_decoder(options, peer, random_embedding, boxes) if what == "SAM" else {}),
                    name,
                    difference=None if config.plugin else share_of_flips,
                    bound=SAME_MASKS[options.dtype],
                    cost=functools.partial(_decode_cost, config, boxes),
                    points=(Point(f"{what}, {name}", "prompts", count),),
                )


def predict_cases(options: Options) -> Iterator[Case]:
    """A photograph in memory and one box to a mask at the photograph's size."""
    boxes = BOX[None] * np.tile(PHOTOGRAPH, 2)
    return _whole_cases(
        options, "12 megapixels and a box to a mask", photograph(PHOTOGRAPH), boxes, lambda masks: masks
    )


def stability_cases(options: Options) -> Iterator[Case]:
    """A picture and slightly different boxes, as many as in the paper, to masks and their stability."""
    picture = photograph((1024, 768))
    boxes = _boxes(JITTERS, picture.shape[:2])

    def judge(masks: np.ndarray) -> np.ndarray:
        stability(masks)
        return masks

    return _whole_cases(options, f"a picture and {JITTERS} boxes to their stability", picture, boxes, judge)


def _whole_cases(
    options: Options, what: str, picture: np.ndarray, boxes: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Case]:
    for name, config in options.configs().items():

        def ours(config: SamConfig = config) -> Work:
            predictor = Predictor(assemble(config), draw_params(config, seed=0))

            def work() -> np.ndarray:
                predictor.set_image(picture)
                masks, _, _ = predictor.predict(box=boxes[:, None], multimask_output=False)
                return finish(masks[:, 0])

            return work

        def theirs(wrap: Callable, config: SamConfig = config) -> Work:
            predictor = torch_sam.SamPredictor(wrapped_model(config, wrap))

            def work() -> np.ndarray:
                predictor.set_image(picture)
                moved = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), picture.shape[:2])
                moved = moved.float().to(torch_device())
                masks, _, _ = predictor.predict_torch(None, None, boxes=moved, multimask_output=False)
                return finish(masks[:, 0].cpu().numpy())

            return work

        yield Case(what, prepared(ours), peers(options, theirs), name, share_of_flips, SAME_MASKS[options.dtype])


def _point(config: SamConfig, pixels: np.ndarray, points: np.ndarray) -> Work:
    sam = assemble(config)
    encode, decode = compiled.encoder(sam), compiled.decoder(sam, "multi")
    params, pictures, prompts = jax.device_put((draw_params(config, seed=0), pixels, _point_prompts(points)))
    return lambda: decode(params, encode(params, pictures), prompts).low_res_masks


def _official_point(config: SamConfig, pixels: np.ndarray, points: np.ndarray, wrap: Callable) -> Work:
    official, pictures = wrapped_model(config, wrap), _channels_first(pixels)
    coords = torch.from_numpy(points).float().to(torch_device())
    label = torch.ones((1, 1), dtype=torch.int, device=torch_device())

    def work() -> torch.Tensor:
        masks = []
        for embedding, point in zip(official.image_encoder(pictures), coords, strict=True):
            sparse, dense = official.prompt_encoder(points=(point[None, None], label), boxes=None, masks=None)
            image_pe = official.prompt_encoder.get_dense_pe()
            masks.append(official.mask_decoder(embedding[None], image_pe, sparse, dense, multimask_output=True)[0])
        return torch.cat(masks)

    return _without_gradients(work)


def _point_cost(config: SamConfig, pixels: np.ndarray, points: np.ndarray) -> Cost:
    def both(sam: Sam, pictures: jax.Array, prompts: Prompts) -> jax.Array:
        return sam.decode(sam.encode(pictures), prompts, masks="multi").low_res_masks

    sam = assemble(config)
    return cost_of(functools.partial(sam.apply, method=both), {"params": shapes(sam)}, pixels, _point_prompts(points))


def _point_prompts(points: np.ndarray) -> Prompts:
    """(B, 2) points -> one prompt for each picture."""
    tokens = [sparse_tokens(point[None], np.array([1]), None, length=2) for point in points]
    return Prompts(*(jnp.asarray(np.stack(column)[:, None]) for column in zip(*tokens, strict=True)))


def _decode(config: SamConfig, boxes: np.ndarray) -> Work:
    sam = assemble(config)
    params = jax.device_put(draw_params(config, seed=0))
    embedding = jax.jit(functools.partial(sam.apply, method="fuse"))({"params": params}, random_embedding(config))
    decode = compiled.decoder(sam)
    return lambda: decode(params, embedding, _prompts(boxes)).low_res_masks


def _official_decode(config: SamConfig, boxes: np.ndarray, wrap: Callable) -> Work:
    official = official_model(config)
    embedding = random_embedding(config)
    device = torch_device()
    if isinstance(official, torch_sam2.SAM2Base):
        of_sam2 = wrap(_mixed(sam2_peer.decoding(official, embedding, device), config))
        return _without_gradients(lambda: of_sam2(torch.from_numpy(boxes).to(device)))
    features = torch.tensor(np.asarray(embedding.features, np.float32)).permute(0, 3, 1, 2).contiguous().to(device)
    # HQ-SAM's decoder fuses embedding and early features in every call; ours fuses once a picture, unmeasured here.
    early = {}
    if config.hq:
        early_features = torch.tensor(np.asarray(embedding.early, np.float32)).to(device)
        early = {"hq_token_only": False, "interm_embeddings": [early_features]}

    def decode(boxes: torch.Tensor) -> torch.Tensor:
        sparse, dense = official.prompt_encoder(points=None, boxes=boxes, masks=None)
        image_pe = official.prompt_encoder.get_dense_pe()
        return official.mask_decoder(features, image_pe, sparse, dense, multimask_output=False, **early)[0][:, 0]

    wrapped = wrap(_mixed(decode, config))
    return _without_gradients(lambda: wrapped(torch.from_numpy(boxes).to(device)))


def _decode_cost(config: SamConfig, boxes: np.ndarray) -> Cost:
    sam = assemble(config)
    variables = {"params": {name: part for name, part in shapes(sam).items() if name != "image_encoder"}}
    embedding = jax.eval_shape(functools.partial(sam.apply, method="fuse"), variables, random_embedding(config))
    return cost_of(functools.partial(sam.apply, method="decode"), variables, embedding, _prompts(boxes))


def random_embedding(config: SamConfig) -> ImageEmbedding:
    rng = np.random.default_rng(0)
    sam = assemble(config)
    pictures = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    expected = jax.eval_shape(functools.partial(sam.apply, method="encode"), {"params": shapes(sam)}, pictures)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype), expected)


def _prompts(boxes: np.ndarray) -> Prompts:
    count = len(boxes)
    return Prompts(
        coords=jnp.asarray(boxes.reshape(1, count, 2, 2)),
        labels=jnp.asarray(np.tile(np.array([2, 3], np.int32), (1, count, 1))),
        valid=jnp.asarray(np.ones((1, count, 2), bool)),
    )


def _boxes(count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, 4) XYXY float32."""
    rng = np.random.default_rng(0)
    box = BOX * np.tile(size_hw[::-1], 2)
    return np.stack([jittered_box(rng, box, size_hw=size_hw) for _ in range(count)]).astype(np.float32)


def photograph(size: tuple[int, int]) -> np.ndarray:
    """A photograph resized to (width, height)."""
    return np.asarray(Image.fromarray(read_picture(IMAGE)).resize(size, Image.Resampling.BICUBIC))


def _pixels(config: SamConfig, count: int) -> np.ndarray:
    """(B, S, S, 3): a photograph, preprocessed and repeated."""
    picture = preprocess(photograph((config.image_size, config.image_size)), config)
    return np.repeat(picture[None], count, axis=0)


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch_device())


def official_model(config: SamConfig) -> torch_sam.Official:
    return twins.load_official(config, draw_params(config, seed=0)).to(torch_device())


def wrapped_model(config: SamConfig, wrap: Callable) -> torch_sam.Official:
    official = official_model(config)
    official.image_encoder.forward = wrap(_encoding(official.image_encoder, config))
    official.mask_decoder.forward = wrap(_mixed(official.mask_decoder.forward, config))
    return official


def _encoding(encoder: torch.nn.Module, config: SamConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    forward = encoder.forward
    if config.dtype == "float32":
        return forward
    encoder.to(torch.bfloat16)
    return lambda pictures: forward(pictures.to(torch.bfloat16)).float()


def _mixed(decode: Callable[..., Any], config: SamConfig) -> Callable[..., Any]:
    """Under autocast if the configuration is of bfloat16."""
    if config.dtype == "float32":
        return decode

    def mixed(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(torch_device().type, torch.bfloat16):
            result = decode(*arguments, **options)
        return jax.tree.map(torch.Tensor.float, result)

    return mixed


def _without_gradients(work: Work) -> Work:
    return torch.no_grad()(work)


def _largest_difference(ours: Any, theirs: Any) -> float:
    ours, theirs = on_host(ours), on_host(theirs)
    return float(np.abs(ours - theirs).max() / theirs.std())
