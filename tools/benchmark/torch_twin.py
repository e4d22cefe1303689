"""The peer of `tools/benchmark.py --against torch`: detseg's networks in torch, measured in a process of its own.

Runs in an environment with torch and torchvision and imports nothing of detseg. The protocol is that of
harness.py. Networks of segmentation are here, their layers named as detseg's are, those of a ResNet as
torchvision's; detectors are torchvision's, see torch_twin_detectors.py.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch_twin_detectors as detectors
import torchvision
from torch import nn
from torch.nn import functional

VGG_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
VGG_FILTERS = (64, 128, 256, 512, 512)
RESNETS = ("resnet50", "resnet101", "resnet152")
SCORED_STRIDES = {"fcn32s": (32,), "fcn16s": (32, 16), "fcn8s": (32, 16, 8)}
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB, TORCH_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What a config has to say where the twin has one form only: key -> values.
_EVERY_CONFIG = {"data.channels": (3,)}
_SEGMENTATION = {
    "model.norm": ("batch",),
    "model.activation": (None,),
    "model.multi_grid": (None,),
}
_FCN = {"model.output_stride": (32,), "model.upsampling": ("fixed",)}
_DEEPLABV3 = {
    "model.backbone": RESNETS,
    "model.output_stride": (8, 16),
    "model.image_pooling": (True,),
    "model.separable": (False,),
    "model.resize": ("half_pixel",),
    "model.auxiliary_weight": (0,),
}
_RESNET = {"model.variant": ("b",), "model.alpha": (1,)}
_SEGMENTATION_TRAINING = {
    "loss": (
        [{"name": "cross_entropy", "weight": 1, "class_weights": None, "label_smoothing": 0, "border_weights": None}],
    ),
    "model.freeze_stages": (0,),
}
_TRAINING = {
    "train.optimizer.name": ("sgd",),
    "train.optimizer.clip_norm": (None,),
    "train.ema": (None,),
}


class Unsupported(Exception):
    """The twin has no such network."""


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    job = json.loads(sys.stdin.readline())
    try:
        model, measure = create_measurement(job)
    except Unsupported as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    measure(1)
    seconds, _ = measure(2)
    print(json.dumps(facts(model) | {"step_seconds": seconds / 2}), file=answers)
    for line in sys.stdin:
        seconds, loss = measure(json.loads(line)["steps"])
        print(json.dumps({"seconds": seconds, "peak_memory": peak_memory(), "loss": loss}), file=answers)


# ----- what can be measured ------------------------------------------------------------------------------------------


def create_measurement(job):
    """(model, function steps -> (seconds, loss or None)) of a job."""
    config = job["config"]
    is_training = job["measure"] == "train-step"
    check(config, is_training)
    torch.manual_seed(config["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    create = create_detection if config["task"] == "detection" else create_segmentation
    model, loss, predict = create(job, device)
    model.train(is_training)
    return model, train_step(model, loss, config, device) if is_training else inference(predict, config, device)


def create_segmentation(job, device):
    """(model, function -> loss of the batch, function -> label maps of it)."""
    config = job["config"]
    model = create_model(config["model"], job["classes"]).to(device, memory_format=torch.channels_last)
    forward = torch.compile(model) if job["compiled"] else model
    images = random_images(job)
    labels = np.random.default_rng(config["seed"] + 1).integers(0, job["classes"], images.shape[:3], dtype=np.uint8)
    labels = torch.from_numpy(labels)
    criterion = nn.CrossEntropyLoss(ignore_index=config["data"]["ignore_label"])

    def loss():
        return criterion(forward(images.to(device).permute(0, 3, 1, 2)), labels.to(device).long())

    def predict():
        return forward(images.to(device).permute(0, 3, 1, 2)).argmax(1).to(torch.uint8).cpu().numpy()

    return model, loss, predict


def create_detection(job, device):
    """(model, function -> loss of the batch, function -> detections in it)."""
    settings = job["config"]["model"]
    model = detectors.create_detector(settings, job["classes"], job["size"])
    model = model.to(device, memory_format=torch.channels_last)
    if job["measure"] == "inference":
        detectors.set_scores(model)
    if job["compiled"]:
        model.backbone.compile()  # what follows has shapes that depend on data
    images = random_images(job)

    def loss():
        pixels = list(images.to(device).permute(0, 3, 1, 2))
        return sum(model(pixels, detectors.targets(job["objects"], settings, device, job["size"])).values())

    def predict():
        found = model(list(images.to(device).permute(0, 3, 1, 2)))
        return [{name: values.cpu().numpy() for name, values in of_image.items()} for of_image in found]

    return model, loss, predict


def random_images(job):
    """uint8 (B, H, W, 3)."""
    rng = np.random.default_rng(job["config"]["seed"])
    return torch.from_numpy(rng.integers(0, 256, (job["batch_size"], *job["size"], 3), dtype=np.uint8))


def train_step(model, compute_loss, config, device):
    """Steps of the usual loop, timed from the end of an unmeasured first one on."""
    settings = config["train"]["optimizer"]
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings["learning_rate"],
        momentum=settings["momentum"],
        nesterov=settings["nesterov"],
        weight_decay=settings["weight_decay"],
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config["train"]["precision"] == "mixed_float16")

    def step():
        optimizer.zero_grad()
        with autocast(config, device):
            loss = compute_loss()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    def measure(steps):
        step()
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        return time.perf_counter() - start, loss

    return measure


def inference(predict, config, device):
    """One image after the other from array to label map or detections."""

    def measured():
        with torch.inference_mode(), autocast(config, device):
            predict()

    def measure(steps):
        measured()
        start = time.perf_counter()
        for _ in range(steps):
            measured()
        return time.perf_counter() - start, None

    return measure


def autocast(config, device):
    precision = config["train"]["precision"]
    dtype = torch.float16 if precision == "mixed_float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


# ----- networks: raw pixels (B, C, H, W) uint8 -> logits (B, K, H, W) float32 ----------------------------------------


def check(config, is_training):
    """Raises Unsupported for a config of which there is no twin."""
    _check_values(config, _EVERY_CONFIG | (_TRAINING if is_training else {}))
    if config["task"] == "detection":
        _check_values(config, detectors.form(config["model"]))
        return
    names = {"model.name": (*SCORED_STRIDES, "deeplabv3"), "model.backbone": (*VGG_CONVOLUTIONS, *RESNETS)}
    _check_values(config, names | _SEGMENTATION)
    _check_values(config, _FCN if config["model"]["name"] in SCORED_STRIDES else _DEEPLABV3)
    _check_values(config, _RESNET if config["model"]["backbone"] in RESNETS else {})
    _check_values(config, _SEGMENTATION_TRAINING if is_training else {})


def _check_values(config, allowed):
    for key, values in allowed.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value not in values:
            expected = " or ".join(json.dumps(choice) for choice in values)
            raise Unsupported(f"{key}: the twin has no {json.dumps(value)}, only {expected}; change it with --set")


def create_model(settings, class_count):
    """The network of a config's model section."""
    backbone, stride = settings["backbone"], settings["output_stride"]
    trunk = VGG(backbone, settings["alpha"]) if backbone in VGG_CONVOLUTIONS else ResNet(backbone, stride)
    if settings["name"] == "deeplabv3":
        return DeepLabV3(trunk, settings, class_count)
    return FCN(trunk, settings, class_count)


