"""Times of elastic deformation and border weight map beside albumentations and a plain SciPy weight map."""

import argparse
import os
import time

import cv2
import numpy as np
from scipy import ndimage

from detseg.data.elastic import elastic_maps, move_boxes, move_image, move_labels
from detseg.segmentation.weight_maps import border_weights

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each side, which take turns")
    parser.add_argument("--plain-rounds", type=int, default=5, help="the same beside the plain weight map")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)  # as in a loader's thread
    for height, width in ((256, 256), (375, 500)):
        for what in ("image", "image and labels", "image and 20 boxes"):
            sides = elastic_sides(height, width, what)
            report(f"elastic, {height} x {width}, {what}", sides, arguments.rounds)
    for size, objects in ((256, 30), (512, 100)):
        ids = draw_objects(size, objects, np.random.default_rng(0))
        sides = {"detseg": lambda ids=ids: border_weights(ids), "SciPy": lambda ids=ids: plain_border_weights(ids)}
        report(f"border weights, {size} x {size}, {objects} objects", sides, arguments.plain_rounds)
        print(f"  largest difference {np.abs(border_weights(ids) - plain_border_weights(ids)).max():.1e}")


def report(title, sides, rounds):
    """Prints the median time of each side and how many times the first one's it is."""
    times = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    medians = {name: 1000 * float(np.median(values[1:])) for name, values in times.items()}  # the first warms up
    first = next(iter(medians.values()))
    print(title)
    for name, median in medians.items():
        print(f"  {name:28}{median:9.2f} ms{median / first:8.1f}x")


def elastic_sides(height, width, what):
    import albumentations

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    labels = rng.integers(0, 3, (height, width), np.uint8)
    corners = rng.uniform(0, [0.7 * width, 0.7 * height], (20, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1).astype(np.float32)

    def ours():
        maps = elastic_maps(height, width, rng)
        move_image(image, maps)
        if "labels" in what:
            move_labels(labels, maps)
        if "boxes" in what:
            move_boxes(boxes, maps)

    def theirs(approximate):
        transform = albumentations.ElasticTransform(
            alpha=300, sigma=10, approximate=approximate, border_mode=cv2.BORDER_REFLECT_101, p=1.0
        )
        options = {"bbox_params": albumentations.BboxParams("pascal_voc", label_fields=["classes"])}
        compose = albumentations.Compose([transform], **(options if "boxes" in what else {}))
        arrays = {"image": image}
        if "labels" in what:
            arrays["mask"] = labels
        if "boxes" in what:
            arrays |= {"bboxes": boxes, "classes": np.zeros(len(boxes))}
        return lambda: compose(**arrays)

    return {
        "detseg": ours,
        "albumentations": theirs(approximate=False),
        "albumentations, approximate": theirs(approximate=True),
    }


def draw_objects(size, count, rng):
    """Instance ids, int32 (size, size), of disks anywhere."""
    ids = np.zeros((size, size), np.int32)
    for number in range(1, count + 1):
        cv2.circle(ids, rng.integers(0, size, 2).tolist(), int(rng.integers(5, 15)), number, -1)
    return ids


def plain_border_weights(instance_ids, w0=10.0, sigma=5.0):
    """A distance transform of the whole image for each object."""
    numbers = np.unique(instance_ids)[1:]
    distances = np.stack([ndimage.distance_transform_edt(instance_ids != number) for number in numbers])
    nearest, second = np.partition(distances, 1, axis=0)[:2]
    return w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)) * (instance_ids == 0)


if __name__ == "__main__":
    main()
