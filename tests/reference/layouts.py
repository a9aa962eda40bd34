"""A small data set in every official layout: paths as the releases and preparations have them, written out in full."""

import json

import numpy as np

from tests.reference.pictures import disc, ramp, save

CASCADE, THIN = "cascade_psp", "thin_object_detection"
ONE_OBJECT = {  # name -> picture, mask
    "dis5k-tr": ("DIS5K/DIS-TR/im/a.jpg", "DIS5K/DIS-TR/gt/a.png"),
    "thinobject5k-tr": (f"{THIN}/ThinObject5K/images_train/a.jpg", f"{THIN}/ThinObject5K/masks_train/a.png"),
    "fss": (f"{CASCADE}/fss_all/a.jpg", f"{CASCADE}/fss_all/a.png"),
    "duts-tr": (f"{CASCADE}/DUTS-TR/a.jpg", f"{CASCADE}/DUTS-TR/a.png"),
    "duts-te": (f"{CASCADE}/DUTS-TE/a.jpg", f"{CASCADE}/DUTS-TE/a.png"),
    "ecssd": (f"{CASCADE}/ecssd/a.jpg", f"{CASCADE}/ecssd/a.png"),
    "msra-10k": (f"{CASCADE}/MSRA_10K/a.jpg", f"{CASCADE}/MSRA_10K/a.png"),
    "dis5k-vd": ("DIS5K/DIS-VD/im/a.jpg", "DIS5K/DIS-VD/gt/a.png"),
    "coift": (f"{THIN}/COIFT/images/a.jpg", f"{THIN}/COIFT/masks/a.png"),
    "hrsod": (f"{THIN}/HRSOD/images/a.jpg", f"{THIN}/HRSOD/masks_max255/a.png"),
    "thinobject5k-te": (f"{THIN}/ThinObject5K/images_test/a.jpg", f"{THIN}/ThinObject5K/masks_test/a.png"),
}
HQSEG_44K = tuple(ONE_OBJECT)[:7]
SGINW = [
    *("Airplane-Parts", "Bottles", "Brain-Tumor", "Chicken", "Cows", "Electric-Shaver", "Elephants", "Fruits"),
    *("Garbage", "Ginger-Garlic", "Hand", "Hand-Metal", "House-Parts", "HouseHold-Items", "Nutterfly-Squireel"),
    *("Phones", "Poles", "Puppies", "Rail", "Salmon-Fillet", "Strawberry", "Tablets", "Toolkits", "Trash"),
    "Watermelon",
]
INSTANCES = {  # name -> picture, json
    "coco-val2017": ("val2017/000000000139.jpg", "annotations/instances_val2017.json"),
    **{
        f"sginw/{name}": (f"seginw/{name}/valid/a.jpg", f"seginw/{name}/valid/_annotations_min1cat.coco.json")
        for name in SGINW
    },
}
A2, I2 = "annotations_detectron2", "images_detectron2"
MESS = {  # name -> picture, class map, classes, background
    "bdd100k": ("bdd100k/images/10k/val/a.jpg", f"bdd100k/{A2}/val/a.png", 19, None),
    "dark-zurich": (
        "Dark_Zurich/rgb_anon/val/night/GOPR0356/a_rgb_anon.png",
        f"Dark_Zurich/{A2}/val/a_gt_labelIds.png",
        20,
        0,
    ),
    "mhp-v1": (f"LV-MHP-v1/{I2}/test/a.jpg", f"LV-MHP-v1/{A2}/test/a.png", 19, 0),
    "foodseg103": ("FoodSeg103/Images/img_dir/test/a.jpg", "FoodSeg103/Images/ann_dir/test/a.png", 104, 0),
    "atlantis": (f"atlantis/{I2}/test/a.jpg", f"atlantis/{A2}/test/a.png", 56, None),
    "dram": (f"DRAM_processed/{I2}/test/a.jpg", f"DRAM_processed/{A2}/test/a.png", 12, 11),
    "isaid": (f"isaid/{I2}/val/a.png", f"isaid/{A2}/val/a.png", 16, 0),
    "isprs-potsdam": (f"ISPRS_Potsdam/{I2}/test/irrg/a.png", f"ISPRS_Potsdam/{A2}/test/a.png", 6, 5),
    "worldfloods": (f"WorldFloods/{I2}/test/irrg/a.png", f"WorldFloods/{A2}/test/a.png", 3, 0),
    "floodnet": (f"FloodNet-Supervised_v1.0/{I2}/test/a.jpg", f"FloodNet-Supervised_v1.0/{A2}/test/a.png", 10, 0),
    "uavid": (f"uavid_v1.5/{I2}/val/a.png", f"uavid_v1.5/{A2}/val/a.png", 8, 0),
    "kvasir-instrument": (f"kvasir-instrument/{I2}/test/a.png", f"kvasir-instrument/{A2}/test/a.png", 2, 0),
    "chase-db1": (f"CHASEDB1/{I2}/test/a.jpg", f"CHASEDB1/{A2}/test/a.png", 2, 0),
    "cryonuseg": (f"CryoNuSeg/{I2}/a.png", f"CryoNuSeg/{A2}/a.png", 2, 0),
    "paxray-lungs": (f"paxray_dataset/{I2}/test/a.png", f"paxray_dataset/{A2}/test/lungs/a.png", 2, 0),
    "paxray-bones": (f"paxray_dataset/{I2}/test/a.png", f"paxray_dataset/{A2}/test/bones/a.png", 2, 0),
    "paxray-mediastinum": (f"paxray_dataset/{I2}/test/a.png", f"paxray_dataset/{A2}/test/mediastinum/a.png", 2, 0),
    "paxray-diaphragm": (f"paxray_dataset/{I2}/test/a.png", f"paxray_dataset/{A2}/test/diaphragm/a.png", 2, 0),
    "corrosion-cs": (
        "Corrosion Condition State Classification/original/Test/images/a.jpeg",
        "Corrosion Condition State Classification/original/Test/masks/a.png",
        4,
        0,
    ),
    "deepcrack": ("DeepCrack/test_img/a.jpg", f"DeepCrack/{A2}/test/a.png", 2, 0),
    "zerowaste": (
        "zerowaste-f/splits_final_deblurred/test/data/a.PNG",
        "zerowaste-f/splits_final_deblurred/test/sem_seg/a.PNG",
        5,
        0,
    ),
    "pst900": ("PST900_RGBT_Dataset/test/thermal/a.png", "PST900_RGBT_Dataset/test/labels/a.png", 5, 0),
    "suim": ("SUIM/TEST/images/a.jpg", f"SUIM/{A2}/test/a.png", 8, 0),
    "cub-200": (f"CUB_200_2011/{I2}/test/a.jpg", f"CUB_200_2011/{A2}/test/a.png", 201, 0),
    "cwfid": ("cwfid/images/001_image.png", f"cwfid/{A2}/test/001_annotation.png", 3, 0),
}
NAMES = [*ONE_OBJECT, *INSTANCES, *(f"mess/{name}" for name in MESS)]
SQUARE = [10, 10, 30, 10, 30, 25, 10, 25]  # covers columns 10 to 29 and rows 10 to 24