class VGG(nn.Module):
    """{native stride: map} of a VGG without its dense layers: the pools at strides 8, 16 and 32."""

    def __init__(self, name, alpha):
        super().__init__()
        channels = 3
        self.blocks = VGG_CONVOLUTIONS[name]
        for block, (convolutions, filters) in enumerate(zip(self.blocks, VGG_FILTERS, strict=True), start=1):
            for index in range(1, convolutions + 1):
                convolution = nn.Conv2d(channels, int(filters * alpha), 3, padding=1)
                self.add_module(f"block{block}_conv{index}", convolution)
                channels = int(filters * alpha)
        self.channels = {8: int(256 * alpha), 16: channels, 32: channels}
        self.register_buffer("mean", torch.tensor(CAFFE_MEAN_BGR).view(3, 1, 1), persistent=False)

    def normalise(self, images):
        return images.float().flip(1) - self.mean

    def forward(self, x):
        features = {}
        for block, convolutions in enumerate(self.blocks, start=1):
            for index in range(1, convolutions + 1):
                x = functional.relu(self.get_submodule(f"block{block}_conv{index}")(x), inplace=True)
            x = features[2**block] = functional.max_pool2d(x, 2)
        return features


class ResNet(nn.Module):
    """{native stride: map} of torchvision's ResNet, the stages after the output stride dilated."""

    def __init__(self, name, output_stride):
        super().__init__()
        dilated = [False, output_stride < 16, output_stride < 32]
        self.net = getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=dilated)
        del self.net.fc
        self.channels = {8: 512, 16: 1024, 32: 2048}
        self.register_buffer("mean", 255 * torch.tensor(TORCH_MEAN_RGB).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(TORCH_STD_RGB).view(3, 1, 1), persistent=False)

    def normalise(self, images):
        return (images.float() - self.mean) / self.std

    def forward(self, x):
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        x = features8 = net.layer2(net.layer1(x))
        x = features16 = net.layer3(x)
        return {8: features8, 16: features16, 32: net.layer4(x)}


