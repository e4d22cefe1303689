"""Image files to masks, boxes and drawings in a folder."""

import glob
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import tifffile
from tqdm import tqdm

from detseg.data.images import IMAGE_SUFFIXES
from detseg.data.windows import TiffReader
from detseg.errors import UserError
from detseg.files import make_folder
from detseg.inference.written_files import WrittenFiles
from detseg.predictor import Predictor
from detseg.process import loader_threads

logger = logging.getLogger("detseg")

WINDOWED_PIXELS = 2**26  # 8192 x 8192; drawing it takes about 2 GB


def predict_files(
    predictor: Predictor,
    inputs: str | os.PathLike | Iterable[str | os.PathLike],
    output: str | os.PathLike,
    *,
    voc_xml: bool = False,
    voc_boxes: str | None = None,
    instance_ids: bool = False,
    overwrite: bool = False,
    **options,
) -> list[Path]:
    """Predicts images and writes results and drawings into the folder `output`.

    inputs:     files, folders (their images, not those of subfolders) and glob patterns: one, or several.
    voc_xml, voc_boxes:  detection: whether to write a VOC annotation of each image, with "inclusive" or "continuous"
                numbers; None: those of data.voc_boxes.
    instance_ids:  detection, of models with masks: whether to write STEM_instances.png, the object's number at each
                pixel.
    overwrite:  bool, whether files may be replaced that predict_files has not written itself.
    options:    as of `Predictor.predict`. With a tile, TIFF files of more than `WINDOWED_PIXELS` pixels are read and
                written by windows, as STEM.tif and a reduced drawing.
    Returns     the paths of the images done. Raises UserError after the last image when some could not be read, naming
                them all; before the first when nothing matches or a result would replace an image, another result or a
                file of somebody else's.
    """
    task = predictor.task
    images, output = find_images(inputs), Path(output)
    options = task.prediction_options(task.shown_options() | options)
    is_tiled = getattr(options, "tile", None) is not None
    writer = task.create_writer(output, options, predictor.category_ids, voc_xml, voc_boxes, instance_ids)
    suffixes = (*writer.suffixes, ".tif") if is_tiled else writer.suffixes
    targets = [*_check_targets(images, output, suffixes), *writer.files]
    written = WrittenFiles(output)
    if not overwrite:
        written.check_free(targets)
    make_folder(output, "--output")
    done, problems = [], []
    with loader_threads():
        for path in tqdm(images, desc="predict", unit="img", disable=None):
            try:
                if is_tiled and _is_windowed(path):
                    _predict_by_windows(predictor, path, writer, options)
                else:
                    image = predictor.as_array(path)
                    writer.write(predictor.inference(image, options), image, path)
            except UserError as error:
                problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
                continue
            done.append(path)
            written.note([f"{path.stem}{suffix}" for suffix in suffixes])
    if done:
        writer.finish()
        written.note(writer.files)
    logger.info("%d images predicted: %s", len(done), output)
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(images)} images could not be predicted:\n  {lines}")
    return done


def _is_windowed(path):
    """Whether an image is a TIFF file that is too large to be held in memory."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.imagelength * file.pages.first.imagewidth > WINDOWED_PIXELS
    except (OSError, tifffile.TiffFileError):
        return False  # whoever reads it says what is wrong


def _predict_by_windows(predictor, path, writer, options):
    data = predictor.config.data
    wanted = {"--save-probabilities": options.probabilities, "--tta": options.tta, "data.resize": data.resize}
    if any(wanted.values()):
        names = " and ".join(name for name, value in wanted.items() if value)
        raise UserError(f"{path}: too large to be held in memory, as {names} would need; leave that out")
    tiler = predictor.inference.tiler(options)
    with TiffReader(path, data.channels, data.value_range) as source:
        count = tiler.tile_count(source.shape)
        with tqdm(total=count, desc=path.name, unit="tile", disable=None, leave=False) as progress:
            writer.write_large(tiler.bands(source, on_tile=progress.update), source, path)


def find_images(inputs):
    """The image files that files, folders and glob patterns, or one of them, name, in order, each once."""
    images = []
    for item in map(str, [inputs] if isinstance(inputs, str | os.PathLike) else inputs):
        path = Path(item)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if _is_image(file))
            if not found:
                raise UserError(f"{path}: no images in this folder; looked for {', '.join(IMAGE_SUFFIXES)}")
        elif path.is_file():
            found = [path]
        else:
            found = sorted(map(Path, glob.glob(item, recursive=True)))
            if not found:
                raise UserError(f"{item}: no such file, folder or match of a pattern")
        images.extend(found)
    return list({path.resolve(): path for path in reversed(images)}.values())[::-1]


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _check_targets(images, output, suffixes):
    """The names of the files that will be written; UserError if one is an image, or the result of two images."""
    originals = {path.resolve() for path in images}
    owners = {}
    for path, suffix in itertools.product(images, suffixes):
        name = f"{path.stem}{suffix}"
        if (output / name).resolve() in originals:
            raise UserError(f"--output {output}: the result of {path} would overwrite the image {output / name}")
        other = owners.setdefault(name, path)
        if other != path:
            raise UserError(f"{other} and {path}: the results of both would be {name}; predict them into two folders")
    return list(owners)
