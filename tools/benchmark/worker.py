"""Our side of a benchmark, in a process of its own: builds a model, then measures a round for each line of stdin.

The protocol is that of harness.py, which starts this file; torch_twin.py is the same in torch.
"""

import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import keras
import numpy as np

from detseg.config import parse_config
from detseg.data.buckets import object_arrays, object_batch, shape_buckets
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.detection.mask_head import CROP_SIZE
from detseg.errors import UserError
from detseg.process import accelerators, make_deterministic
from detseg.tasks import create_task
from detseg.training.fit import compile_model
from detseg.training.run_folder import describe_environment

STEPS_PER_EPOCH = 1000  # keeps every schedule away from its end


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    job = json.loads(sys.stdin.readline())
    if job["measure"] == "train-step":
        make_deterministic()  # as training does
    try:
        model, measure = MEASURES[job["measure"]](job, parse_config(job["config"]))
        measure(1)  # compiles
        seconds, _ = measure(2)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    print(json.dumps(_facts(model) | {"step_seconds": seconds / 2}), file=answers)
    for line in sys.stdin:
        seconds, loss = measure(json.loads(line)["steps"])
        print(json.dumps({"seconds": seconds, "peak_memory": peak_memory(), "loss": loss}), file=answers)


# ----- what can be measured: job, Config -> (model, function steps -> (seconds, loss or None)) -----------------------


def train_step(job, config):
    """Steps of keras' fit over one batch, given again and again, from the end of an unmeasured first step on.

    fit, because that is what users get; its start, some 30 ms a call, is no part of a step.
    """
    task, model, backbone = _create_model(job, config)
    loss = task.create_loss(dict.fromkeys(task.classes, 1.0))  # in place of weights counted on data
    compile_model(model, backbone, loss, config, STEPS_PER_EPOCH)
    batches = _endless(random_batch(job, config), config.task)

    def measure(steps):
        stopwatch = Stopwatch()
        model.fit(batches, steps_per_epoch=1 + steps, callbacks=[stopwatch], shuffle=False, verbose=0)
        return stopwatch.seconds, stopwatch.loss

    return model, measure


def _endless(batch, task):
    """One batch again and again, of which fit knows what it knows in training: see `load_for_fit`."""
    import tensorflow as tf

    if task == "segmentation":
        return tf.data.Dataset.from_tensors(batch).repeat()
    images, truth = batch
    signature = (
        tf.TensorSpec((len(images), None, None, images.shape[3]), images.dtype),
        {name: tf.TensorSpec(array.shape, array.dtype) for name, array in truth.items()},
    )
    return tf.data.Dataset.from_generator(lambda: itertools.repeat(batch), output_signature=signature).prefetch(2)


class Stopwatch(keras.callbacks.Callback):
    """Seconds from the end of the first batch to that of the last. Reads each loss, as training does, and so waits for
    the device."""

    def on_train_batch_end(self, batch, logs=None):
        self.loss = float(logs["loss"])
        if batch == 0:
            self._start = time.perf_counter()
        self.seconds = time.perf_counter() - self._start


def inference(job, config):
    """One image after the other from array to label map or detections, as prediction does it."""
    task, model, _ = _create_model(job, config)
    if config.task == "detection":
        set_scores(model, config.model.name)
    predict = task.create_inference(model)
    image = random_images(job, config)[0]

    def measure(steps):
        predict(image)
        start = time.perf_counter()
        for _ in range(steps):
            predict(image)
        return time.perf_counter() - start, None

    return model, measure


MEASURES = {"train-step": train_step, "inference": inference}


def _create_model(job, config):
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.train.precision)
    task = create_task(config, [f"class {index}" for index in range(job["classes"])])
    model, backbone = task.create_model(pretrained=False)
    if config.task == "detection":
        silence_residuals(backbone)
    return task, model, backbone


def random_images(job, config):
    """uint8 (B, H, W, C)."""
    shape = (job["batch_size"], *job["size"], config.data.channels)
    return np.random.default_rng(config.seed).integers(0, 256, shape, dtype=np.uint8)


def random_batch(job, config):
    """uint8 images (B, H, W, C), with label maps (B, H, W) or, padded, with the ground truth of `object_batch`."""
    images = random_images(job, config)
    if config.task == "segmentation":
        rng = np.random.default_rng(config.seed + 1)
        return images, rng.integers(0, job["classes"], images.shape[:3], dtype=np.uint8)
    count = len(job["objects"][0]["labels"])  # the same in every image
    mask_size = CROP_SIZE if config.model.reads_masks else None
    samples = []
    for image, objects in zip(images, job["objects"], strict=True):
        boxes = np.array(objects["boxes"], np.float32)
        masks = None if mask_size is None else masks_of_boxes(boxes, image.shape[:2])
        samples.append(object_arrays(Sample(image, objects=Objects(boxes, objects["labels"], masks=masks)), mask_size))
    return object_batch(samples, shape_buckets(None, job["size"]), count)


def masks_of_boxes(boxes, size):
    """Masks of whole boxes: uint8 (N, H, W)."""
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int).tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


# ----- random weights under which a detector works as a trained one does ---------------------------------------------


def silence_residuals(backbone):
    """Gives a ResNet's residual branches the scale 0, as training often starts (Goyal et al. 2017, section 5.1).

    Without statistics of its own each of the norms passes on what comes, and the branches' random sums would grow to
    boxes of which only a handful is left after suppression.
    """
    last = "2" if backbone.name in ("resnet18", "resnet34") else "3"
    for layer in backbone.model.layers:
        if re.fullmatch(rf"conv\d_block\d+_{last}_bn", layer.name):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))


def set_scores(model, name):
    """Gives the first class a score of about 1/2 everywhere, and the other classes none.

    So every proposal (Faster and Mask R-CNN) or anchor (RetinaNet) comes to the last suppression once, whatever the
    random weights; with all scores about equal, none would reach the threshold or all classes of each.
    """
    if name != "retinanet":
        bias = model.head.get_layer("class_logits").bias
        values = np.zeros(bias.shape, "float32")
        values[[0, -1]] = 10  # the last is background's
    else:
        bias = model.head.get_layer("class_output").bias
        values = np.full((model.anchors.count(), model.class_count), -10, "float32")
        values[:, 0] = 0
    bias.assign(values.reshape(-1))


# ----- facts ---------------------------------------------------------------------------------------------------------


def _facts(model):
    environment = describe_environment()
    backend = environment["keras_backend"]
    versions = {name: environment["packages"][name] for name in ("keras", backend)}
    return {
        "parameters": sum(int(np.prod(variable.shape)) for variable in model.trainable_variables),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": ", ".join(accelerators()) or "cpu",
        "versions": {"detseg": environment["detseg"], **versions},
        "environment": environment,
    }


def peak_memory():
    """The most memory that this process has had resident, in bytes; None where the system has no /proc.

    (getrusage's ru_maxrss can hold the peak of the process that started this one.)
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
