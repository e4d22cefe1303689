"""Ground truth beside prediction, drawn for the first images of a split."""

from detseg.files import make_folder
from detseg.report.drawing import write_png
from detseg.report.drawing_detections import draw_side_by_side


class TruthDrawings:
    """Files FOLDER/NAME.png, NAME being an image's in its split, with _ for what separates folders.

    task:     of `create_task`.
    count:    int, of images to be drawn, from the first on.
    Raises    UserError where the folder can't be made or written to.
    """

    def __init__(self, task, folder, count):
        self.count, self.folder = count, folder
        self._task = task
        make_folder(folder, "--drawings")

    def add(self, sample, found):
        """Draws a Sample beside the Prediction or Detections of its image."""
        drawings = self._task.draw_truth_and_found(sample, found)
        # A COCO file_name may be a path, also one that leads out of the folder.
        name = sample.name.replace("/", "_")
        write_png(self.folder / f"{name}.png", draw_side_by_side(drawings, ("ground truth", "prediction")))
