"""What the parity command compares."""

import numpy as np

# Names of the compared quantities in the order of computation; `twins.run_ours` documents the shapes.
INPUT = "model input"
EMBEDDING = "image embedding"
EARLY = "early features"
HQ_FEATURES = "HQ features"
STRIDE_4 = "features at stride 4"
STRIDE_8 = "features at stride 8"
SPARSE = "sparse embeddings"
DENSE = "dense embeddings"
IMAGE_PE = "dense positional encoding"
DECODER = "decoder alone"
TOKENS = "logits of each token"
LOW_RES = "low-resolution logits"
IOU = "IoU predictions"
OBJECT = "object scores"
FULL_RES = "full-resolution logits"
QUANTITIES = (
    INPUT, EMBEDDING, EARLY, HQ_FEATURES, STRIDE_4, STRIDE_8, SPARSE, DENSE, IMAGE_PE, DECODER, TOKENS, LOW_RES, IOU,
    OBJECT, FULL_RES
)  # fmt: skip
SAM2_ONLY = (STRIDE_4, STRIDE_8, OBJECT)
GRADIENT = "gradient of "  # prefix; followed by the path of a plugin's parameter, one quantity for each
Outputs = dict[str, np.ndarray]
