"""What a config's task means: its model, training targets, loss, inference, scores and drawings.

The only place that knows both tasks. Training, evaluation and prediction talk to a task through the methods that
`SegmentationTask` and `DetectionTask` share.
"""

from detseg.tasks.detection import DetectionTask
from detseg.tasks.rcnn import RCNNTask
from detseg.tasks.segmentation import SegmentationTask

_TASKS = {"segmentation": SegmentationTask, "detection": DetectionTask}


def create_task(config, classes):
    """The task of a config over data with these class names (index = label)."""
    is_rcnn = config.model is not None and config.model.name == "rcnn"
    return (RCNNTask if is_rcnn else _TASKS[config.task])(config, tuple(classes))
