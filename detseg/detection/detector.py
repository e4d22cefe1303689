"""What all detectors share: a keras.Model made of options and sub-models, trained by stock `fit`, saved and loaded."""

import keras
from keras import ops

from detseg.backbones.create import create_configured_backbone
from detseg.detection.anchors import Anchors
from detseg.detection.matching import without_padding
from detseg.detection.nms import suppress
from detseg.layers.norm import replica_count


class Detector(keras.Model):
    """Base of the detectors, which take raw pixels (B, H, W, channels), uint8, of any H and W.

    options:      of the class `options_class`; the attribute has the values that null stands for.
    class_count:  K, without background.
    channels:     of the images.
    seed:         int, of the random choice of what is trained on.
    backbone:     a `detseg.backbones.Backbone` as the options describe it, whose layers the detector shares; None: a
                  new one of random weights.

    Subclasses set `extractor`, a keras.Model of images -> list of feature maps from fine to coarse, `head`, a
    keras.Model, and, where they have anchors, `anchors`, the `Anchors` of the maps.

    Ground truth of B images, all with room for G >= 1 objects, is {"boxes": (B, G, 4), "labels": (B, G) int, -1 where
    there is no object, "is_crowd": (B, G) bool, "image_sizes": (B, 2): height and width of the image at the top left of
    its batch's padded one}.
    """

    options_class: type
    loss_names: tuple[str, ...]
    padding_multiple = 1  # to which the model pads images

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name=None):
        super().__init__(name=name)
        self.options = options.resolved()
        self.class_count = class_count
        self.channels = channels
        self.seed = seed
        self.backbone = backbone or create_configured_backbone(options, channels, pretrained=False)
        self.loss_trackers = [keras.metrics.Mean(name=name) for name in self.loss_names]
        self.built = True

    @classmethod
    def create(cls, options, class_count, channels=3, seed=0, pretrained=True):
        """A new detector. pretrained: whether to load options.weights; False where others are loaded afterwards."""
        return cls(options, class_count, channels, seed, create_configured_backbone(options, channels, pretrained))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Scalar: the sum of the losses, each of which is logged by its name."""
        if sample_weight is not None:
            raise ValueError("sample_weight: a detector's images have no weights")
        objects = y if self.jit_compile else without_padding(y)
        losses = self._detector_losses(x, objects, y_pred, training)
        for tracker, loss in zip(self.loss_trackers, losses, strict=True):
            tracker.update_state(loss)
        return (sum(losses) + sum(self.losses)) / replica_count()  # Keras adds up the replicas' gradients

    def detect(self, images, image_sizes, score_threshold=None, max_detections=None, under_xla=False):
        """The objects in raw images, after suppression within each class.

        images:           (B, H, W, C) uint8, padded at the bottom and right to one size.
        image_sizes:      (B, 2), height and width of each image without padding, to which boxes are clipped.
        score_threshold:  only scores above it; None, like max_detections (D): that of the options.
        under_xla:        bool, whether XLA compiles this, as in `nms`.
        Returns           boxes (B, D, 4) float32 inside their images, labels (B, D) int32 0..K-1 or -1, scores (B, D)
                          float32, valid (B, D) bool, by falling score.
        """
        threshold, count = self.limits(score_threshold, max_detections)
        candidates = self._candidates(images, image_sizes, threshold, count, under_xla)
        return suppress(*candidates, self.options.nms_iou, count, under_xla)

    def limits(self, score_threshold, max_detections):
        """The two, or where one is None that of the options."""
        options = self.options
        return (
            options.score_threshold if score_threshold is None else score_threshold,
            options.max_detections if max_detections is None else max_detections,
        )

    def create_anchors(self, strides):
        """The `Anchors` of levels, {key: actual stride}."""
        options = self.options
        shapes = (options.anchor_ratios, options.anchor_scales, options.anchor_form)
        return Anchors(options.anchor_sizes, tuple(strides.values()), *shapes)

    def level_anchors(self, images, maps):
        """The anchors of each level, list of (N, 4) float32, for images (B, H, W, C) and the maps (B, h, w, _)."""
        image_size = [n + -n % self.padding_multiple for n in ops.shape(images)[1:3]]
        return self.anchors(image_size, [ops.shape(level)[1:3] for level in maps])

    def get_config(self):
        """ValueError for a backbone handed in that the options don't describe."""
        if self.backbone.name != self.options.backbone:
            raise ValueError(f"the backbone {self.backbone.name} is not that of the options, {self.options.backbone}")
        return {
            "options": self.options.model_dump(mode="json"),
            "class_count": self.class_count,
            "channels": self.channels,
            "seed": self.seed,
            "precision": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A model of random weights: nothing is downloaded."""
        arguments = {**config, "options": cls.options_class.model_validate(config["options"])}
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(arguments.pop("precision"))  # which all layers take
        try:
            return cls(**arguments)
        finally:
            keras.config.set_dtype_policy(policy)

    def get_compile_config(self):
        """None: a loaded model is to be compiled anew, since our optimizers aren't described by a config."""
