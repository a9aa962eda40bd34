"""Published results of the paper (arXiv 2311.15776) to compare with: ViT-L, mean of the four HQ sets, percent.

mIoU, mBIoU and mSF of each kind of prompt, as its tables print them. The keys are the paper's names of systems.
"""

from collections.abc import Mapping

Figures = tuple[float, ...]  # mIoU, mBIoU, and mSF except for the true box, which is a single prompt
Rows = Mapping[str, Mapping[str, Figures]]  # system -> kind of prompt -> figures

SAM: Mapping[str, Figures] = {
    "gt-box": (79.5, 71.1),
    "noisy-box": (48.8, 42.1, 39.5),
    "1-point": (43.3, 37.4, 45.1),
    "3-points": (78.7, 69.5, 79.3),
}

TABLE_2: Rows = {
    "SAM": SAM,
    "DT-SAM": {"noisy-box": (70.6, 60.4, 64.0), "1-point": (43.1, 43.2, 37.9), "3-points": (80.3, 71.6, 80.5)},
    "PT-SAM": {"noisy-box": (70.8, 60.2, 64.1), "1-point": (43.0, 42.9, 38.3), "3-points": (80.1, 71.8, 80.4)},
    "HQ-SAM": {"noisy-box": (72.4, 62.8, 65.5), "1-point": (43.2, 44.6, 37.4), "3-points": (81.8, 73.7, 81.4)},
    "Stable-SAM": {"noisy-box": (82.3, 74.1, 82.3), "1-point": (76.9, 68.4, 71.1), "3-points": (84.0, 75.8, 84.9)},
}

TABLE_5: Rows = {
    "SAM": SAM,
    "+ DSP": {"noisy-box": (69.9, 60.2, 67.2), "1-point": (46.8, 40.8, 48.0)},
    "+ DSP + RTS": {"noisy-box": (81.7, 73.5, 81.6), "1-point": (75.9, 67.5, 70.6)},
    "+ DSP + DRP + RTS": {"noisy-box": (82.3, 74.1, 82.3), "1-point": (76.9, 68.4, 71.1)},
}

TABLE_6: Rows = {
    "SAM": SAM,
    "PT-SAM": {"gt-box": (87.6, 79.7), "noisy-box": (70.6, 60.4, 64.0)},
    "HQ-SAM": {"gt-box": (89.1, 81.8), "noisy-box": (72.4, 62.8, 65.5)},
    "Ours": {"gt-box": (87.4, 80.0), "noisy-box": (69.6, 60.0, 66.5)},
    "PT-SAM + RTS": {"gt-box": (86.8, 78.4), "noisy-box": (82.1, 73.1, 78.7)},
    "HQ-SAM + RTS": {"gt-box": (87.4, 79.8), "noisy-box": (82.9, 74.5, 80.4)},
    "Ours + RTS": {"gt-box": (86.0, 78.4), "noisy-box": (82.3, 74.1, 82.3)},
    "Ours + RTS, long": {"gt-box": (87.4, 80.1), "noisy-box": (84.4, 76.7, 85.2)},
    "HQ-SAM + Ours + RTS": {"gt-box": (88.7, 81.5), "noisy-box": (86.1, 78.7, 86.3)},
}

TABLE_7: Rows = {
    "SAM": SAM,
    "PT-SAM, 220 pictures": {"noisy-box": (77.6, 67.7, 72.6), "1-point": (71.8, 63.2, 73.0)},
    "HQ-SAM, 220 pictures": {"noisy-box": (73.5, 62.3, 67.7), "1-point": (71.3, 62.6, 72.4)},
    "Ours, 220 pictures": {"noisy-box": (78.8, 70.0, 78.9), "1-point": (73.0, 64.7, 74.5)},
    "PT-SAM, 440 pictures": {"noisy-box": (78.6, 69.0, 74.4), "1-point": (76.2, 67.4, 75.0)},
    "HQ-SAM, 440 pictures": {"noisy-box": (77.4, 67.1, 75.6), "1-point": (74.6, 64.6, 71.9)},
    "Ours, 440 pictures": {"noisy-box": (81.6, 73.5, 82.6), "1-point": (79.8, 71.5, 82.5)},
}

TABLE_11: Rows = {
    "SAM": SAM,
    "Stable-SAM, decoder finetuned": {"noisy-box": (78.5, 69.2, 79.9), "1-point": (76.0, 67.1, 78.2)},
    "Stable-SAM, spatial attention": {"noisy-box": (69.3, 59.8, 57.8), "1-point": (51.6, 44.5, 49.1)},
    "Stable-SAM": {"noisy-box": (82.3, 74.1, 82.3), "1-point": (76.9, 68.4, 71.1)},
}
