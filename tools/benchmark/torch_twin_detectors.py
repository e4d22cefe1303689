"""Torchvision's detectors, built as a config says: what torch_twin.py measures for `task: detection`."""

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))  # that model.freeze_stages counts
LEVELS = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
NORMS = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}
TORCH_MEAN_RGB, TORCH_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def form(settings):
    """{key: values} of what a model section has to say, where torchvision has no other form.

    model.roi_aligned and model.anchor_form aren't there: they move samples and anchors by less than a stride, and the
    speed doesn't depend on them. The twin's are torchvision's.
    """
    values = {
        "model.name": ("faster_rcnn", "mask_rcnn", "retinanet"),
        "model.backbone": RESNETS,
        "model.alpha": (1,),
        "model.output_stride": (32,),
        "model.norm": tuple(NORMS),
        "model.activation": (None,),
        "model.head_norm": (None,),
        "model.box_loss_weight": (1,),
    }
    if settings["backbone"] in RESNETS[2:]:
        values["model.variant"] = ("b",)
    if settings["norm"] == "batch":
        values["model.freeze_stages"] = (0,)  # torchvision's would take their batch's statistics
    return values | (_retinanet_form if settings["name"] == "retinanet" else _faster_rcnn_form)(settings)


def create_detector(settings, class_count, size):
    """The detector of a config's model section: images, a list of raw pixels (3, H, W), to what torchvision's returns.

    size:  (height, width) of the images, to which none is resized.
    """
    model = (_retinanet if settings["name"] == "retinanet" else _faster_rcnn)(settings, class_count)
    statistics = [[255 * x for x in values] for values in (TORCH_MEAN_RGB, TORCH_STD_RGB)]
    model.transform = RawPixels(min(size), max(size), *statistics)
    return model


class RawPixels(GeneralizedRCNNTransform):
    """Normalises and pads pixels 0..255. torchvision's own would interpolate images that have their size already."""

    def normalize(self, image):
        return super().normalize(image.float())

    def resize(self, image, target=None):
        return image, target


def targets(objects, settings, device, size):
    """What the detector trains on, of each image: boxes (N, 4) and labels (N,), of Mask R-CNN masks (N, H, W) too, each
    of a whole box. Faster R-CNN's background is 0.

    objects:  a job's, for each image {"boxes": .., "labels": ..}.
    size:     (H, W) of the images.
    """
    first = 0 if settings["name"] == "retinanet" else 1
    found = [
        {
            "boxes": torch.tensor(of_image["boxes"], device=device),
            "labels": torch.tensor(of_image["labels"], device=device) + first,
        }
        for of_image in objects
    ]
    for of_image in found if settings["name"] == "mask_rcnn" else ():
        of_image["masks"] = torch.zeros(len(of_image["boxes"]), *size, dtype=torch.uint8, device=device)
        for mask, (x1, y1, x2, y2) in zip(of_image["masks"], of_image["boxes"].round().int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
    return found


def set_scores(model):
    """As detseg's `set_scores`: about 1/2 for the first class everywhere, and none for the others."""
    if isinstance(model, FasterRCNN):
        layer = model.roi_heads.box_predictor.cls_score
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
        nn.init.constant_(layer.bias[:2], 10)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.001)
    else:
        head = model.head.classification_head
        nn.init.constant_(head.cls_logits.bias, -10)
        nn.init.zeros_(head.cls_logits.bias.view(head.num_anchors, -1)[:, 0])


# ----- Faster R-CNN --------------------------------------------------------------------------------------------------


def _faster_rcnn_form(settings):
    return {
        "model.neck": ("fpn",),
        "model.rpn_channels": (None, settings["fpn_channels"]),
        "model.roi_background_iou": ([0, settings["roi_background_iou"][1]],),
        "model.head": (None, "dense"),
        "model.dropout": (0,),
        "model.class_agnostic": (False,),
        "model.box_loss": ("smooth_l1",),
        "model.smooth_l1_beta": (1 / 9,),
    }


