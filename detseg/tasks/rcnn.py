"""R-CNN as a task: fine-tuning on warped proposals, then features, SVMs and bounding-box regressors."""

import dataclasses
import functools
import logging

import numpy as np

from detseg.data.crops import warp_regions
from detseg.data.loader import Batches
from detseg.detection.box_regression import feature_scale, fit_box_regressor
from detseg.detection.region_svm import load_linear_svc, train_svms
from detseg.errors import UserError
from detseg.inference.rcnn import RCNNInference, RegionDescriber
from detseg.inference.rcnn_heads import RCNNHeads
from detseg.tasks.detection import IGNORE_LABEL, DetectionTask
from detseg.tasks.rcnn_features import RegionFeatures
from detseg.tasks.rcnn_regions import draw_crops

logger = logging.getLogger("detseg")

HEADS, FEATURES = "heads.npz", "features"  # in the run folder


class RCNNTask(DetectionTask):
    """Object detection by R-CNN. See `Task`."""

    # ----- fine-tuning -----------------------------------------------------------------------------------------------

    def create_batches(self, scan, augment=None):
        """Batches of squares uint8 (batch_crops, S, S, C), and {"labels": (batch_crops,)}; see `draw_crops`."""
        options, images = self.config.model, self.config.train.batch_size
        if options.batch_crops % images or round(options.batch_crops // images * options.foreground_share) < 1:
            raise UserError(
                f"train.batch_size: {images} images are to share model.batch_crops, {options.batch_crops}, of which "
                f"{options.foreground_share} are objects; expected a divisor of it that leaves each an object"
            )
        augmented = self.create_augmentation(augment, IGNORE_LABEL)

        def prepare(sample, rng):
            sample = augmented(sample, rng)
            boxes, labels = draw_crops(sample, options, len(self.classes), images, rng)
            return warp_regions(sample.image, boxes, options.crop_size, options.context), labels

        return Batches(prepare, _joined)

    def check_training_data(self, scan, dataset):
        """As `DetectionTask`'s; UserError also where the SVMs couldn't be trained at the end."""
        super().check_training_data(scan, dataset)
        if self.config.model.classifier == "svm":
            load_linear_svc()

    def check_room(self, scan, dataset):
        """Batches are of proposals: an image may have any number of objects."""

    def describe_training(self, model, scan, dataset):
        """Logs what a batch is, and what a regressor sees of a proposal."""
        options = self.config.model
        logger.info(
            "batches have %d proposals of %dx%d pixels from %d images, up to %d of them objects; classifiers see %d "
            "values of a proposal, regressors %d",
            *(options.batch_crops, options.crop_size, options.crop_size, self.config.train.batch_size),
            *(round(options.batch_crops * options.foreground_share), model.feature_count, model.map_values),
        )

    # ----- what follows on it ----------------------------------------------------------------------------------------

    def finish(self, training):
        """With the best weights, collects features and fits SVMs and regressors on them.

        Each part is kept when it is done, in the folder features/ and in heads.npz, and a resumed run goes on after it.
        The features go when all is fitted.
        """
        options, folder, model = self.config.model, training.folder, training.model
        if not options.has_heads:
            return
        model.load_weights(folder.best_weights)
        arguments = (training.train_set, options, model, folder.best_weights)
        features = RegionFeatures(folder.path / FEATURES, *arguments)
        heads = self._kept(folder, features.fingerprint)
        if not self._are_all(heads):
            describe = RegionDescriber(model, self.config.data.resize)
            features.collect(lambda image, boxes: describe(image, boxes)[:2])
            heads = self._fit_regressors(features, self._fit_svms(features, heads, folder), folder)
        features.remove()
        model.heads = heads
        logger.info("SVMs and regressors: %s", folder.path / HEADS)

    def _fit_svms(self, features, heads, folder):
        if self.config.model.classifier != "svm" or heads.svms is not None:
            return heads
        options = self.config.model
        scale = feature_scale(features.norms("features"))
        svms = train_svms(features.for_svms, self.classes, scale, options.svm_cost, options.svm_negative_iou)
        heads = dataclasses.replace(heads, svms=svms)
        heads.save(folder.path / HEADS)
        return heads

    def _fit_regressors(self, features, heads, folder):
        if self.config.model.box_regression == "none":
            return heads
        norms = features.norms("maps")
        scale = feature_scale(norms) if len(norms) else 1.0  # without any, proposals stay where they are
        for k in range(len(heads.regressors), len(self.classes)):
            batches = functools.partial(features.for_regressor, k)
            regressor = fit_box_regressor(batches, features.map_values, scale, self.config.model.regression_lambda)
            if not regressor.samples:
                logger.warning("%s: no proposal to learn from: its boxes stay where the proposals are", self.classes[k])
            else:
                logger.info("%s: regressor of %d proposals", self.classes[k], regressor.samples)
            heads = heads.with_regressor(regressor)
            heads.save(folder.path / HEADS)
        return heads

    def _kept(self, folder, fingerprint):
        """The RCNNHeads that a run has fitted on these features so far."""
        path = folder.path / HEADS
        if path.is_file():
            try:
                heads = RCNNHeads.load(path)
                if heads.fingerprint == fingerprint:
                    return heads
                logger.info("%s: fitted on other features, is fitted anew", path)
            except UserError as error:
                logger.warning("%s: it is fitted anew", error)
        return RCNNHeads(fingerprint)

    def _are_all(self, heads):
        options = self.config.model
        has_svms = options.classifier != "svm" or heads.svms is not None
        return has_svms and (options.box_regression == "none" or len(heads.regressors) == len(self.classes))

    def is_finished(self, folder):
        try:
            return not self.config.model.has_heads or self._are_all(RCNNHeads.load(folder.path / HEADS))
        except UserError:  # finish says what is wrong
            return False

    def load_rest(self, model, folder):
        """Loads heads.npz where the config asks for what is in it."""
        if not self.config.model.has_heads:
            return
        heads = RCNNHeads.load(folder.path / HEADS)
        if not self._are_all(heads):
            options = self.config.model
            raise UserError(
                f"{folder.path / HEADS}: has {'' if heads.svms is not None else 'no '}SVMs and {len(heads.regressors)} "
                f"regressors for {len(self.classes)} classes, but model.classifier is {options.classifier} and "
                f"model.box_regression is {options.box_regression}; train a run with these, or go on with --resume"
            )
        model.heads = heads

    # ----- inference -------------------------------------------------------------------------------------------------

    def create_inference(self, model):
        return RCNNInference(model, self.propose, self.config.data.resize)


def _joined(samples):
    squares, labels = zip(*samples, strict=True)
    return np.concatenate(squares), {"labels": np.concatenate(labels)}
