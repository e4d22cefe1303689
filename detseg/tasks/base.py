"""What a task is to training, evaluation and prediction: the methods, with defaults."""

import dataclasses
import math

from detseg.data.augment import create_augmentation, resize_sample, resized_size
from detseg.data.sample import Sample
from detseg.errors import UserError

_FLAGS = {"probabilities": "--save-probabilities"}  # of `predict`; other options have their own names


class Task:
    """What a config's `task` means: its model, batches, loss, inference, scores and files.

    config:   the whole config.
    classes:  tuple of K class names, index = label.
    """

    name: str  # in configs
    score_name: str  # the figure that the best weights are chosen by, of `figures`; higher is better
    score_label: str  # as progress shows it
    options_kind: type  # a frozen dataclass: what predictions are asked for beside the config

    def __init__(self, config, classes):
        self.config = config
        self.classes = classes

    # ----- model and loss --------------------------------------------------------------------------------------------

    def create_model(self, pretrained=True):
        """(model, Backbone inside it or None).

        pretrained:  bool. False leaves model.weights unread, for a model whose weights are loaded afterwards.
        """
        raise NotImplementedError

    def check_given_model(self, model):
        """UserError unless a keras.Model that comes from Python can be this task's."""
        raise UserError(f"model=: a model of one's own is for task: segmentation; this config's task is {self.name}")

    def count_class_weights(self, scan):
        """{class name: weight} counted on the training split where a loss asks for it, else None."""
        return None

    def create_loss(self, counted_class_weights=None):
        """The Keras loss; None for a model that computes its losses itself."""
        return None

    # ----- training --------------------------------------------------------------------------------------------------

    def complete_data(self, dataset, scan):
        """The data set with what else the model needs of each image.

        scan:  of `scan_split`, of this data set.
        """
        return dataset

    def create_batches(self, scan, augment=None):
        """The `detseg.data.loader.Batches` of the training split.

        scan:     of `scan_split`.
        augment:  None, or a function (Sample, numpy Generator) -> Sample that follows the config's augmentation.
        """
        raise NotImplementedError

    def create_augmentation(self, own, ignore_label, class_pixels=None):
        """Function (Sample, numpy Generator) -> Sample: data.resize, the config's augmentation, a step of one's own.

        own:  that step, a function alike, or None.
        """
        resize = self.config.data.resize
        change = create_augmentation(self.config.augmentation, ignore_label, class_pixels)

        def augmented(sample, rng):
            sample = change(resize_sample(sample, *resized_size(resize, *sample.image.shape[:2])), rng)
            changed = sample if own is None else own(sample, rng)
            if not isinstance(changed, Sample):
                raise UserError(f"augment=: {sample.name}: gave {type(changed).__name__}, expected a detseg.Sample")
            return changed

        return augmented

    def check_training_data(self, scan, dataset):
        """UserError for a training split that nothing can be learned from."""

    def check_validation_data(self, scan):
        """UserError for a validation split where no score could choose the best weights."""

    def describe_training(self, model, scan, dataset):
        """Logs what is worth knowing before the first step."""

    def fit(self, training):
        """Trains `training.model`, by Keras' fit. A task whose models are not trained by fit alone has its own way.

        training:  `detseg.training.fit.Training`.
        """
        training.model.fit(
            training.batches(),
            steps_per_epoch=training.steps_per_epoch,
            epochs=training.config.train.epochs,
            initial_epoch=training.progress["epoch"],
            callbacks=training.callbacks,
            shuffle=False,  # the stream's order is random already
            verbose=0,
        )

    def finish(self, training):
        """What is left to do when the last epoch is done, with the best weights: most models need nothing."""

    def is_finished(self, folder):
        """Whether `finish` has done its work in a RunFolder."""
        return True

    def load_rest(self, model, folder):
        """Gives a trained model what it has beside its weights: what `finish` left in a RunFolder."""

    # ----- inference -------------------------------------------------------------------------------------------------

    def prediction_options(self, given):
        """An `options_kind` of {name: value}; UserError for names that another task has."""
        known = {field.name for field in dataclasses.fields(self.options_kind)}
        wrong = [_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in given if name not in known]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)}: not for task: {self.name}, which is this run's; it takes "
                f"{', '.join(sorted(known))}"
            )
        return self.options_kind(**given)

    def shown_options(self):
        """{name: value} of the options that predictions have unless asked otherwise, from Python and by `predict`."""
        return {}

    def evaluation_options(self, options):
        """The options that `create_scores(extra=True)` needs beside those given."""
        return options

    def create_inference(self, model):
        """Function (image (H, W, C), `prediction_options`) -> Prediction; its method `batch` takes images of one size.

        It reads the model's weights at each call, so it stays valid while the model trains.
        """
        raise NotImplementedError

    # ----- scores and files ------------------------------------------------------------------------------------------

    def create_scores(self, extra=False):
        """What collects a split's scores. extra: bool, also what takes longer or has files of its own."""
        raise NotImplementedError

    def figures(self, result):
        """{name: float} of a result of `evaluate` to follow over the epochs, among them `score_name`."""
        raise NotImplementedError

    def format_scores(self, result):
        """A result of `evaluate` as text: every class from best to worst, and the scores."""
        raise NotImplementedError

    def write_scores(self, scores, dataset, folder, name):
        """Writes what belongs beside FOLDER/NAME.json; returns the paths."""
        return []

    def draw_truth_and_found(self, sample, found):
        """Two drawings, uint8 (H, W', 3) of one height: a Sample's ground truth, and what was found in its image."""
        raise NotImplementedError

    def draw_more(self, sample, found):
        """(title, drawing) of what else is worth seeing of an image, of the same height: list."""
        return []

    def create_writer(self, output, options, category_ids=None, voc_xml=False, voc_boxes=None, instance_ids=False):
        """What writes predictions into the folder `output`: see writers.py.

        category_ids:  of the run's data, index = label; None: counted from 1. The rest is as in `predict_files`.
        """
        raise NotImplementedError


def class_lines(scores, shown):
    """Lines of text: every class from best to worst, and which are not in the split.

    scores:  {class: float}, nan where it is undefined.
    shown:   {class: what is printed beside its name}.
    """
    defined = [name for name, score in scores.items() if not math.isnan(score)]
    width = max(map(len, scores))
    lines = [f"{name:<{width}}  {shown[name]}" for name in sorted(defined, key=scores.get, reverse=True)]
    absent = ", ".join(name for name in scores if name not in defined)
    return [*lines, f"absent from this split and left out of the mean: {absent}"] if absent else lines
