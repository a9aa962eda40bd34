"""How long the devices at hand take: arithmetic of an encoder, rate of the devices, shares reached elsewhere.

An estimate for planning. A device's rate in large matrix products is measured here in a second; the share of it that an
encoder reaches is taken from docs/speed.md, where both were measured.
"""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from stablesam_jax.config import MODELS, Dtype, SamConfig, ViTConfig

SIDE = {"cpu": 2048}  # of the matrices that are multiplied; on accelerators 8192
TURNS = 3
# Share of that rate that the image encoder reaches (docs/speed.md): ViT-B, 8 pictures on an H200; ViT-L on two
# cores; bfloat16 on these ViT-B.
SHARES: dict[tuple[str, Dtype], float] = {
    ("cpu", "float32"): 0.61,
    ("cpu", "bfloat16"): 0.16,
    ("gpu", "float32"): 0.69,
    ("gpu", "bfloat16"): 0.33,
}
# What a picture of a step and a decoded prompt take beside the encoder, as arithmetic at its rate: on two cores
# a cached step takes 0.29 s a picture and a prompt 17 ms, where ViT-B's encoder takes 5.6 and 4.8 s.
STEP, PROMPT = 51e9, 3.5e9
# Seconds of a core for a view of HQSeg-44K: 0.014 of a small picture, 0.033 of 3 megapixels (results/full_size.md),
# as a sixth of them are.
FEEDING = 0.018
BYTES = 0.35e6  # of a picture and its mask on the disk, assumed
SMALL_ENCODER = 2e10  # sam_nano and MobileSAM, roughly; they are for trying things out


@dataclasses.dataclass(frozen=True)
class Rate:
    """What the devices of this process do in a second."""

    kind: str  # of the devices
    devices: int
    flops: float  # of all devices together, at the share that an encoder reaches
    dtype: Dtype

    def hours(self, flops: float) -> float:
        """Time for this arithmetic."""
        return flops / self.flops / 3600


@functools.cache
def encoder_flops(model: str) -> float:
    """Arithmetic of one picture in the image encoder of a model of MODELS; a multiply-add is two."""
    config: SamConfig = MODELS[model]
    vit = config.encoder
    if not isinstance(vit, ViTConfig):
        return SMALL_ENCODER
    cells, side = config.grid_size**2, vit.window_size
    padded = (-(-config.grid_size // side) * side) ** 2  # windows cover the grid and a margin
    windowed = vit.depth - len(vit.global_blocks)
    linear = 24 * vit.width**2  # four products for queries, keys, values and output, and eight of the MLP
    attention = 4 * vit.width
    blocks = len(vit.global_blocks) * cells * (linear + attention * cells)
    blocks += windowed * (cells * 16 * vit.width**2 + padded * (8 * vit.width**2 + attention * side**2))
    patches = 2 * cells * 3 * vit.patch_size**2 * vit.width
    neck = 2 * cells * config.embedding_width * (vit.width + 9 * config.embedding_width)
    return float(blocks + patches + neck)


def assumed(devices: int, dtype: Dtype, tflops: float) -> Rate:
    """Of accelerators that reach this in large matrix products."""
    share = SHARES["gpu", dtype]
    return Rate(f"{tflops:g} TFLOP/s each, as assumed", devices, tflops * 1e12 * share * devices, dtype)


def measure(devices: int, dtype: Dtype) -> Rate:
    """Measures large matrix products on the first device.

    Args:
        devices: number that will be used. CPU devices share the cores, so that they count as one.
        dtype: of the encoder.
    """
    device = jax.devices()[0]
    side = SIDE.get(device.platform, 8192)
    matrix = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(matrix, matrix))
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - began)
    platform = "cpu" if device.platform == "cpu" else "gpu"
    together = 1 if platform == "cpu" else devices
    share = SHARES.get((platform, dtype), SHARES[platform, "float32"])
    rate = 2 * side**3 / statistics.median(times) * share * together
    return Rate(device.device_kind, devices, rate, dtype)
