"""Images with boxes a second of our loader beside a torch DataLoader with the same transforms of torchvision.

torch runs in a Python of its own; the two take turns. Both read, resize, scale, crop, flip and jitter the colours of
the same JPEGs, and keep the boxes in step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORKER = "--torch-worker"
SCALES = (0.8, 1.2)
JITTER = 0.3  # of brightness, contrast and saturation; a tenth of it of the hue
RGB_MEAN = (124, 116, 104)
VISIBLE = 0.1  # share of an object that has to be in the crop


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True, help="Python of an environment with torch and torchvision")
    parser.add_argument("--root", default="data/bccd", help="folder with instances_train.json and JPEGImages")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side, which take turns")
    parser.add_argument("--batches", type=int, default=32, help="batches of a measurement")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="our threads, and processes of the DataLoader")
    arguments = parser.parse_args(arguments)
    print(f"load average before the start: {os.getloadavg()[0]:.2f}; images a second: median (fastest)")
    print(f"{'':52}{'detseg':>16}{'torch':>16}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder))
        report("bccd at 256x320", arguments.root, "JPEGImages", (256, 320), arguments)
        report("640x480 photographs, 10 boxes, at 480x640", folder, "images", (480, 640), arguments)


def report(name, root, images, size, arguments):
    """Prints the speed of both sides on a data set at (height, width) `size`, and the ratio of ours to torch's."""
    from detseg.data.readers.coco import CocoDetection

    dataset = CocoDetection(root, "instances_train.json", images, on_bad_box="drop")
    counts = {"batches": arguments.batches, "batch_size": arguments.batch_size, "workers": arguments.workers}
    ours = create_ours(dataset, size, **counts)
    items = [
        {"path": str(path), "boxes": dataset.objects(i).boxes.tolist(), "labels": dataset.objects(i).labels.tolist()}
        for i, path in enumerate(dataset.image_paths)
    ]
    worker = subprocess.Popen(
        [arguments.torch_python, __file__, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def theirs(command=None):
        worker.stdin.write(json.dumps(command) + "\n")
        return json.loads(worker.stdout.readline())

    theirs({"items": items, "size": size, **counts})
    check_same_work(ours(), theirs())  # warms up, too
    image_count = arguments.batches * arguments.batch_size
    speeds = np.array(
        [(image_count / ours()["seconds"], image_count / theirs()["seconds"]) for _ in range(arguments.rounds)]
    )
    worker.stdin.close()
    worker.wait()
    cells = [f"{np.median(x):8.0f} ({x.max():.0f})" for x in speeds.T]
    print(f"{name:52}{cells[0]:>16}{cells[1]:>16}{np.median(speeds[:, 0] / speeds[:, 1]):7.2f}x", flush=True)


def check_same_work(ours, theirs):
    """The sides draw other random numbers, so that only means over many images can agree."""
    same_boxes = np.isclose(ours["boxes"], theirs["boxes"], rtol=0.1)
    same_colours = np.isclose(ours["colour"], theirs["colour"], atol=8)
    if not (same_boxes and same_colours):
        raise SystemExit(f"the sides don't do the same: boxes of an image and mean colour are {ours} and {theirs}")


def measured(batches):
    """Reads all of (mean colour of a few pixels, boxes) of batches: seconds, and means to compare."""
    start = time.perf_counter()
    colours, boxes = zip(*batches(), strict=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "boxes": float(np.mean(boxes)), "colour": float(np.mean(colours))}


# ----- ours ----------------------------------------------------------------------------------------------------------


def create_ours(dataset, size, batches, batch_size, workers):
    """What measures one reading of our loader, as Model.fit gets it."""
    from functools import partial

    from detseg.config import augmentation as schema
    from detseg.data.augment import create_augmentation, resize_sample
    from detseg.data.buckets import object_arrays, object_batch, shape_buckets
    from detseg.data.loader import Batches, SampleStream, load_for_fit

    jitter = {"brightness": JITTER, "contrast": JITTER, "saturation": JITTER, "hue": JITTER / 10}
    items = [
        schema.ScaleJitter(low=SCALES[0], high=SCALES[1]),
        schema.ObjectCrop(size=size, min_visibility=VISIBLE),
        schema.Flip(direction="horizontal"),
        schema.ColorJitter(**jitter),
    ]
    augment = create_augmentation(items, ignore_label=255)

    def prepare(sample, rng):
        return object_arrays(augment(resize_sample(sample, *size), rng))

    most = max(len(dataset.objects(i)) for i in range(len(dataset)))
    collate = partial(object_batch, buckets=shape_buckets(size, size), max_objects=max(1, most))
    stream = SampleStream(dataset, Batches(prepare, collate), 0, batches * batch_size, batch_size)
    loaded = load_for_fit(stream, workers)

    def read():
        for images, truth in loaded:
            yield images[:, ::16, ::16].numpy().mean(), (truth["labels"].numpy() >= 0).sum(axis=1).mean()

    return lambda: measured(read)


# ----- torch's -------------------------------------------------------------------------------------------------------


def torch_worker():
    """Reads what to load from the first line; answers each further one with a measurement."""
    measure = create_theirs(**json.loads(sys.stdin.readline()))
    print(json.dumps(None), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def create_theirs(items, size, batches, batch_size, workers):
    import torch
    from torch.utils.data import DataLoader, Dataset, RandomSampler
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    torch.manual_seed(0)
    size = tuple(size)
    transform = v2.Compose(
        [
            v2.Resize(size),
            v2.ScaleJitter(size[::-1], SCALES),  # it takes the first for the width, whatever its documentation says
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: RGB_MEAN, "others": 0}),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(JITTER, JITTER, JITTER, JITTER / 10),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    class Images(Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            item = items[index]
            image = tv_tensors.Image(io.read_image(item["path"], io.ImageReadMode.RGB))
            boxes = torch.tensor(item["boxes"], dtype=torch.float32).reshape(-1, 4)
            boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:])
            return transform(image, {"boxes": boxes, "labels": torch.tensor(item["labels"])})

    def collate(samples):
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), list(targets)

    sampler = RandomSampler(range(len(items)), num_samples=batches * batch_size)
    loader = DataLoader(
        Images(), batch_size, sampler=sampler, num_workers=workers, collate_fn=collate, persistent_workers=True
    )

    def read():
        for images, targets in loader:
            yield images[..., ::16, ::16].float().mean().item(), np.mean([len(target["boxes"]) for target in targets])

    return lambda: measured(read)


# ----- data ----------------------------------------------------------------------------------------------------------


def write_synthetic(folder, count=96, box_count=10):
    """A COCO data set of images about as hard to decode as photographs: noise at all scales, rectangles on it."""
    import cv2

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        image = np.zeros((480, 640, 3), np.float32)
        for cells in (4, 16, 64, 256):
            noise = rng.normal(0, 60 / cells**0.4, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        image = (image + 120).clip(0, 255).astype(np.uint8)
        for _ in range(box_count):
            width, height = np.exp(rng.uniform(np.log(16), np.log(300), 2))
            x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
            corners = (int(x), int(y)), (int(x + width), int(y + height))
            cv2.rectangle(image, *corners, rng.integers(0, 256, 3).tolist(), thickness=2)
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **box})
        name = f"{number:03}.jpg"
        cv2.imwrite(str(folder / "images" / name), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": name, "height": 480, "width": 640})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances_train.json").write_text(json.dumps(content))


if __name__ == "__main__":
    torch_worker() if WORKER in sys.argv else main()
