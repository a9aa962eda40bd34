"""The official side of the parity command for SAM 2: SAM2ImagePredictor, and what goes through its parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eval.parity import torch_sam2
from eval.parity.quantities import (
    DECODER,
    DENSE,
    EMBEDDING,
    FULL_RES,
    GRADIENT,
    IMAGE_PE,
    INPUT,
    IOU,
    LOW_RES,
    OBJECT,
    SPARSE,
    STRIDE_4,
    STRIDE_8,
    TOKENS,
    Outputs,
)
from stablesam_jax.prompts import Prompt

FORMS = (False, True)  # multimask_output


class _Seen:
    """Keeps the last input and output of a module; casts tensors of its input to the dtype of the model."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype):
        self.dtype = dtype
        self.kwargs: dict[str, Any] = {}
        self.output: Any = None
        self.handles = (
            module.register_forward_pre_hook(self._cast, with_kwargs=True),
            module.register_forward_hook(self._keep, with_kwargs=True),
        )

    def _cast(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(self._to_dtype, args)), {name: self._to_dtype(value) for name, value in kwargs.items()}

    def _to_dtype(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, torch.Tensor) else value

    def _keep(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.kwargs, self.output = kwargs, output


@torch.no_grad()
def run(official: torch_sam2.SAM2Base, picture: np.ndarray, prompts: Sequence[Prompt], ours: Outputs) -> Outputs:
    """Prompts SAM2ImagePredictor with one prompt after the other; see `twins.run_official`."""
    decoder = official.sam_mask_decoder
    dtype = decoder.iou_token.weight.dtype
    predictor = torch_sam2.predictor(official)
    image_encoder, prompt_encoder, mask_decoder = (
        _Seen(module, dtype) for module in (official.image_encoder, official.sam_prompt_encoder, decoder)
    )
    predictor.set_image(picture)
    features = predictor._features
    outputs = {
        INPUT: predictor._transforms(picture).permute(1, 2, 0),
        EMBEDDING: features["image_embed"][0].permute(1, 2, 0),
        STRIDE_4: features["high_res_feats"][0][0].permute(1, 2, 0),
        STRIDE_8: features["high_res_feats"][1][0].permute(1, 2, 0),
        IMAGE_PE: official.sam_prompt_encoder.get_dense_pe()[0].permute(1, 2, 0),
    }
    our_features = {
        "image_embeddings": _to_map(ours[EMBEDDING], dtype),
        "high_res_features": [_to_map(ours[name], dtype) for name in (STRIDE_4, STRIDE_8)],
    }
    parameters = {name: leaf for name, leaf in official.named_parameters() if name.startswith("plugin.")}
    lists: dict[str, list[torch.Tensor]] = {
        name: [] for name in (SPARSE, DENSE, DECODER, TOKENS, LOW_RES, IOU, OBJECT, FULL_RES)
    }
    gradients: list[tuple[torch.Tensor, ...]] = []
    for prompt in prompts:
        low_res, iou, full_res, alone = [], [], [], []
        for multi in FORMS:
            masks, _, _ = predictor.predict(
                prompt.points if len(prompt.labels) else None,
                prompt.labels if len(prompt.labels) else None,
                prompt.box,
                None if prompt.mask is None else prompt.mask[None],
                multimask_output=multi,
                return_logits=True,
            )
            full_res.append(torch.from_numpy(masks)[None])
            low_res.append(mask_decoder.output[0])
            iou.append(mask_decoder.output[1])
            arguments = dict(mask_decoder.kwargs)
            alone.append(decoder(**arguments | our_features)[0])
        sparse, dense = prompt_encoder.output
        count = len(prompt.labels)
        if prompt.box is not None:  # corners come first there, after the points here
            sparse = torch.cat([sparse[:, 2 : 2 + count], sparse[:, :2], sparse[:, 2 + count :]], dim=1)
        del arguments["multimask_output"]
        tokens, _, _, scores = decoder.predict_masks(**arguments)
        if parameters:
            with torch.enable_grad():
                decoded = [decoder(**arguments, multimask_output=multi)[0] for multi in FORMS]
                loss = torch.cat(decoded, dim=1).square().mean() / len(prompts)
            gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        found = {SPARSE: sparse[0], DENSE: dense.permute(0, 2, 3, 1), TOKENS: tokens, OBJECT: scores[0]}
        found |= {
            name: torch.cat(forms, dim=1)
            for name, forms in ((DECODER, alone), (LOW_RES, low_res), (IOU, iou), (FULL_RES, full_res))
        }
        for name, tensor in found.items():
            lists[name].append(tensor)
    for seen in (image_encoder, prompt_encoder, mask_decoder):
        for handle in seen.handles:
            handle.remove()
    outputs |= {name: torch.cat(tensors) for name, tensors in lists.items()}
    for name, *of_prompts in zip(parameters, *gradients, strict=True):
        outputs[GRADIENT + name.replace(".", "/")] = torch.stack(of_prompts).sum(dim=0)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _to_map(features: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """(H, W, C) -> (1, C, H, W)."""
    return torch.from_numpy(features).permute(2, 0, 1)[None].contiguous().to(dtype)
