"""Time of COCO's box figures beside pycocotools, on random boxes; the sides take turns."""

import argparse
import contextlib
import importlib.util
import io
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.metrics.coco import COCO_KEYS, CocoScores

SIZE, CLASS_COUNT, TRUE_PER_IMAGE = 640, 80, 7


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, which take turns")
    arguments = parser.parse_args(arguments)
    images = random_images(arguments.images, arguments.detections, np.random.default_rng(0))
    annotations, results = as_annotations(images)
    sides = {"pycocotools": lambda: plain_figures(annotations, results)}
    for engine in ("pycocotools", "hotcoco"):
        if importlib.util.find_spec(engine):
            sides[f"detseg, {engine}"] = lambda engine=engine: our_figures(images, engine)
    times, figures = {name: [] for name in sides}, {}
    for _ in range(arguments.rounds):
        for name, function in sides.items():
            start = time.perf_counter()
            figures[name] = function()
            times[name].append(time.perf_counter() - start)
    print(f"{arguments.images} images, {len(results)} detections, {CLASS_COUNT} classes, {arguments.rounds} rounds")
    plain = float(np.median(times["pycocotools"]))
    for name, values in times.items():
        difference = np.abs(np.subtract(figures[name], figures["pycocotools"])).max()
        median = float(np.median(values))
        print(f"  {name:22}{median:9.2f} s{plain / median:8.1f}x   largest difference {difference:g}")


def random_images(count, found_per_image, rng):
    """Of each image: true boxes, labels, crowds, found boxes, labels, scores. Half of the finds lie near true boxes."""
    images = []
    for _ in range(count):
        truth, labels = random_boxes(TRUE_PER_IMAGE, rng), rng.integers(0, CLASS_COUNT, TRUE_PER_IMAGE)
        source = rng.integers(0, TRUE_PER_IMAGE, found_per_image)
        is_near = rng.random(found_per_image) < 0.5
        sizes = (truth[:, 2:] - truth[:, :2])[source]
        near = truth[source] + np.tile(sizes, 2) * rng.normal(0, 0.1, (found_per_image, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.where(is_near[:, None], near, random_boxes(found_per_image, rng))
        found_labels = np.where(is_near, labels[source], rng.integers(0, CLASS_COUNT, found_per_image))
        crowds = rng.random(TRUE_PER_IMAGE) < 0.01
        images.append((truth, labels, crowds, found.astype(np.float32), found_labels, rng.random(found_per_image)))
    return images


def random_boxes(count, rng):
    sizes = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    corners = rng.uniform(0, SIZE - sizes)
    return np.concatenate([corners, corners + sizes], axis=1)


def as_annotations(images):
    """The same as COCO has it in files: annotations and results."""
    annotations, results = [], []
    for image_id, (truth, true_labels, crowds, found, labels, scores) in enumerate(images):
        for (x1, y1, x2, y2), label, is_crowd in zip(
            truth.tolist(), true_labels.tolist(), crowds.tolist(), strict=True
        ):
            box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            entry = {"image_id": image_id, "category_id": label, "bbox": box, "area": area, "iscrowd": int(is_crowd)}
            annotations.append(entry | {"id": len(annotations) + 1})
        for (x1, y1, x2, y2), label, score in zip(found.tolist(), labels.tolist(), scores.tolist(), strict=True):
            results.append(
                {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    sections = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": label, "name": str(label)} for label in range(CLASS_COUNT)],
        "annotations": annotations,
    }
    return sections, results


def plain_figures(sections, results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = sections
        truth.createIndex()
        # loadRes writes into the entries.
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def our_figures(images, engine):
    scores = CocoScores({label: str(label) for label in range(CLASS_COUNT)}, engine=engine)
    for truth, true_labels, crowds, found, labels, confidence in images:
        scores.update(truth, true_labels, found, labels, confidence, crowds)
    figures = scores.result()["coco"]
    return [figures[key] for key in COCO_KEYS]


if __name__ == "__main__":
    main()
