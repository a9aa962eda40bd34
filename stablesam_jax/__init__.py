"""Stable Segment Anything in JAX and Flax (arXiv 2311.15776).

Letters used in every docstring of this package:

    B  pictures in a batch              H, W  rows and columns
    N  prompts of a picture             G     side of the image embedding in cells
    K  sparse tokens of a prompt        C     channels
    T  tokens in the mask decoder       M     masks of a prompt

Coordinates are (x, y) in pixels, boxes are XYXY, pictures are (H, W, 3) uint8 in RGB.
"""
