"""The data sets of the paper in the layout of their official release, or of HQ-SAM's or MESS's preparation.

Paths are relative to the folder that the user names. Sources: HQ-SAM `train/train.py`; X-Decoder, branch `seginw`; MESS
`mess/datasets/register_*.py`. Counts of pictures are those that the papers report or imply.
"""

import dataclasses
import pathlib

from stablesam_jax.commands import check_choice
from stablesam_jax.data.class_maps import ClassMapFiles
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.findings import Findings
from stablesam_jax.data.readers import SoftPairs


@dataclasses.dataclass(frozen=True)
class OneObject:
    """NAME.jpg and NAME.png, one object a picture."""

    pictures: str
    masks: str
    count: int


# HQSeg-44K, in HQ-SAM's order, and the four test sets. The literature says DUT-OMRON, but the files are DUTS. HRSOD is
# read from masks_max255, because its own masks hold instance numbers, which the threshold would remove.
ONE_OBJECT = {
    "dis5k-tr": OneObject("DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt", 3000),
    "thinobject5k-tr": OneObject(
        "thin_object_detection/ThinObject5K/images_train", "thin_object_detection/ThinObject5K/masks_train", 4748
    ),
    "fss": OneObject("cascade_psp/fss_all", "cascade_psp/fss_all", 10000),
    "duts-tr": OneObject("cascade_psp/DUTS-TR", "cascade_psp/DUTS-TR", 10553),
    "duts-te": OneObject("cascade_psp/DUTS-TE", "cascade_psp/DUTS-TE", 5019),
    "ecssd": OneObject("cascade_psp/ecssd", "cascade_psp/ecssd", 1000),
    "msra-10k": OneObject("cascade_psp/MSRA_10K", "cascade_psp/MSRA_10K", 10000),
    "dis5k-vd": OneObject("DIS5K/DIS-VD/im", "DIS5K/DIS-VD/gt", 470),
    "coift": OneObject("thin_object_detection/COIFT/images", "thin_object_detection/COIFT/masks", 280),
    "hrsod": OneObject("thin_object_detection/HRSOD/images", "thin_object_detection/HRSOD/masks_max255", 287),
    "thinobject5k-te": OneObject(
        "thin_object_detection/ThinObject5K/images_test", "thin_object_detection/ThinObject5K/masks_test", 500
    ),
}
JOINED = {"hqseg-44k": ("dis5k-tr", "thinobject5k-tr", "fss", "duts-tr", "duts-te", "ecssd", "msra-10k")}


@dataclasses.dataclass(frozen=True)
class Instances:
    """Pictures and a COCO json."""

    pictures: str
    annotations: str


# Folders of SGinW, in their own spelling.
SGINW = (
    "Airplane-Parts Bottles Brain-Tumor Chicken Cows Electric-Shaver Elephants Fruits Garbage Ginger-Garlic Hand "
    "Hand-Metal House-Parts HouseHold-Items Nutterfly-Squireel Phones Poles Puppies Rail Salmon-Fillet Strawberry "
    "Tablets Toolkits Trash Watermelon"
)
INSTANCES = {
    "coco-val2017": Instances("val2017", "annotations/instances_val2017.json"),
    **{
        f"sginw/{name}": Instances(f"seginw/{name}/valid", f"seginw/{name}/valid/_annotations_min1cat.coco.json")
        for name in SGINW.split()
    },
}


@dataclasses.dataclass(frozen=True)
class Classes:
    """Pictures and class maps; 255 is "ignore" in all."""

    domain: str  # domain of MESS; Table 8 has the mean of each
    pictures: str
    labels: str
    picture_suffix: str
    label_suffix: str
    classes: int
    background: int | None
    count: int
    more_pictures: bool = False  # whether the folder of pictures has those of other splits too


def _mess(
    domain: str, folder: str, part: str, suffix: str, classes: int, background: int | None, count: int
) -> Classes:
    """A set for which MESS prepares both pictures and class maps."""
    return Classes(
        domain,
        f"{folder}/images_detectron2{part}",
        f"{folder}/annotations_detectron2{part}",
        suffix,
        ".png",
        classes,
        background,
        count,
    )


