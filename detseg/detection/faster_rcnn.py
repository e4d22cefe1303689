"""Faster R-CNN (Ren et al.: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015) on
every backbone, on a single map as there, or on a feature pyramid (Lin et al.: FPN, CVPR 2017, section 4)."""

from dataclasses import dataclass

import keras
from keras import ops

from detseg.backbones.backbone import Preprocess
from detseg.detection.anchors import LevelAnchors
from detseg.detection.boxes import clip_boxes, decode_boxes
from detseg.detection.fpn import fpn
from detseg.detection.heads import create_dense_head, create_rpn, create_stage_head, split_backbone
from detseg.detection.losses import box_losses
from detseg.detection.matching import FOREGROUND, match, without_padding
from detseg.detection.nms import NO_SCORE, is_at_least, suppress, take_rows, top_rows
from detseg.detection.proposals import sample, sample_proposals, select_proposals
from detseg.detection.roi_align import roi_align, roi_pool
from detseg.errors import UserError
from detseg.layers.padding import PadToMultiple
from detseg.layers.replicas import replica_count

PADDING_MULTIPLE = 32  # the deepest native stride of every backbone
PYRAMID_KEYS = (4, 8, 16, 32)
SINGLE_MAP_SIZES = ((128, 256, 512),)  # section 3.3
SIZE_IN_STRIDES = 8  # of a pyramid level's anchors: 32 to 512 on P2 to P6 (FPN, section 4.1)
RPN_FOREGROUND_SHARE = 0.5  # section 3.1.3
MAX_CANDIDATES = 1000  # pairs of a region and a class that come to the last suppression
MIN_SIZE = 1e-2  # pixels, of detections
LOSSES = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss")


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides on anchors, proposals and detections, by the names and in the units of the config's keys."""

    rpn_foreground_iou: float
    rpn_background_iou: float
    rpn_samples: int
    rpn_nms_iou: float
    train_candidates: int
    test_candidates: int
    train_proposals: int
    test_proposals: int
    roi_pooling: str
    roi_size: int
    roi_aligned: bool
    sampling_ratio: int
    roi_samples: int
    roi_foreground_share: float
    roi_foreground_iou: float
    roi_background_iou: tuple
    box_deviations: tuple
    box_loss: str
    smooth_l1_beta: float
    box_loss_weight: float
    score_threshold: float
    nms_iou: float
    max_detections: int