def coco_json(files):
    """A picture of 60 x 40 pixels for each file, with one square; categories count from 0, as SGinW's do."""
    return {
        "images": [{"id": k, "file_name": file, "width": 60, "height": 40} for k, file in enumerate(files)],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [
            {
                "id": 100 + k,
                "image_id": k,
                "category_id": 0,
                "segmentation": [SQUARE],
                "bbox": [10, 10, 20, 15],
                "area": 300,
                "iscrowd": 0,
            }
            for k in range(len(files))
        ],
    }


def write_official(name, root):
    """One picture (the ramp) with a disc, or a square in a json, where the release of the data set has them."""
    if name == "hqseg-44k":
        for part in HQSEG_44K:
            write_official(part, root)
    elif name in ONE_OBJECT:
        picture, mask = ONE_OBJECT[name]
        save(root / picture, ramp(40, 60))
        save(root / mask, disc().astype(np.uint8) * 255)
    elif name in INSTANCES:
        picture, annotations = INSTANCES[name]
        save(root / picture, ramp(40, 60))
        (root / annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / annotations).write_text(json.dumps(coco_json([picture.rsplit("/")[-1]])))
    else:
        picture, label, *_ = MESS[name.removeprefix("mess/")]
        save(root / picture, ramp(40, 60)[..., 0] if "thermal" in picture else ramp(40, 60))
        save(root / label, disc().astype(np.uint8))