class FCN(nn.Module):
    """FCN-32s, 16s and 8s (Long, Shelhamer, Darrell), bilinear between the scores."""

    def __init__(self, trunk, settings, class_count):
        super().__init__()
        self.trunk = trunk
        self.strides = SCORED_STRIDES[settings["name"]]
        channels = trunk.channels[32]
        head = settings["head_channels"]
        if head is None and isinstance(trunk, VGG):
            head = 4096
        self.dropout = nn.Dropout(settings["dropout"])
        self.fc6 = self.fc7 = None
        if head is not None:
            self.fc6, self.fc7 = nn.Conv2d(channels, head, 7, padding=3), nn.Conv2d(head, head, 1)
            channels = head
        for stride in self.strides:
            score = nn.Conv2d(channels if stride == 32 else trunk.channels[stride], class_count, 1)
            self.add_module(f"score{stride}", score)
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, images):
        features = self.trunk(pad(self.trunk.normalise(images), 32))
        x = features[32]
        for convolution in (self.fc6, self.fc7):
            x = x if convolution is None else functional.relu(convolution(x), inplace=True)
            x = self.dropout(x)
        score = self.score32(x)
        for stride in self.strides[1:]:
            score = upsample(score, 2) + self.get_submodule(f"score{stride}")(features[stride])
        return crop(upsample(score.float(), self.strides[-1]), images)


class DeepLabV3(nn.Module):
    """DeepLabv3 (Chen et al. 2017): atrous spatial pyramid pooling on the last features."""

    def __init__(self, trunk, settings, class_count):
        super().__init__()
        self.trunk = trunk
        self.output_stride = settings["output_stride"]
        channels, features = settings["aspp_channels"], trunk.channels[32]
        rates = [rate * 16 // self.output_stride for rate in settings["aspp_rates"]]
        self.branches = nn.ModuleList([conv_norm_relu(features, channels, 1)])
        self.branches.extend(conv_norm_relu(features, channels, 3, rate) for rate in rates)
        self.pooling = conv_norm_relu(features, channels, 1)
        self.join = conv_norm_relu((len(rates) + 2) * channels, channels, 1)
        self.dropout = nn.Dropout(settings["dropout"])
        self.classifier = nn.Conv2d(channels, class_count, 1)

    def forward(self, images):
        padded = pad(self.trunk.normalise(images), self.output_stride)
        x = self.trunk(padded)[32]
        size = x.shape[-2:]
        pooled = self.pooling(x.mean((2, 3), keepdim=True)).expand(-1, -1, *size)
        x = self.join(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        logits = self.classifier(self.dropout(x)).float()
        logits = functional.interpolate(logits, padded.shape[-2:], mode="bilinear")
        offset = (16 - self.output_stride) // 2  # as at output stride 16: see resize_offset in detseg
        return crop(functional.pad(logits, (offset, 0, offset, 0), mode="replicate"), images)


def conv_norm_relu(channels, filters, size, dilation=1):
    convolution = nn.Conv2d(channels, filters, size, padding=size // 2 * dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


def pad(images, multiple):
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % multiple, 0, -height % multiple))


def crop(logits, images):
    return logits[..., : images.shape[-2], : images.shape[-1]]


def upsample(x, factor):
    return functional.interpolate(x, scale_factor=factor, mode="bilinear")


# ----- facts ---------------------------------------------------------------------------------------------------------


def facts(model):
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def peak_memory():
    """The most memory that this process has had resident, in bytes; None where the system has no /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
