"""Pictures with boxes that people drew, in the layout of the user study of BREPS (arXiv 2601.15123).

`images/NAME.png`, `masks/NAME.png` with one object, and `user_masks/NAME_1_*.png`, a filled box of each user.
"""

import pathlib

import numpy as np

from stablesam_jax.data.findings import Findings
from stablesam_jax.data.label_file import SizeHW, read_masks
from stablesam_jax.data.readers import LabelledFiles, Objects, list_files
from stablesam_jax.files.picture_file import SUFFIXES
from stablesam_jax.prompts import gt_box

IMAGES, MASKS, USER_MASKS = "images", "masks", "user_masks"
OF_USER = "_1_"  # between the name of a picture and that of a user


class UserStudy(LabelledFiles):
    """The pictures of a study."""

    def __init__(self, folder: pathlib.Path, findings: Findings, *, name: str):
        """Lists the files without reading them.

        Args:
            folder: of the study.
            findings: gets pictures and masks without a counterpart.
            name: of the set.
        """
        pictures, masks = (list_files(folder / part, SUFFIXES) for part in (IMAGES, MASKS))
        super().__init__(name, pictures, masks, labels_in=folder / MASKS, findings=findings)
        self._boxes: dict[str, list[pathlib.Path]] = {}
        for stem, files in list_files(folder / USER_MASKS, {".png"}).items():
            ends = [place for place in range(len(stem)) if stem.startswith(OF_USER, place) and stem[:place] in pictures]
            if ends:
                self._boxes.setdefault(stem[: ends[-1]], []).extend(files)

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The object of the mask."""
        return Objects(*read_masks(self.label_file(index), size_hw))

    def user_boxes(self, index: int) -> np.ndarray:
        """The boxes of all users of a picture: (N, 4) float32 XYXY, N may be 0.

        Raises:
            InputError: a file cannot be read, holds no box or has another size than the picture's mask.
        """
        size_hw = self.label(index, None).masks.shape[1:]
        files = self._boxes.get(self.picture_file(index).stem, [])
        boxes = [gt_box(np.any(read_masks(file, size_hw)[0], axis=0)) for file in files]
        return np.array(boxes, np.float32).reshape(-1, 4)


def is_user_study(folder: pathlib.Path) -> bool:
    """Whether a folder has the three parts."""
    return all((folder / part).is_dir() for part in (IMAGES, MASKS, USER_MASKS))