GENERAL, EARTH, MEDICAL = "General", "Earth Monitoring", "Medical Sciences"
ENGINEERING, AGRICULTURE = "Engineering", "Agriculture & Biology"
_CORROSION = "Corrosion Condition State Classification/original/Test"
_ZEROWASTE = "zerowaste-f/splits_final_deblurred/test"
_PAXRAY = "paxray_dataset/{}_detectron2/test"
PAXRAY_TASKS = ("lungs", "bones", "mediastinum", "diaphragm")  # together one set of the 22; its result is their mean
_PST900 = "PST900_RGBT_Dataset/test"
MESS = {
    "mess/bdd100k": Classes(
        GENERAL, "bdd100k/images/10k/val", "bdd100k/annotations_detectron2/val", ".jpg", ".png", 19, None, 1000
    ),
    "mess/dark-zurich": Classes(
        GENERAL,
        "Dark_Zurich/rgb_anon/val/night/GOPR0356",
        "Dark_Zurich/annotations_detectron2/val",
        "_rgb_anon.png",
        "_gt_labelIds.png",
        20,
        0,
        50,
    ),
    "mess/mhp-v1": _mess(GENERAL, "LV-MHP-v1", "/test", ".jpg", 19, 0, 980),
    "mess/foodseg103": Classes(
        GENERAL, "FoodSeg103/Images/img_dir/test", "FoodSeg103/Images/ann_dir/test", ".jpg", ".png", 104, 0, 2135
    ),
    "mess/atlantis": _mess(GENERAL, "atlantis", "/test", ".jpg", 56, None, 1295),
    "mess/dram": _mess(GENERAL, "DRAM_processed", "/test", ".jpg", 12, 11, 718),
    "mess/isaid": _mess(EARTH, "isaid", "/val", ".png", 16, 0, 4055),
    "mess/isprs-potsdam": Classes(
        EARTH,
        "ISPRS_Potsdam/images_detectron2/test/irrg",
        "ISPRS_Potsdam/annotations_detectron2/test",
        ".png",
        ".png",
        6,
        5,
        504,
    ),
    "mess/worldfloods": Classes(
        EARTH,
        "WorldFloods/images_detectron2/test/irrg",
        "WorldFloods/annotations_detectron2/test",
        ".png",
        ".png",
        3,
        0,
        160,
    ),
    "mess/floodnet": _mess(EARTH, "FloodNet-Supervised_v1.0", "/test", ".jpg", 10, 0, 5571),
    "mess/uavid": _mess(EARTH, "uavid_v1.5", "/val", ".png", 8, 0, 840),
    "mess/kvasir-instrument": _mess(MEDICAL, "kvasir-instrument", "/test", ".png", 2, 0, 118),
    "mess/chase-db1": _mess(MEDICAL, "CHASEDB1", "/test", ".jpg", 2, 0, 20),
    "mess/cryonuseg": _mess(MEDICAL, "CryoNuSeg", "", ".png", 2, 0, 30),
    **{
        f"mess/paxray-{task}": Classes(
            MEDICAL, _PAXRAY.format("images"), f"{_PAXRAY.format('annotations')}/{task}", ".png", ".png", 2, 0, 180
        )
        for task in PAXRAY_TASKS
    },
    "mess/corrosion-cs": Classes(ENGINEERING, f"{_CORROSION}/images", f"{_CORROSION}/masks", ".jpeg", ".png", 4, 0, 44),
    "mess/deepcrack": Classes(
        ENGINEERING, "DeepCrack/test_img", "DeepCrack/annotations_detectron2/test", ".jpg", ".png", 2, 0, 237
    ),
    "mess/zerowaste": Classes(ENGINEERING, f"{_ZEROWASTE}/data", f"{_ZEROWASTE}/sem_seg", ".PNG", ".PNG", 5, 0, 929),
    "mess/pst900": Classes(ENGINEERING, f"{_PST900}/thermal", f"{_PST900}/labels", ".png", ".png", 5, 0, 288),
    "mess/suim": Classes(
        AGRICULTURE, "SUIM/TEST/images", "SUIM/annotations_detectron2/test", ".jpg", ".png", 8, 0, 110
    ),
    "mess/cub-200": _mess(AGRICULTURE, "CUB_200_2011", "/test", ".jpg", 201, 0, 5794),
    "mess/cwfid": Classes(
        AGRICULTURE,
        "cwfid/images",
        "cwfid/annotations_detectron2/test",
        "_image.png",
        "_annotation.png",
        3,
        0,
        21,
        more_pictures=True,
    ),
}

# The sets of GROUP:DIR, which are evaluated one by one.
GROUPS = {"sginw": tuple(f"sginw/{name}" for name in SGINW.split()), "mess": tuple(MESS)}
NAMES = (*JOINED, *ONE_OBJECT, *INSTANCES, *MESS)
Reader = SoftPairs | CocoPictures | ClassMapFiles


def open_dataset(name: str, root: pathlib.Path, findings: Findings) -> list[Reader]:
    """The readers of a data set, one for each of its parts.

    Args:
        name: one of `NAMES`.
        root: folder to which its official paths are relative.
        findings: gets unusable files.

    Raises:
        InputError: an unknown name, or missing folders.
    """
    check_choice(name, NAMES, "data set")
    if name in JOINED:
        return [part for member in JOINED[name] for part in open_dataset(member, root, findings)]
    if name in ONE_OBJECT:
        one = ONE_OBJECT[name]
        return [SoftPairs(name, root / one.pictures, root / one.masks, findings)]
    if name in INSTANCES:
        row = INSTANCES[name]
        return [CocoPictures(name, root / row.pictures, root / row.annotations, findings)]
    maps = MESS[name]
    return [
        ClassMapFiles(
            name,
            root / maps.pictures,
            root / maps.labels,
            picture_suffixes=frozenset({maps.picture_suffix}),
            label_suffix=maps.label_suffix,
            classes=maps.classes,
            background=maps.background,
            more_pictures=maps.more_pictures,
            findings=findings,
        )
    ]


def official_count(name: str) -> int | None:
    """Number of pictures in the release of a data set, or None if unknown."""
    if name in JOINED:
        return sum(ONE_OBJECT[member].count for member in JOINED[name])
    row = ONE_OBJECT.get(name) or MESS.get(name)
    return None if row is None else row.count
