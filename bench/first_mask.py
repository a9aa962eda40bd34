"""A minimal program with this library, FOLDER PICTURE MASK.npy: reads model and picture, writes the mask of a box."""

import sys

import numpy as np
from PIL import Image

from stablesam_jax import Predictor, load_model
from stablesam_jax.files.compilation_cache import keep_compiled_programs

keep_compiled_programs()
folder, picture_file, mask_file = sys.argv[1:]
predictor = Predictor(*load_model(folder))
picture = np.asarray(Image.open(picture_file))
predictor.set_image(picture)
height, width = picture.shape[:2]
box = np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height])
np.save(mask_file, predictor.predict(box=box, multimask_output=False)[0])
