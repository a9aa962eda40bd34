"""Published results of the paper (arXiv 2311.15776) to compare with, as its tables print them: ViT-L, percent.

The keys are the paper's names of systems. A kind of prompt alone stands for the mean of the four HQ sets: mIoU, mBIoU,
mSF. "coco KIND" and "sginw KIND" are AP and AP50, "mess KIND" mIoU of the five domains and their mean. The paper mixes
units in "parameters" and "learnable": MiB of float32 for whole models and HQ-SAM's parts, else 2^20 parameters.
"""

from collections.abc import Mapping

Figures = tuple[float, ...]  # of mIoU, mBIoU and mSF the last is missing for the true box, which is a single prompt
Rows = Mapping[str, Mapping[str, Figures]]  # system -> kind of prompt -> figures

SAM: Mapping[str, Figures] = {
    "gt-box": (79.5, 71.1),
    "noisy-box": (48.8, 42.1, 39.5),
    "1-point": (43.3, 37.4, 45.1),
    "3-points": (78.7, 69.5, 79.3),
}

TABLE_1: Rows = {
    "SAM": {
        "gt-box": (79.5, 71.1),
        "noisy-box": (48.8, 42.1, 39.5),
        "1-point": (43.3, 37.4, 45.1),
        "3-points": (78.7, 69.5, 79.3),
        "5-points": (83.3, 74.2, 84.7),
        "10-points": (84.8, 76.0, 87.5),
    },
}

TABLE_2: Rows = {
    "SAM": SAM,
    "DT-SAM": {"noisy-box": (70.6, 60.4, 64.0), "1-point": (43.1, 43.2, 37.9), "3-points": (80.3, 71.6, 80.5)},
    "PT-SAM": {"noisy-box": (70.8, 60.2, 64.1), "1-point": (43.0, 42.9, 38.3), "3-points": (80.1, 71.8, 80.4)},
    "HQ-SAM": {"noisy-box": (72.4, 62.8, 65.5), "1-point": (43.2, 44.6, 37.4), "3-points": (81.8, 73.7, 81.4)},
    "Stable-SAM": {"noisy-box": (82.3, 74.1, 82.3), "1-point": (76.9, 68.4, 71.1), "3-points": (84.0, 75.8, 84.9)},
}

TABLE_3: Rows = {
    "SAM": {
        "coco n-box-50": (27.3, 60.2),
        "coco n-box-60": (40.9, 75.0),
        "sginw n-box-50": (26.0, 60.8),
        "sginw n-box-60": (39.5, 73.2),
        "learnable": (1191,),
        "fps": (5.0,),
    },
    "DT-SAM": {
        "coco n-box-50": (12.2, 22.7),
        "coco n-box-60": (15.8, 28.7),
        "sginw n-box-50": (10.4, 21.5),
        "sginw n-box-60": (13.6, 27.1),
        "learnable": (3.9,),
        "fps": (5.0,),
    },
    "PT-SAM": {
        "coco n-box-50": (30.2, 63.4),
        "coco n-box-60": (41.3, 76.5),
        "sginw n-box-50": (32.1, 66.4),
        "sginw n-box-60": (41.1, 74.3),
        "learnable": (0.13,),
        "fps": (5.0,),
    },
    "HQ-SAM": {
        "coco n-box-50": (31.9, 65.5),
        "coco n-box-60": (42.9, 77.1),
        "sginw n-box-50": (33.6, 68.4),
        "sginw n-box-60": (42.2, 75.9),
        "learnable": (5.1,),
        "fps": (4.8,),
    },
    "Stable-SAM": {
        "coco n-box-50": (44.8, 76.4),
        "coco n-box-60": (50.5, 81.1),
        "sginw n-box-50": (43.3, 75.6),
        "sginw n-box-60": (48.6, 79.4),
        "learnable": (0.08,),
        "fps": (5.0,),
    },
}

