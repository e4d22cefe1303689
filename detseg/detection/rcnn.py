"""The network of R-CNN (Girshick et al., CVPR 2014, arXiv 1311.2524v5): proposals warped to squares -> classes."""

import logging

import keras
from keras import ops
from keras.initializers import RandomNormal

from detseg.backbones.backbone import Preprocess
from detseg.backbones.weights import dense_weights
from detseg.detection.detector import Detector
from detseg.detection.heads import CLASS_DEVIATION, load_dense_weights
from detseg.detection.options import RCNNOptions
from detseg.layers.norm import replica_count

logger = logging.getLogger("detseg")

MAX_MAP_VALUES = 2**14  # that a regressor sees of a proposal: its normal equations take the square of that


@keras.saving.register_keras_serializable("detseg")
class RCNN(Detector):
    """R-CNN's network, of uint8 squares (N, S, S, channels) of `detseg.data.crops`, S = options.crop_size.

    extractor:   keras.Model of the squares -> [map (N, h, w, F), features (N, D)]. The map is the backbone's level of
                 stride 32, its neighbours averaged 2 x 2 as often as it takes for `MAX_MAP_VALUES`; regressors see it.
                 The features are fc7's of a VGG, or else the level's mean; classifiers see them.
    classifier:  keras.Model of the features -> logits (N, K + 1), the last of them background's.
    heads:       None, or what was fitted on them: `detseg.inference.rcnn_heads.RCNNHeads`.

    Ground truth is {"labels": (N,) int, K for background}.
    """

    options_class = RCNNOptions
    loss_names = ("class_loss",)

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name="rcnn"):
        super().__init__(options, class_count, channels, seed, backbone, name)
        options, backbone = self.options, self.backbone
        level = backbone.model.outputs[backbone.keys.index(32)]
        trunk = keras.Model(backbone.model.input, level, name=backbone.name)
        squares = keras.Input((options.crop_size, options.crop_size, channels), dtype="uint8", name="squares")
        level = trunk(Preprocess(backbone.preprocessing, channels, name="preprocess")(squares))
        if options.has_dense_layers:
            features = keras.layers.Flatten(name="flatten")(level)
            for layer in ("fc6", "fc7"):
                initializer = {"kernel_initializer": "lecun_uniform"}
                features = keras.layers.Dense(options.head_channels, "relu", **initializer, name=layer)(features)
                if options.dropout:
                    features = keras.layers.Dropout(options.dropout, name=f"{layer}_dropout")(features)
        else:
            features = keras.layers.GlobalAveragePooling2D(name="mean")(level)
        for i in range(level.shape[1]):
            if level.shape[1] * level.shape[2] * level.shape[3] > MAX_MAP_VALUES:
                level = keras.layers.AveragePooling2D(2, strides=1, name=f"map_mean{i}")(level)
        self.extractor = keras.Model(squares, [level, features], name="extractor")
        inputs = keras.Input(features.shape[1:], name="features")
        logits = keras.layers.Dense(
            class_count + 1, kernel_initializer=RandomNormal(stddev=CLASS_DEVIATION), name="logits", dtype="float32"
        )(inputs)
        self.classifier = keras.Model(inputs, logits, name="classifier")
        self.map_values = level.shape[1] * level.shape[2] * level.shape[3]
        self.feature_count = features.shape[-1]
        self.heads = None

    @classmethod
    def create(cls, options, class_count, channels=3, seed=0, pretrained=True):
        """As `Detector.create`; the dense layers of a VGG's weights become fc6 and fc7 if those are as in the paper."""
        model = super().create(options, class_count, channels, seed, pretrained)
        options = model.options
        if not pretrained or options.weights is None or not options.has_dense_layers:
            return model
        if (options.crop_size, options.head_channels) != (224, 4096):
            logger.warning("model: fc6 and fc7 start at random: they fit crop_size 224 and head_channels 4096")
        elif dense := dense_weights(options.weights, options.backbone):
            load_dense_weights(model.extractor, dense)
        else:
            logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", options.weights)
        return model

    def call(self, squares, training=None):
        """Logits (N, K + 1)."""
        return self.classifier(self._extracted(squares, training)[1], training=training)

    def describe(self, squares):
        """Of squares (N, S, S, C): the map (N, map_values), the features (N, feature_count), the logits; float32."""
        level, features = self._extracted(squares, training=False)
        values = ops.reshape(ops.cast(level, "float32"), (-1, self.map_values))
        return values, ops.cast(features, "float32"), self.classifier(features, training=False)

    def _extracted(self, squares, training):
        size = self.options.crop_size
        return self.extractor(ops.reshape(squares, (-1, size, size, self.channels)), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Scalar: the mean log loss (section 2.3, fine-tuning)."""
        loss = ops.mean(ops.sparse_categorical_crossentropy(y["labels"], y_pred, from_logits=True))
        self.loss_trackers[0].update_state(loss)
        return (loss + sum(self.losses)) / replica_count()
