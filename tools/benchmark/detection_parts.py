"""Times of non-maximum suppression, RoIAlign and RoI pooling beside torchvision's, which runs in a Python of its own.

The two take turns; both sides' results are compared before the first round.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

WORKER = "--torch-worker"
# name -> (what runs, its arguments)
CASES = {
    "NMS, 1000 boxes, 80 classes, IoU 0.5, best 100": ("nms", {"count": 1000, "classes": 80, "iou": 0.5, "kept": 100}),
    "NMS, 2000 boxes, 1 class, IoU 0.7, best 1000": ("nms", {"count": 2000, "classes": 1, "iou": 0.7, "kept": 1000}),
    "RoIAlign, 1000 regions, 50x84x256, forward": ("align", {"regions": 1000, "strides": [16]}),
    "RoIAlign, 1000 regions, 50x84x256, forward and backward": (
        "align",
        {"regions": 1000, "strides": [16], "backward": True},
    ),
    "RoIAlign, 512 regions, FPN of 800x1344, forward and backward": (
        "align",
        {"regions": 512, "strides": [4, 8, 16, 32], "backward": True},
    ),
    "RoIAlign, 2 x 512 regions, FPN of 320x320, forward and backward": (
        "align",
        {"regions": 512, "strides": [4, 8, 16, 32], "image": [320, 320], "batch": 2, "backward": True},
    ),
    "RoI pooling, 128 regions, 50x84x512, forward and backward": (
        "pool",
        {"regions": 128, "strides": [16], "channels": 512, "backward": True},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True, help="Python of an environment with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each side, which take turns")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--under-xla", action="store_true", help="ours without TensorFlow's kernels (not compiled)")
    arguments = parser.parse_args()
    worker = subprocess.Popen(
        [arguments.torch_python, __file__, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def theirs(name):
        worker.stdin.write(json.dumps(name) + "\n")
        return json.loads(worker.stdout.readline())

    print(f"load average before the start: {os.getloadavg()[0]:.2f}; milliseconds: median (fastest)")
    print(f"{'':64}{'detseg':>19}{'torchvision':>19}{'ratio':>8}")
    for name in CASES:
        if arguments.only in name:
            report(name, create_ours(name, arguments.under_xla), theirs, arguments.rounds)
    worker.stdin.close()
    worker.wait()


def report(name, ours, theirs, rounds):
    """Prints the times of both and how many times faster ours is."""
    _, result = timed(ours)
    _, expected = theirs(name)
    if not np.isclose(result, expected, rtol=1e-3):
        raise SystemExit(f"{name}: the results differ: {result}, torchvision {expected}")
    times = np.array([(timed(ours)[0], theirs(name)[0]) for _ in range(rounds + 1)][1:])  # the first warms up
    cells = [f"{1000 * np.median(x):9.1f} ({1000 * x.min():.1f})" for x in times.T]
    ratio = np.median(times[:, 1] / times[:, 0])
    print(f"{name:64}{cells[0]:>19}{cells[1]:>19}{ratio:7.2f}x", flush=True)


def timed(function):
    """(seconds, the function's result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def torch_worker():
    """Answers each name of a case with [seconds, result]."""
    functions = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in functions:
            functions = {name: create_theirs(name)}  # one at a time: they hold large maps
        print(json.dumps(timed(functions[name])), flush=True)


# ----- what both sides get -------------------------------------------------------------------------------------------


def suppression_inputs(count, classes):
    """Boxes (N, 4), scores (N,) and labels (N,) of 20 candidates around each of some objects."""
    rng = np.random.default_rng(0)
    objects = np.repeat(random_boxes(rng, count // 20, 800, 1333), 20, axis=0)
    boxes = objects + rng.normal(size=objects.shape) * 0.1 * np.tile(objects[:, 2:] - objects[:, :2], 2)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
    labels = np.repeat(rng.integers(0, classes, count // 20), 20)
    return boxes.astype("float32"), rng.permutation(count).astype("float32") / count, labels.astype("int32")


def pooling_inputs(regions, strides, image=(800, 1344), batch=1, channels=256):
    """Maps (B, H, W, C) of each stride and regions (B, R, 4)."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(batch, image[0] // s, image[1] // s, channels)).astype("float32") for s in strides]
    return maps, random_boxes(rng, batch * regions, *image).reshape(batch, regions, 4).astype("float32")


def random_boxes(rng, count, height, width):
    """(N, 4) in an image, of sizes whose logarithm is even."""
    sizes = np.exp(rng.uniform(np.log(16), np.log(0.8 * min(height, width)), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * ([width, height] - sizes)
    return np.concatenate([corners, corners + sizes], axis=1)


# ----- the sides: a function of nothing that returns a number to compare ---------------------------------------------


def create_ours(name, under_xla):
    import tensorflow as tf

    from detseg.detection.nms import nms
    from detseg.detection.roi_align import roi_align, roi_pool
    from detseg.process import make_deterministic

    make_deterministic()  # as training does: another gradient of RoIAlign

    kind, options = CASES[name]
    options = dict(options)
    if kind == "nms":
        inputs = [tf.constant(x[None]) for x in suppression_inputs(options["count"], options["classes"])]

        @tf.function
        def run(boxes, scores, labels):
            labels = labels if options["classes"] > 1 else None
            indices, kept = nms(boxes, scores, options["iou"], options["kept"], None, labels, under_xla)
            return tf.reduce_sum(tf.where(kept, indices, 0))

        return lambda: int(run(*inputs))

    backward = options.pop("backward", False)
    maps, boxes = pooling_inputs(**options)
    maps, strides = [tf.constant(x) for x in maps], options["strides"]

    def pool(maps):
        if kind == "align":
            return roi_align(maps, boxes, strides, under_xla=under_xla)
        return roi_pool(maps[0], boxes, strides[0], inside=True)

    @tf.function
    def run_pooling(*maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(tf.square(pool(maps)))
        gradients = [tf.convert_to_tensor(x) for x in tape.gradient(total, maps)] if backward else []
        return total, gradients

    return lambda: float(run_pooling(*maps)[0])


def create_theirs(name):
    import torch
    from torchvision import ops

    kind, options = CASES[name]
    options = dict(options)
    if kind == "nms":
        boxes, scores, labels = map(torch.from_numpy, suppression_inputs(options["count"], options["classes"]))

        def run():
            if options["classes"] > 1:
                kept = ops.batched_nms(boxes, scores, labels, options["iou"])
            else:
                kept = ops.nms(boxes, scores, options["iou"])
            return int(kept[: options["kept"]].sum())

        return run

    backward = options.pop("backward", False)
    maps, boxes = pooling_inputs(**options)
    # NCHW, contiguous: what its kernels take fastest
    maps = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_(backward) for x in maps]
    boxes, strides = list(torch.from_numpy(boxes)), options["strides"]
    image = options.get("image", (800, 1344))
    levels = {str(stride): x for stride, x in zip(strides, maps, strict=True)}
    multi_scale = ops.MultiScaleRoIAlign(list(levels), 7, 2)

    def pool():
        if kind == "pool":
            return ops.roi_pool(maps[0], boxes, 7, 1 / strides[0])
        return multi_scale(levels, boxes, [tuple(image)] * len(boxes))

    def run_pooling():
        total = pool().square().sum()
        if backward:
            torch.autograd.grad(total, maps)
        return total.item()

    return run_pooling


if __name__ == "__main__":
    torch_worker() if WORKER in sys.argv else main()
