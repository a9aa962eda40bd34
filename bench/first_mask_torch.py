"""The same program with segment_anything: eager|compiled MODEL WEIGHTS.pth PICTURE MASK.npy."""

import sys

import numpy as np
import torch
from PIL import Image

from eval.parity import torch_sam
from stablesam_jax.config import MODELS

how, name, weights, picture_file, mask_file = sys.argv[1:]
sam = torch_sam.build(MODELS[name])  # as sam_model_registry does, for any size
sam.load_state_dict(torch.load(weights, weights_only=True))
if how == "compiled":
    sam.image_encoder.forward = torch.compile(sam.image_encoder.forward)
    sam.mask_decoder.forward = torch.compile(sam.mask_decoder.forward)
predictor = torch_sam.SamPredictor(sam.eval())
picture = np.asarray(Image.open(picture_file))
predictor.set_image(picture)
height, width = picture.shape[:2]
box = np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height])
np.save(mask_file, predictor.predict(box=box, multimask_output=False)[0])