def create_faster_rcnn(
    backbone,
    class_count,
    *,
    channels=None,
    neck="fpn",
    finest_stride=4,
    fpn_channels=256,
    head_norm=None,
    anchor_sizes=None,
    anchor_ratios=(0.5, 1.0, 2.0),
    anchor_scales=(1.0,),
    anchor_form="cell",
    rpn_channels=None,
    rpn_foreground_iou=0.7,
    rpn_background_iou=0.3,
    rpn_samples=256,
    rpn_nms_iou=0.7,
    train_candidates=2000,
    test_candidates=1000,
    train_proposals=2000,
    test_proposals=1000,
    roi_pooling="align",
    roi_size=None,
    roi_aligned=True,
    sampling_ratio=2,
    roi_samples=512,
    roi_foreground_share=0.25,
    roi_foreground_iou=0.5,
    roi_background_iou=(0.0, 0.5),
    head=None,
    head_channels=None,
    dropout=0.0,
    class_agnostic=False,
    box_deviations=(0.1, 0.1, 0.2, 0.2),
    box_loss="smooth_l1",
    smooth_l1_beta=1 / 9,
    box_loss_weight=1.0,
    score_threshold=0.05,
    nms_iou=0.5,
    max_detections=100,
    seed=0,
):
    """A `FasterRCNN` for raw pixels.

    backbone:        a `detseg.backbones.Backbone`, with which the detector shares its layers.
    class_count:     K, without background.
    channels:        of the images; None: the backbone's.
    neck:            "fpn": levels of native strides finest_stride..32 and one more by pooling; "none": the map of
                     native stride 16 (VGG: block 5's last convolution, as in the paper; ResNet: conv4_x).
    head_norm:       None, as in the papers, or one of `detseg.layers.norm.NORMS`: of the pyramid, the region proposal
                     network and a dense head.
    anchor_sizes, anchor_ratios, anchor_scales:  of `Anchors`; sizes None: 8 x the native stride of a pyramid's levels,
                     or 128, 256 and 512 on a single map.
    anchor_form:     "cell", or "torchvision": centred on corners of cells, rounded, and the stride of a level is the
                     image's size // the map's.
    rpn_channels:    of its 3x3 convolution; None: fpn_channels, or 512 on a single map.
    rpn_foreground_iou, rpn_background_iou, rpn_samples:  anchors to train on (section 3.1.2 and 3.1.3). Those that
                     reach out of the image are trained on too (FPN, section 5.1).
    rpn_nms_iou, train_candidates, test_candidates, train_proposals, test_proposals:  of `select_proposals`.
    roi_pooling:     "align" (`roi_align`, with roi_size, roi_aligned and sampling_ratio), or "pool" (`roi_pool`, on a
                     single map only). roi_size None: 7, or 14 for a stage head.
    roi_samples, roi_foreground_share, roi_foreground_iou, roi_background_iou:  of `sample_proposals`.
    head:            "dense": `create_dense_head`, of head_channels (None: 1024, or a VGG's 4096 on a single map) and
                     dropout. "stage": `create_stage_head`, on a single map only. None: stage on a single map unless
                     the backbone is a VGG, otherwise dense.
    class_agnostic:  bool, whether all classes share their regression targets.
    box_deviations:  of the head's targets, as in `encode_boxes`.
    box_loss, smooth_l1_beta, box_loss_weight:  of `box_losses`, of the head. The region proposal network's is smooth L1
                     whatever the head's, with the same beta and weight 1.
    score_threshold, nms_iou, max_detections:  of detections.
    seed:            int, of the random choice of what is trained on.
    Raises UserError for options that don't go together and for anchor sizes that don't fit the levels.
    """
    on_pyramid = neck == "fpn"
    is_vgg = backbone.name.startswith("vgg")
    if head is None:
        head = "dense" if on_pyramid or is_vgg else "stage"
    for field, value, single_map_value in (("head", head, "stage"), ("roi_pooling", roi_pooling, "pool")):
        if on_pyramid and value == single_map_value:
            raise UserError(f"model.{field}: {value} needs a single map; set model.neck to none or leave {field} out")

    if on_pyramid:
        keys = tuple(key for key in PYRAMID_KEYS if key >= finest_stride)
        extractor, strides = _pyramid(backbone, channels, keys, fpn_channels, head_norm)
        anchor_sizes = anchor_sizes or tuple(SIZE_IN_STRIDES * key for key in strides)
    else:
        trunk, stage = _single_map(backbone, head)
        extractor, strides = _on_raw_pixels(backbone, channels, lambda x: [trunk(x)]), {16: backbone.strides[16]}
        anchor_sizes = anchor_sizes or SINGLE_MAP_SIZES
    anchors = LevelAnchors(anchor_sizes, anchor_ratios, anchor_scales, anchor_form, strides)

    feature_channels = extractor.outputs[0].shape[-1]
    rpn_channels = rpn_channels or (fpn_channels if on_pyramid else 512)
    rpn = create_rpn(feature_channels, anchors.count(), rpn_channels, head_norm)
    roi_size = roi_size or (14 if head == "stage" else 7)
    box_count = 1 if class_agnostic else class_count
    if head == "stage":
        region_head = create_stage_head(stage, roi_size, class_count, box_count)
    else:
        head_channels = head_channels or (4096 if is_vgg and not on_pyramid else 1024)
        region_head = create_dense_head(
            feature_channels, roi_size, class_count, box_count, head_channels, head_norm, dropout
        )
    rules = Rules(
        rpn_foreground_iou=rpn_foreground_iou,
        rpn_background_iou=rpn_background_iou,
        rpn_samples=rpn_samples,
        rpn_nms_iou=rpn_nms_iou,
        train_candidates=train_candidates,
        test_candidates=test_candidates,
        train_proposals=train_proposals,
        test_proposals=test_proposals,
        roi_pooling=roi_pooling,
        roi_size=roi_size,
        roi_aligned=roi_aligned,
        sampling_ratio=sampling_ratio,
        roi_samples=roi_samples,
        roi_foreground_share=roi_foreground_share,
        roi_foreground_iou=roi_foreground_iou,
        roi_background_iou=tuple(roi_background_iou),
        box_deviations=tuple(box_deviations),
        box_loss=box_loss,
        smooth_l1_beta=smooth_l1_beta,
        box_loss_weight=box_loss_weight,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
    )
    return FasterRCNN(extractor, rpn, region_head, anchors, rules, seed)