def _faster_rcnn(settings, class_count):
    """fasterrcnn_resnet50_fpn with a config's numbers."""
    backbone = _backbone(settings, LastLevelMaxPool())
    channels, head_channels = backbone.out_channels, settings["head_channels"] or 1024
    keys = _keys(settings)
    anchors = _anchors(settings, [8 * key for key in (*keys, 64)])
    names = [str(index) for index in range(len(keys))]
    pool = MultiScaleRoIAlign(names, settings["roi_size"] or 7, settings["sampling_ratio"])
    model, masks = FasterRCNN, {}
    if settings["name"] == "mask_rcnn":
        width, count = settings["mask_channels"], settings["mask_convolutions"]
        model, masks = (
            MaskRCNN,
            {
                "mask_roi_pool": MultiScaleRoIAlign(names, settings["mask_roi_size"], settings["sampling_ratio"]),
                "mask_head": MaskRCNNHeads(channels, (width,) * count, 1),
                "mask_predictor": MaskRCNNPredictor(width, width, class_count + 1),
            },
        )
    return model(
        backbone,
        **masks,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=settings["train_candidates"],
        rpn_pre_nms_top_n_test=settings["test_candidates"],
        rpn_post_nms_top_n_train=settings["train_proposals"],
        rpn_post_nms_top_n_test=settings["test_proposals"],
        rpn_nms_thresh=settings["rpn_nms_iou"],
        rpn_fg_iou_thresh=settings["rpn_foreground_iou"],
        rpn_bg_iou_thresh=settings["rpn_background_iou"],
        rpn_batch_size_per_image=settings["rpn_samples"],
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * pool.output_size[0] ** 2, head_channels),
        box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(head_channels, class_count + 1),
        box_score_thresh=settings["score_threshold"],
        box_nms_thresh=settings["nms_iou"],
        box_detections_per_img=settings["max_detections"],
        box_fg_iou_thresh=settings["roi_foreground_iou"],
        box_bg_iou_thresh=settings["roi_background_iou"][1],
        box_batch_size_per_image=settings["roi_samples"],
        box_positive_fraction=settings["roi_foreground_share"],
        bbox_reg_weights=[1 / deviation for deviation in settings["box_deviations"]],
    )


# ----- RetinaNet -----------------------------------------------------------------------------------------------------


def _retinanet_form(settings):
    return {
        "model.head_convolutions": (4,),
        "model.focal_alpha": (0.25,),
        "model.focal_gamma": (2,),
        "model.box_loss": ("l1",),
        "model.box_deviations": ([1, 1, 1, 1],),
    }


def _retinanet(settings, class_count):
    """retinanet_resnet50_fpn with a config's numbers."""
    width, channels = 512 if settings["backbone"] in RESNETS[:2] else 2048, settings["fpn_channels"]
    extra = LastLevelP6P7(channels if settings["top_levels"] == "conv_p5" else width, channels)
    extra.use_P5 = settings["top_levels"] == "conv_p5"  # torchvision looks which of them is as wide
    return RetinaNet(
        _backbone(settings, extra),
        class_count,
        anchor_generator=_anchors(settings, [4 * key for key in (*_keys(settings), 64, 128)]),
        score_thresh=settings["score_threshold"],
        nms_thresh=settings["nms_iou"],
        detections_per_img=settings["max_detections"],
        fg_iou_thresh=settings["foreground_iou"],
        bg_iou_thresh=settings["background_iou"],
        topk_candidates=settings["max_candidates"],
    )


# ----- parts ---------------------------------------------------------------------------------------------------------


def _backbone(settings, extra):
    """A ResNet with a feature pyramid; its residual branches start silent, as detseg's worker has them."""
    create = getattr(torchvision.models, settings["backbone"])
    net = create(weights=None, norm_layer=NORMS[settings["norm"]], zero_init_residual=True)
    for layers in STAGES[: settings["freeze_stages"]]:
        for layer in layers:
            net.get_submodule(layer).requires_grad_(False)
    keys = _keys(settings)
    names = {LEVELS[key]: str(index) for index, key in enumerate(keys)}
    widths = [net.inplanes * key // 32 for key in keys]
    return BackboneWithFPN(net, names, widths, settings["fpn_channels"], extra)


def _keys(settings):
    return [key for key in LEVELS if key >= settings["finest_stride"]]


def _anchors(settings, default_sizes):
    sizes = settings["anchor_sizes"] or default_sizes
    sizes = [size if isinstance(size, list) else [size] for size in sizes]
    sizes = [tuple(size * scale for size in level for scale in settings["anchor_scales"]) for level in sizes]
    return AnchorGenerator(tuple(sizes), (tuple(settings["anchor_ratios"]),) * len(sizes))
