"""One labelled image."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detseg.data.objects import Objects, converted
from detseg.errors import UserError


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with what is known about it; arrays follow the conventions of `detseg`.

    image:         uint8 (H, W, C).
    name:          the image's identifier in its split: unique, written in results and messages.
    path:          the image file, or None.
    label_map:     uint8 (H, W) of class indices and ignore_label, or None where there are no semantic labels. Other
                   integers of 0..255 and bool are converted, UserError for others.
    instance_ids:  int32 (H, W), the object that each pixel belongs to, 0: none; or None where the data don't say.
    objects:       Objects, or None where there are no boxes.
    proposals:     float32 (P, 4), boxes that may hold an object, within the image, the best first; or None. They follow
                   each change of the image as the boxes of objects do.
    """

    image: np.ndarray
    name: str = ""
    path: Path | None = None
    label_map: np.ndarray | None = None
    instance_ids: np.ndarray | None = None
    objects: Objects | None = None
    proposals: np.ndarray | None = None

    def __post_init__(self):
        if self.proposals is not None:
            form = (np.float32, "iuf", (None, 4), "(P, 4): x1 y1 x2 y2 in pixels")
            object.__setattr__(self, "proposals", converted("Sample: proposals", self.proposals, *form))
        if self.label_map is None:
            return
        labels = np.asarray(self.label_map)
        if labels.dtype.kind not in "biu":
            raise UserError(f"Sample: label_map is of type {labels.dtype}, expected uint8 (H, W) of class indices")
        if labels.dtype != np.uint8 and (labels.min(initial=0) < 0 or labels.max(initial=0) > 255):
            found = f"{labels.min()}..{labels.max()}"
            raise UserError(f"Sample: label_map holds {found}, expected class indices of 0..255")
        object.__setattr__(self, "label_map", labels.astype(np.uint8, copy=False))

    def with_image(self, image, change_map, change_objects):
        """The sample with another image, and label map, instance ids and objects changed alike by these functions."""

        def change_proposals(proposals):
            return change_objects(Objects(proposals, np.zeros(len(proposals), int))).boxes

        changes = {"label_map": change_map, "instance_ids": change_map, "objects": change_objects}
        changes |= {"proposals": change_proposals}
        present = {name: getattr(self, name) for name in changes if getattr(self, name) is not None}
        return replace(self, image=image, **{name: changes[name](value) for name, value in present.items()})