# ----- parts ---------------------------------------------------------------------------------------------------------


def _on_raw_pixels(backbone, channels, features):
    """The keras.Model from raw pixels to what `features` makes of normalised ones."""
    channels = channels or backbone.model.input_shape[-1]
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    x = Preprocess(backbone.preprocessing, channels, name="preprocess")(images)
    x = PadToMultiple(PADDING_MULTIPLE, name="pad")(x)
    return keras.Model(images, features(x), name="extractor")


def _pyramid(backbone, channels, keys, fpn_channels, norm):
    """(extractor, {key: actual stride}) of the levels, from fine to coarse."""
    trunk = keras.Model(
        backbone.model.input, [backbone.model.outputs[backbone.keys.index(key)] for key in keys], name=backbone.name
    )
    strides = {}

    def levels(x):
        features = dict(zip(keys, trunk(x), strict=True))
        maps, strides_of_maps = fpn(features, backbone.strides, fpn_channels, extra="pool", norm=norm)
        strides.update(strides_of_maps)
        return list(maps.values())

    return _on_raw_pixels(backbone, channels, levels), strides


def _single_map(backbone, head):
    """(trunk, stage): keras.Models up to the map of native stride 16, and from there on, or None for a dense head."""
    if head == "stage":
        return split_backbone(backbone)
    feature = backbone.model.outputs[backbone.keys.index(16)]
    return keras.Model(backbone.model.input, feature, name=backbone.name), None


# ----- the detector --------------------------------------------------------------------------------------------------