TABLE_4: Rows = {
    "SAM": {"coco focalnet-l-dino": (48.5, 75.3), "coco r50-h-d-detr": (41.5, 63.7), "coco n-box-50": (27.3, 60.2)},
    "PT-SAM": {"coco focalnet-l-dino": (48.6, 75.5), "coco r50-h-d-detr": (41.7, 64.2), "coco n-box-50": (30.2, 63.4)},
    "HQ-SAM": {"coco focalnet-l-dino": (49.5, 75.7), "coco r50-h-d-detr": (42.4, 64.5), "coco n-box-50": (31.9, 65.5)},
    "Ours": {"coco focalnet-l-dino": (48.3, 74.8), "coco r50-h-d-detr": (42.2, 64.0), "coco n-box-50": (44.8, 76.4)},
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
    "Ours, long": {"gt-box": (89.1, 82.1), "noisy-box": (72.7, 63.2, 67.4)},
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

TABLE_8: Rows = {
    "SAM": {
        "mess oracle-point": (46.51, 42.31, 55.92, 51.57, 57.43, 49.67),
        "mess oracle-box": (77.85, 73.03, 64.89, 73.03, 86.75, 74.74),
        "mess random-point": (40.21, 36.74, 53.2, 47.15, 49.75, 44.34),
        "mess noisy-box": (55.97, 55.12, 62.45, 62.34, 64.26, 59.24),
    },
    "HQ-SAM": {
        "mess oracle-point": (44.05, 40.82, 61.0, 54.18, 53.92, 49.58),
        "mess oracle-box": (76.63, 68.03, 65.1, 74.78, 85.34, 73.43),
        "mess random-point": (38.81, 36.62, 58.27, 51.43, 44.51, 44.92),
        "mess noisy-box": (52.02, 47.15, 62.57, 62.02, 60.56, 55.81),
    },
    "Stable-SAM": {
        "mess oracle-point": (49.1, 43.23, 54.45, 53.52, 60.92, 51.15),
        "mess oracle-box": (77.91, 72.84, 62.93, 73.12, 85.63, 74.21),
        "mess random-point": (42.43, 37.3, 50.89, 48.96, 53.42, 45.49),
        "mess noisy-box": (59.82, 58.86, 62.19, 64.56, 68.84, 62.13),
    },
}

TABLE_9: Rows = {
    "SAM": {
        "mess/bdd100k": (48.9,),
        "mess/dark-zurich": (54.34,),
        "mess/mhp-v1": (66.64,),
        "mess/foodseg103": (57.98,),
        "mess/atlantis": (56.23,),
        "mess/dram": (51.73,),
        "mess/isaid": (65.2,),
        "mess/isprs-potsdam": (47.32,),
        "mess/worldfloods": (57.61,),
        "mess/floodnet": (51.85,),
        "mess/uavid": (53.62,),
        "mess/kvasir-instrument": (83.62,),
        "mess/chase-db1": (34.59,),
        "mess/cryonuseg": (72.87,),
        "mess/paxray-4": (58.72,),
        "mess/corrosion-cs": (53.05,),
        "mess/deepcrack": (56.36,),
        "mess/zerowaste": (70.23,),
        "mess/pst900": (69.71,),
        "mess/suim": (56.98,),
        "mess/cub-200": (56.3,),
        "mess/cwfid": (79.49,),
        "mess/mean": (59.24,),
    },
    "HQ-SAM": {
        "mess/bdd100k": (43.66,),
        "mess/dark-zurich": (50.85,),
        "mess/mhp-v1": (62.63,),
        "mess/foodseg103": (56.22,),
        "mess/atlantis": (48.7,),
        "mess/dram": (50.06,),
        "mess/isaid": (62.6,),
        "mess/isprs-potsdam": (38.43,),
        "mess/worldfloods": (49.46,),
        "mess/floodnet": (39.82,),
        "mess/uavid": (45.43,),
        "mess/kvasir-instrument": (81.32,),
        "mess/chase-db1": (37.5,),
        "mess/cryonuseg": (72.78,),
        "mess/paxray-4": (58.66,),
        "mess/corrosion-cs": (51.86,),
        "mess/deepcrack": (60.84,),
        "mess/zerowaste": (69.52,),
        "mess/pst900": (65.88,),
        "mess/suim": (47.51,),
        "mess/cub-200": (54.54,),
        "mess/cwfid": (79.63,),
        "mess/mean": (55.81,),
    },
    "Stable-SAM": {
        "mess/bdd100k": (51.84,),
        "mess/dark-zurich": (56.81,),
        "mess/mhp-v1": (69.11,),
        "mess/foodseg103": (64.12,),
        "mess/atlantis": (60.04,),
        "mess/dram": (57.03,),
        "mess/isaid": (67.46,),
        "mess/isprs-potsdam": (50.92,),
        "mess/worldfloods": (60.81,),
        "mess/floodnet": (58.31,),
        "mess/uavid": (56.82,),
        "mess/kvasir-instrument": (85.87,),
        "mess/chase-db1": (33.88,),
        "mess/cryonuseg": (73.09,),
        "mess/paxray-4": (55.94,),
        "mess/corrosion-cs": (55.47,),
        "mess/deepcrack": (58.2,),
        "mess/zerowaste": (74.01,),
        "mess/pst900": (70.55,),
        "mess/suim": (62.35,),
        "mess/cub-200": (64.57,),
        "mess/cwfid": (79.61,),
        "mess/mean": (62.13,),
    },
}

TABLE_10: Rows = {
    "SAM-Huge": {
        "coco n-box-50": (25.6, 56.8),
        "noisy-box": (50.1, 43.2, 40.4),
        "1-point": (44.5, 38.3, 46.5),
        "parameters": (2446,),
        "learnable": (2446,),
        "fps": (3.5,),
        "memory": (10.3,),
    },
    "HQ-SAM-Huge": {
        "coco n-box-50": (30.0, 62.6),
        "noisy-box": (75.2, 65.5, 69.3),
        "1-point": (48.0, 41.1, 49.5),
        "parameters": (2452.1,),
        "learnable": (6.1,),
        "fps": (3.4,),
        "memory": (10.3,),
    },
    "Stable-SAM-Huge": {
        "coco n-box-50": (43.9, 75.7),
        "noisy-box": (81.8, 73.5, 82.3),
        "1-point": (77.2, 68.9, 74.6),
        "parameters": (2446.08,),
        "learnable": (0.08,),
        "fps": (3.5,),
        "memory": (10.3,),
    },
    "SAM-Large": {
        "coco n-box-50": (27.3, 60.2),
        "noisy-box": (48.8, 42.1, 39.5),
        "1-point": (43.3, 37.4, 45.1),
        "parameters": (1191,),
        "learnable": (1191,),
        "fps": (5.0,),
        "memory": (7.6,),
    },
    "HQ-SAM-Large": {
        "coco n-box-50": (31.9, 65.5),
        "noisy-box": (72.4, 62.8, 65.5),
        "1-point": (43.2, 44.6, 37.4),
        "parameters": (1196.1,),
        "learnable": (5.1,),
        "fps": (4.8,),
        "memory": (7.6,),
    },
    "Stable-SAM-Large": {
        "coco n-box-50": (44.8, 76.4),
        "noisy-box": (82.3, 74.1, 82.3),
        "1-point": (76.9, 68.4, 71.1),
        "parameters": (1191.08,),
        "learnable": (0.08,),
        "fps": (5.0,),
        "memory": (7.6,),
    },
    "SAM-Base": {
        "coco n-box-50": (19.7, 49.2),
        "noisy-box": (41.6, 35.8, 33.4),
        "1-point": (35.1, 29.2, 36.7),
        "parameters": (358,),
        "learnable": (358,),
        "fps": (10.1,),
        "memory": (5.1,),
    },
    "HQ-SAM-Base": {
        "coco n-box-50": (24.7, 56.1),
        "noisy-box": (68.7, 59.1, 63.2),
        "1-point": (40.6, 35.7, 42.7),
        "parameters": (362.1,),
        "learnable": (4.1,),
        "fps": (9.8,),
        "memory": (5.1,),
    },
    "Stable-SAM-Base": {
        "coco n-box-50": (31.2, 63.3),
        "noisy-box": (74.7, 64.8, 75.9),
        "1-point": (68.9, 59.5, 67.1),
        "parameters": (358.08,),
        "learnable": (0.08,),
        "fps": (10.1,),
        "memory": (5.1,),
    },
}

TABLE_11: Rows = {
    "SAM": {**SAM, "coco n-box-50": (27.3, 60.2)},
    "Stable-SAM, decoder finetuned": {
        "noisy-box": (78.5, 69.2, 79.9),
        "1-point": (76.0, 67.1, 78.2),
        "coco n-box-50": (25.7, 56.5),
    },
    "Stable-SAM, spatial attention": {
        "noisy-box": (69.3, 59.8, 57.8),
        "1-point": (51.6, 44.5, 49.1),
        "coco n-box-50": (29.8, 64.9),
    },
    "Stable-SAM": {
        "noisy-box": (82.3, 74.1, 82.3),
        "1-point": (76.9, 68.4, 71.1),
        "coco n-box-50": (44.8, 76.4),
    },
}
