"""A small data set in every official layout and as every annotation tool exports it: paths written out in full."""

import json

import numpy as np
from faster_coco_eval.core import mask as mask_api

from stablesam_jax.data import rle
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


# Exports of annotation tools: two pictures with the square and a circle's polygon of SHAPES, each in the tool's layout.

TRIANGLE = [40.5, 5, 55, 30.25, 33, 28]
SHAPES = {"a.jpg": [("box", SQUARE)], "b.jpg": [("box", SQUARE), ("sail", TRIANGLE)]}  # picture -> category, polygon
CATEGORIES = ("box", "sail")


def shape_masks(file):
    """What every export holds of a picture: masks (M, 40, 60) bool, by faster-coco-eval."""
    polygons = [mask_api.frPyObjects([polygon], 40, 60) for _, polygon in SHAPES[file]]
    return np.stack([mask_api.decode(mask_api.merge(of_one)).astype(bool) for of_one in polygons])


def shapes_json(names, *, first_id=1, per_picture=False):
    """A COCO json of SHAPES whose pictures are called by `names`."""
    images, annotations = [], []
    for image_id, (name, shapes) in enumerate(zip(names, SHAPES.values(), strict=True), start=first_id):
        images.append({"id": image_id, "file_name": name, "width": 60, "height": 40})
        for place, (category, polygon) in enumerate(shapes):
            x, y = polygon[::2], polygon[1::2]
            annotations.append(
                {
                    "id": (place if per_picture else len(annotations)) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES.index(category),
                    "segmentation": [polygon],
                    "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
                    "area": 300,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def _pictures(folder, names=tuple(SHAPES)):
    for name in names:
        save(folder / name, ramp(40, 60) + np.uint8(40 * name.endswith("b.jpg")))


def _pairs(root, pictures="im", masks="gt"):
    _pictures(root / pictures)
    for file in SHAPES:
        label = np.zeros((40, 60), np.uint8)
        for number, mask in enumerate(shape_masks(file), start=1):
            label[mask] = number
        save(root / masks / file.replace("jpg", "png"), label)


def _breps(root):
    _pairs(root, "images", "masks")
    (root / "user_masks").mkdir()


def _coco(root):
    _pictures(root / "images")
    _write(root / "annotations.json", shapes_json(SHAPES))


def _label_studio(root):
    """Label Studio, "COCO with images": ids begin at 0, pictures bear the prefix of their upload."""
    names = [f"1f3a5b7c-{name}" for name in SHAPES]
    _pictures(root / "images", names)
    _write(root / "result.json", shapes_json([f"images/{name}" for name in names], first_id=0))


def _label_studio_alone(root):
    """Label Studio, "COCO" without pictures, beside the files that were uploaded."""
    _pictures(root / "images")
    _write(root / "result.json", shapes_json([f"../../upload/1/1f3a5b7c-{name}" for name in SHAPES], first_id=0))


def _cvat(root):
    _pictures(root / "images" / "default")
    _write(root / "annotations" / "instances_default.json", {"licenses": [], "info": {}, **shapes_json(SHAPES)})


def _cvat_subsets(root):
    """CVAT, a project of two subsets: annotation ids begin anew in each json."""
    whole = shapes_json(SHAPES, per_picture=True)
    for subset, image in zip(("Train", "Validation"), whole["images"], strict=True):
        _pictures(root / "images" / subset, [image["file_name"]])
        annotations = [one for one in whole["annotations"] if one["image_id"] == image["id"]]
        content = whole | {"images": [image], "annotations": annotations}
        _write(root / "annotations" / f"instances_{subset}.json", content)


def _roboflow(root):
    _pictures(root)
    _write(root / "_annotations.coco.json", shapes_json(SHAPES))
    _write(root / "README.dataset.txt", "exported")


def _roboflow_splits(root):
    for split, file in (("train", "a.jpg"), ("valid", "b.jpg")):
        whole = shapes_json(SHAPES)
        (image,) = (one for one in whole["images"] if one["file_name"] == file)
        annotations = [one for one in whole["annotations"] if one["image_id"] == image["id"]]
        _pictures(root / split, [file])
        _write(root / split / "_annotations.coco.json", whole | {"images": [image], "annotations": annotations})


def _labelme(root):
    _pictures(root)
    for file, shapes in SHAPES.items():
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [
                {
                    "label": category,
                    "points": np.reshape(polygon, (-1, 2)).tolist(),
                    "group_id": None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
                for category, polygon in shapes
            ],
            "imagePath": file,
            "imageData": "not looked at",
            "imageHeight": 40,
            "imageWidth": 60,
        }
        _write(root / file.replace("jpg", "json"), content)


def _yolo_text(shapes):
    lines = (
        [CATEGORIES.index(category), *(value / (60, 40)[place % 2] for place, value in enumerate(polygon))]
        for category, polygon in shapes
    )
    return "".join(f"{' '.join(map(str, line))}\n" for line in lines)


def _yolo(root):
    """Ultralytics, as CVAT exports it."""
    _pictures(root / "images" / "train")
    for file, shapes in SHAPES.items():
        _write(root / "labels" / "train" / file.replace("jpg", "txt"), _yolo_text(shapes))
    _write(root / "data.yaml", "names:\n  0: box\n  1: sail\npath: .\ntrain: train.txt\n")
    _write(root / "train.txt", "data/images/train/a.jpg\ndata/images/train/b.jpg\n")


def _yolo_splits(root):
    """Roboflow's YOLO: splits first, names in a list."""
    for split, file in (("train", "a.jpg"), ("valid", "b.jpg")):
        _pictures(root / split / "images", [file])
        _write(root / split / "labels" / file.replace("jpg", "txt"), _yolo_text(SHAPES[file]))
    _write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['box', 'sail']\n")


def _yolo_beside(root):
    """Darknet's layout: text and picture side by side."""
    _pictures(root)
    for file, shapes in SHAPES.items():
        _write(root / file.replace("jpg", "txt"), _yolo_text(shapes))
    _write(root / "classes.txt", "box\nsail\n")


def _sa1b(root):
    _pictures(root)
    for file in SHAPES:
        annotations = [
            {
                "id": 900 + number,
                "segmentation": rle.compress(rle.encode(mask)),
                "bbox": [0, 0, 60, 40],
                "area": int(mask.sum()),
                "predicted_iou": 0.98,
                "stability_score": 0.97,
                "point_coords": [[15.5, 12.5]],
                "crop_box": [0, 0, 60, 40],
            }
            for number, mask in enumerate(shape_masks(file))
        ]
        image = {"image_id": 1, "width": 60, "height": 40, "file_name": file}
        _write(root / file.replace("jpg", "json"), {"image": image, "annotations": annotations})


def _beside(root):
    _pairs(root)
    for folder in ("im", "gt"):
        for file in (root / folder).iterdir():
            file.rename(root / file.name)
        (root / folder).rmdir()


EXPORTS = {  # tool and form -> writer
    "pairs": _pairs,
    "breps": _breps,
    "beside": _beside,
    "coco": _coco,
    "label-studio": _label_studio,
    "label-studio-alone": _label_studio_alone,
    "cvat": _cvat,
    "cvat-subsets": _cvat_subsets,
    "roboflow": _roboflow,
    "roboflow-splits": _roboflow_splits,
    "labelme": _labelme,
    "yolo": _yolo,
    "yolo-splits": _yolo_splits,
    "yolo-beside": _yolo_beside,
    "sa-1b": _sa1b,
}


def write_export(name, root):
    """The two pictures of SHAPES as a tool exports them."""
    EXPORTS[name](root)
    return root
