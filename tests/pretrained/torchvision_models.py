"""Random torchvision models as .pth files, with what they say of images. Run by a Python that has torchvision:

python torchvision_models.py OUT NAME...   writes OUT/NAME.pth and OUT/NAME.npz for each name.
"""

import sys

import numpy as np
import torch
import torchvision

BACKBONES = ("vgg", "resnet", "mobilenet")
NOT_USED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's ids up to 90
SIZES = {"detector": (235, 317), "other": (97, 65)}


def images_of(size):
    """uint8 (2, H, W, 3)."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(0, 224, (2, *(-(-side // 32) for side in size), 3)), np.ones((1, 32, 32, 1), int))
    patches = patches[:, : size[0], : size[1]]
    return (patches + rng.integers(0, 32, patches.shape)).astype("uint8")


def randomise(model):
    """Gives batch norms and all biases random values."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.1, 0.4 if name.endswith("bn3") else 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.1)


def measure_statistics(backbone, images):
    """Gives batch norms the statistics of these images: features vary as those of a trained net do."""
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    backbone.train()
    backbone(images)
    backbone.eval()


def normalised(images):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def last(x):
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def backbone(name):
    model = getattr(torchvision.models, name)(weights=None).eval()
    randomise(model)
    images = images_of(SIZES["other"])
    x = normalised(images)
    if name.startswith("resnet"):
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    else:
        x = model.features(x)
    return model, {"images": images, "features": last(x)}


def segmenter(name):
    model = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True).eval()
    randomise(model)
    images = images_of(SIZES["other"])
    said = model(normalised(images))
    return model, {"images": images, "logits": last(said["out"]), "auxiliary": last(said["aux"])}


def detector(name):
    images = images_of(SIZES["detector"])
    height, width = images.shape[1:3]
    create = getattr(torchvision.models.detection, name)
    most = {"detections_per_img": 2000} if "retinanet" in name else {}
    model = create(weights=None, weights_backbone=None, min_size=height, max_size=width, **most).eval()
    randomise(model)
    measure_statistics(model.backbone, normalised(images))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5 if "mobilenet" in name else 0.0  # as with the published weights
    pixels = list(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    spread_outputs(model, pixels[0])
    results = {"images": images}
    for i, found in enumerate(model(pixels)):
        results |= {f"{key} {i}": x.numpy() for key, x in found.items()}
    return model, results


def spread_outputs(model, image):
    """Scores and moves of a spread like that of a trained model's, none of an id that COCO doesn't use."""
    if hasattr(model, "rpn"):
        predictor = model.roi_heads.box_predictor
        deviations = {model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.4}
        deviations |= {predictor.cls_score: 2.0, predictor.bbox_pred: 1.0}
        classifier, classes = predictor.cls_score, 91
        if model.roi_heads.mask_predictor is not None:
            deviations[model.roi_heads.mask_predictor.mask_fcn_logits] = 2.0
    else:
        classifier, classes = model.head.classification_head.cls_logits, 91
        deviations = {classifier: 1.0, model.head.regression_head.bbox_reg: 0.3}

    def spread(module, inputs, output):
        deviation, mean = torch.std_mean(output, [i for i in range(output.ndim) if i != 1])
        factor = deviations[module] / deviation
        module.weight *= factor.view(-1, *[1] * (module.weight.ndim - 1))
        module.bias -= mean
        module.bias *= factor
        if module is classifier and not hasattr(model, "rpn"):
            module.bias -= 3.0
        hooks.pop(module).remove()
        return module(*inputs)

    hooks = {module: module.register_forward_hook(spread) for module in deviations}
    model([image])
    assert not hooks
    bias = classifier.bias.view(-1, classes)
    bias[:, NOT_USED] = -1e4
    if not hasattr(model, "rpn"):
        bias[:, 0] = -1e4


def main(out, *names):
    for name in names:
        torch.manual_seed(0)
        with torch.no_grad():
            if "rcnn" in name or "retinanet" in name:
                model, results = detector(name)
            else:
                is_backbone = name.startswith(BACKBONES)
                model, results = backbone(name) if is_backbone else segmenter(name)
        torch.save(model.state_dict(), f"{out}/{name}.pth")
        np.savez(f"{out}/{name}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