class FasterRCNN(keras.Model):
    """Faster R-CNN of these parts; `create_faster_rcnn` makes them. Trains under stock `fit`.

    extractor:     keras.Model, raw pixels (B, H, W, C) -> list of L feature maps, from fine to coarse.
    rpn, head:     keras.Models, of detseg.detection.heads.
    anchors:       `LevelAnchors` of the L levels.
    rules:         `Rules`.
    seed:          int.

    Ground truth of B images, all with room for G >= 1 objects, is {"boxes": (B, G, 4), "labels": (B, G) int, -1 where
    there is no object, "is_crowd": (B, G) bool, "image_sizes": (B, 2): height and width of the image at the top left of
    its batch's padded one}.
    """

    def __init__(self, extractor, rpn, head, anchors, rules, seed=0, name="faster_rcnn"):
        super().__init__(name=name)
        self.extractor = extractor
        self.rpn = rpn
        self.head = head
        self.anchors = anchors
        self.rules = rules
        self.channels = extractor.input_shape[-1]
        self.class_count = head.outputs[0].shape[-1] - 1
        self.box_count = head.outputs[1].shape[-1] // 4  # 1: all classes share their regression targets
        # Regions are pooled from the levels that the backbone has, so not from the pooled one (FPN, section 4.2), and
        # from the finer of two of one stride, which knows what the coarser one knows.
        strides = anchors.strides
        own = range(max(1, len(strides) - 1))
        self.region_levels = tuple(i for i in own if i == 0 or strides[i] > strides[i - 1])
        self.loss_trackers = [keras.metrics.Mean(name=name) for name in LOSSES]
        self.seeds = keras.random.SeedGenerator(seed, name="samples")
        self.built = True

    def call(self, images, training=None):
        """{"features": levels (B, h, w, C), "objectness": logits (B, N) and "moves": regression targets (B, N, 4), of
        each level's anchors}, lists."""
        features = keras.tree.flatten(self.extractor(images, training=training))  # Keras hands one map out by itself
        batch = ops.shape(images)[0]
        outputs = {"features": features, "objectness": [], "moves": []}
        for level in features:
            objectness, moves = self.rpn(level, training=training)
            outputs["objectness"].append(ops.reshape(objectness, (batch, -1)))
            outputs["moves"].append(ops.reshape(moves, (batch, -1, 4)))
        return outputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Scalar: the sum of the region proposal network's and the head's losses (section 3.1.3; Fast R-CNN, eq. 1)."""
        objects = y if self.jit_compile else without_padding(y)
        anchors = self._anchors_of(x, y_pred["features"])
        losses = (
            *self._rpn_losses(y_pred, ops.concatenate(anchors, axis=0), objects),
            *self._head_losses(y_pred, anchors, objects, training),
        )
        for tracker, loss in zip(self.loss_trackers, losses, strict=True):
            tracker.update_state(loss)
        return (sum(losses) + sum(self.losses)) / replica_count()  # Keras adds up the replicas' gradients

    def detect(self, images, image_sizes, score_threshold=None, max_detections=None, under_xla=False):
        """The objects in raw images.

        images:           (B, H, W, C) uint8, padded at the bottom and right to one size.
        image_sizes:      (B, 2), height and width of each image without padding.
        score_threshold:  only scores above it; None: that of the rules.
        max_detections:   D; None: that of the rules.
        under_xla:        bool, whether XLA compiles this.
        Returns           boxes (B, D, 4) float32 inside their images, labels (B, D) int32 0..K-1 or -1, scores (B, D)
                          float32, valid (B, D) bool, by falling score.
        """
        rules = self.rules
        threshold = rules.score_threshold if score_threshold is None else score_threshold
        outputs = self(images, training=False)
        anchors = self._anchors_of(images, outputs["features"])
        proposals, exists = self._proposals(outputs, anchors, image_sizes, False, under_xla)
        logits, moves = self._classify(outputs["features"], proposals, False, under_xla)

        count, classes = rules.test_proposals, self.class_count
        scores = ops.softmax(logits, axis=-1)[..., :classes]  # (B, P, K)
        possible = ops.logical_and(scores > threshold, exists[..., None])
        ranked = ops.reshape(ops.where(possible, scores, NO_SCORE), (-1, count * classes))
        most = rules.max_detections if max_detections is None else max_detections
        scores, places = top_rows(ranked, max(MAX_CANDIDATES, most))  # decoded are only the boxes that may be kept
        regions = places // classes
        rows = regions if self.box_count == 1 else places
        moves = take_rows(ops.reshape(moves, (-1, count * self.box_count, 4)), rows)
        boxes = decode_boxes(moves, take_rows(proposals, regions), deviations=rules.box_deviations)
        boxes = clip_boxes(boxes, image_sizes)
        valid = ops.logical_and(scores > NO_SCORE, is_at_least(boxes, MIN_SIZE))
        return suppress(boxes, places % classes, scores, valid, rules.nms_iou, most, under_xla)

    # ----- from anchors to regions -----------------------------------------------------------------------------------

    def _anchors_of(self, images, features):
        """For each level float32 (N, 4)."""
        image_size = [n + -n % PADDING_MULTIPLE for n in ops.shape(images)[1:3]]
        return self.anchors(image_size, [ops.shape(level)[1:3] for level in features])

    def _proposals(self, outputs, anchors, image_sizes, training, under_xla):
        """Proposals (B, P, 4) and valid (B, P) of `select_proposals`."""
        rules = self.rules
        proposals, _, valid = select_proposals(
            outputs["objectness"],
            outputs["moves"],
            anchors,
            image_sizes,
            rules.train_candidates if training else rules.test_candidates,
            rules.train_proposals if training else rules.test_proposals,
            rules.rpn_nms_iou,
            under_xla=under_xla,
        )
        return proposals, valid

    def _classify(self, features, regions, training, under_xla):
        """Logits (B, R, K + 1) and regression targets (B, R, box_count, 4) of regions (B, R, 4)."""
        rules = self.rules
        count, size = regions.shape[1], rules.roi_size
        maps, strides = ([x[i] for i in self.region_levels] for x in (features, self.anchors.strides))
        if rules.roi_pooling == "pool":
            pooled = roi_pool(maps[0], regions, strides[0], size, inside=True)
        else:
            options = {"aligned": rules.roi_aligned, "under_xla": under_xla}
            pooled = roi_align(maps, regions, strides, size, rules.sampling_ratio, **options)
        pooled = ops.reshape(pooled, (-1, size, size, maps[0].shape[-1]))  # (B * R, P, P, C)
        logits, moves = self.head(pooled, training=training)
        logits = ops.reshape(logits, (-1, count, self.class_count + 1))
        return logits, ops.reshape(moves, (-1, count, self.box_count, 4))

    # ----- losses ----------------------------------------------------------------------------------------------------

    def _rpn_losses(self, outputs, anchors, objects):
        """Log loss over two classes, and smooth L1 of foreground; both over the number of sampled anchors (eq. 1)."""
        rules = self.rules
        matched, states = match(
            anchors,
            objects["boxes"],
            objects["labels"] >= 0,
            rules.rpn_foreground_iou,
            (0.0, rules.rpn_background_iou),
            low_quality=True,
            crowd=objects["is_crowd"],
        )
        chosen, drawn = sample(states, rules.rpn_samples, RPN_FOREGROUND_SHARE, self.seeds)  # (B, S)
        is_object = ops.logical_and(drawn, ops.equal(take_rows(states, chosen), FOREGROUND))
        logits = take_rows(ops.concatenate(outputs["objectness"], axis=1), chosen)
        moves = take_rows(ops.concatenate(outputs["moves"], axis=1), chosen)
        boxes = take_rows(objects["boxes"], take_rows(matched, chosen))
        log_loss = ops.binary_crossentropy(ops.cast(is_object, "float32"), logits, from_logits=True)
        box_loss = box_losses("smooth_l1", moves, ops.take(anchors, chosen, axis=0), boxes, beta=rules.smooth_l1_beta)
        return _mean(log_loss, drawn, drawn), _mean(box_loss, is_object, drawn)

    def _head_losses(self, outputs, anchors, objects, training):
        """Log loss over K + 1 classes, and the true class's box loss of foreground; both over the number of sampled
        proposals (Fast R-CNN, eq. 1)."""
        rules = self.rules
        proposals, exists = self._proposals(outputs, anchors, objects["image_sizes"], True, self.jit_compile)
        regions, matched, is_object, drawn = sample_proposals(
            proposals,
            exists,
            objects["boxes"],
            objects["labels"] >= 0,
            self.seeds,
            rules.roi_samples,
            rules.roi_foreground_share,
            rules.roi_foreground_iou,
            rules.roi_background_iou,
            objects["is_crowd"],
        )
        logits, moves = self._classify(outputs["features"], regions, training, self.jit_compile)
        labels = ops.cast(take_rows(objects["labels"], matched), "int32")  # (B, S)
        classes = ops.where(is_object, labels, self.class_count)
        log_loss = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)
        rows = ops.arange(rules.roi_samples) * self.box_count + ops.where(is_object, labels, 0) % self.box_count
        moves = take_rows(ops.reshape(moves, (-1, rules.roi_samples * self.box_count, 4)), rows)
        boxes = take_rows(objects["boxes"], matched)
        box_loss = box_losses(rules.box_loss, moves, regions, boxes, rules.box_deviations, rules.smooth_l1_beta)
        return _mean(log_loss, drawn, drawn), rules.box_loss_weight * _mean(box_loss, is_object, drawn)


def _mean(losses, which, of):
    """The sum of those `which` count over the number of `of`, both bool: 0 where there are none."""
    total = ops.sum(ops.where(which, losses, 0.0))
    return total / ops.maximum(ops.sum(ops.cast(of, "float32")), 1.0)
