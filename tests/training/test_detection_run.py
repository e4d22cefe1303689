"""A detector from config to run folder, figures, predictions and back, by the functions behind the tools."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import detseg
from detseg.cli import main
from detseg.config import load_config
from detseg.data.readers.create import create_dataset
from detseg.data.readers.voc import VOCDetection
from detseg.data.scan import scan_split
from detseg.errors import UserError
from detseg.tasks import create_task
from detseg.training import fit
from detseg.training.callbacks import SaveState

CONFIG = """
task: detection
data: {{format: coco, root: {root}, train: {train}, val: {val}, test: null}}
augmentation: [{{scale_jitter: [0.8, 1.2]}}, {{random_crop: [96, 128]}}, {{flip: both}}]
model:
  name: faster_rcnn
  backbone: vgg16
  alpha: 0.0625
  weights: null
  finest_stride: 16
  fpn_channels: 8
  anchor_sizes: [[32, 48], [64, 80], [96, 120]]
  head_channels: 16
  rpn_samples: 16
  roi_samples: 16
  train_proposals: 30
  test_proposals: 20
train:
  epochs: 2
  batch_size: 4
  optimizer: {{name: adam, learning_rate: 0.001}}
"""


@pytest.fixture(scope="module")
def config_file(shapes_root, tmp_path_factory):
    """The shapes, with no object of the last class in them."""
    folder = tmp_path_factory.mktemp("detection")
    splits = []
    for name in ("train", "val"):
        content = json.loads((shapes_root / f"annotations/instances_{name}.json").read_text())
        last = max(category["id"] for category in content["categories"])
        content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != last]
        annotations = folder / f"{name}.json"
        annotations.write_text(json.dumps(content))
        splits.append(f"{{annotations: {annotations}, images: JPEGImages}}")
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(root=shapes_root, train=splits[0], val=splits[1]))
    return path


@pytest.fixture(scope="module")
def runs(config_file):
    """A run of two epochs, and one that was resumed from a copy of its state after the first."""
    whole, resumed = (config_file.parent / name for name in ("whole", "resumed"))

    class SaveStateTwice(SaveState):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch == 0:
                shutil.copytree(whole, resumed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SaveState", SaveStateTwice)
        folder = fit.train(load_config(config_file), whole)
    return folder, fit.train(load_config(config_file), resumed, resume=True)


@pytest.fixture(scope="module")
def run(runs):
    return runs[0]


def test_a_resumed_run_equals_an_uninterrupted_one(runs):
    (whole, whole_history), (resumed, resumed_history) = (
        (detseg.load(folder.path).model.get_weights(), folder.read_history()) for folder in runs
    )
    assert [row["loss"] for row in resumed_history] == [row["loss"] for row in whole_history]
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_history_has_every_part_of_the_loss_and_the_figures_of_the_validation(run):
    row = run.read_history()[-1]
    parts = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss")
    assert all(float(row[name]) >= 0 for name in parts)
    assert {"val_AP", "val_AP50", "val_AP75", "val_mAP"} <= row.keys()
    assert json.loads(run.category_ids.read_text()) == [1, 2, 3, 4, 5]


def test_a_class_that_never_occurs_is_warned_of_and_the_rest_is_learned(run, config_file, caplog):
    checked(config_file)
    warning = f"split 'train': no object of class {run.read_classes()[-1]}."
    assert warning in caplog.text
    assert warning in run.log.read_text()
    assert all(np.isfinite(weights).all() for weights in detseg.load(run.path).model.get_weights())
    losses = [float(row["loss"]) for row in run.read_history()]
    assert losses[1] < losses[0]


def test_evaluate_writes_figures_detections_and_drawings_and_scores_its_own_file_alike(run, config_file, capsys):
    arguments = ["--set", "model.score_threshold=0.001", "--drawings", "2"]
    assert main(["evaluate", "--run", str(run.path), *arguments]) == 0
    output = capsys.readouterr().out
    assert "val: AP " in output
    assert "absent from this split and left out of the mean: " in output
    assert str(run.evaluation / "val_drawings") in output
    result = json.loads((run.evaluation / "val.json").read_text())
    assert result["task"] == "detection"
    assert list(result["coco"]) == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]
    assert result["voc"].keys() >= {"mAP07", "mAP"}
    assert result["per_class"][run.read_classes()[-1]] == {"AP": None, "AP50": None}
    found = run.evaluation / "val_detections.json"
    assert len(json.loads(found.read_text())) > 0
    for name in ("curves", "confusion"):
        assert cv2.imread(str(run.evaluation / f"val_{name}.png")) is not None
    dataset = create_dataset(load_config(config_file).data, "val", "detection")
    drawn = sorted(path.stem for path in (run.evaluation / "val_drawings").iterdir())
    assert drawn == sorted(dataset.names[:2])
    output = run.path.parent / "scored"
    arguments = ["--detections", str(found), "--config", str(config_file)]
    assert main(["evaluate", *arguments, "--drawings", "1"]) == 2
    assert "--drawings: expected --output DIR too" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--output", str(output), "--drawings", "1"]) == 0
    assert [path.stem for path in (output / "val_drawings").iterdir()] == dataset.names[:1]
    again = json.loads((output / "val.json").read_text())
    assert again["coco"] == pytest.approx(result["coco"], abs=2e-3)
    assert again["per_class"].keys() == result["per_class"].keys()


def test_predictions_are_drawn_and_written_and_their_voc_annotations_read_back_as_the_boxes(
    run, shapes_root, tmp_path, capsys
):
    images = sorted((shapes_root / "JPEGImages").glob("*val*"))[:2]
    for folder in ("JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for path in images:
        shutil.copy(path, tmp_path / "JPEGImages")
    (tmp_path / "ImageSets/Main/val.txt").write_text("\n".join(path.stem for path in images))
    output = tmp_path / "Annotations"
    arguments = ["predict", "--run", str(run.path), "--output", str(output), "--voc-xml", "--score-threshold", "0.001"]
    assert main([*arguments, "--max-detections", "7", *map(str, images)]) == 0

    predictor = detseg.load(run.path)
    (tmp_path / "classes.txt").write_text("\n".join(predictor.classes))
    before = (output / f"{images[0].stem}.xml").read_bytes()
    (output / f"{images[0].stem}.xml").write_text("<annotation/>")
    assert main([*arguments, str(images[0])]) == 2
    assert "is there already, and not written by predict or changed since" in capsys.readouterr().err
    (output / f"{images[0].stem}.xml").write_bytes(before)
    assert main([*arguments, "--overwrite", "--max-detections", "7", *map(str, images)]) == 0
    annotations = VOCDetection(tmp_path, {"val": "val"}, "val", None, 3)
    entries = json.loads((output / "predictions.json").read_text())
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3, 4, 5}
    for index, path in enumerate(images):
        own = [entry for entry in entries if entry["image_id"] == index + 1]
        assert {entry["file_name"] for entry in own} == {path.name}
        assert cv2.imread(str(output / f"{path.stem}_overlay.png")) is not None
        found = predictor.predict(path, score_threshold=0.001, max_detections=7)
        assert found.label_map is None
        assert 0 < len(found.boxes) == len(own) <= 7
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 192
        assert (np.diff(found.scores) <= 0).all()
        written = annotations.objects(index)
        np.testing.assert_allclose(written.boxes, found.boxes, atol=1e-3)
        np.testing.assert_array_equal(written.labels, found.labels)


def test_what_is_for_the_other_task_is_refused_by_name(run, shapes_root, tmp_path, capsys):
    image = min((shapes_root / "JPEGImages").glob("*val*"))
    for flag in (["--tta"], ["--tile", "auto"], ["--save-probabilities"]):
        assert main(["predict", "--run", str(run.path), "--output", str(tmp_path / "out"), *flag, str(image)]) == 2
        assert f"{flag[0]}: not for task: detection" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "--run", str(run.path), "--tta"]) == 2


def test_detections_need_a_config_and_no_run(config_file, capsys):
    assert main(["evaluate", "--detections", "x.json"]) == 2
    assert "--detections: takes --config FILE" in capsys.readouterr().err
    assert main(["evaluate", "--detections", "x.json", "--config", str(config_file)]) == 2
    assert "x.json" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "expected --run DIR, or --detections FILE --config FILE" in capsys.readouterr().err


def test_a_run_is_compared_and_its_voc_results_score_alike(run, shapes_root, config_file, tmp_path, capsys):
    """What evaluate leaves beside its figures is no evaluation, and VOC's images have names for ids."""
    data = f"data={{format: voc, root: {shapes_root}, train: train, val: val}}"
    overrides = ["--set", data, "--set", "model.score_threshold=0.001"]
    assert main(["evaluate", "--run", str(run.path), "--name", "voc", *overrides]) == 0
    assert main(["compare", str(run.path), "--output", str(tmp_path)]) == 0
    assert "mAP07" in capsys.readouterr().out
    expected = json.loads((run.evaluation / "voc.json").read_text())["coco"]
    for name in ("voc_detections.json", "voc_comp4"):
        arguments = ["--detections", str(run.evaluation / name), "--config", str(config_file), "--set", data]
        assert main(["evaluate", *arguments, "--output", str(tmp_path)]) == 0
        assert json.loads((tmp_path / "val.json").read_text())["coco"] == pytest.approx(expected, abs=2e-3)
    folder = ["--detections", str(run.evaluation / "voc_comp4"), "--config", str(config_file)]
    assert main(["evaluate", *folder]) == 2
    assert "comp4 files are for data.format: voc" in capsys.readouterr().err


def checked(config_file, *overrides):
    config = load_config(config_file, overrides)
    dataset = create_dataset(config.data, "train", config.task)
    task, scan = create_task(config, dataset.classes), scan_split(dataset, config.task)
    task.check_training_data(scan, dataset)
    task.describe_training(task.create_model()[0], scan, dataset)
    return task, scan


def test_more_objects_than_there_is_room_for_are_counted_and_named(config_file):
    with pytest.raises(
        UserError, match=r"model\.max_objects: 2, but \d+ of 12 training images have more objects, \S+ \d"
    ):
        checked(config_file, "model.max_objects=2")


def test_anchors_that_fit_no_object_are_told_with_the_recall_they_reach(config_file, caplog):
    checked(config_file)
    assert "anchors reach" not in caplog.text
    checked(config_file, "model.anchor_sizes=[512, 1024, 2048]")
    assert "model.anchor_sizes: anchors reach 0.0% of the training objects (before augmentation)" in caplog.text


@pytest.mark.parametrize(
    ("augmentation", "shapes"),
    [
        ("[{random_crop: [96, 128]}, {rotate90: 0.75}]", {(96, 128), (128, 96), (128, 128)}),
        ("[{random_crop: [96, 128]}, {scale_jitter: [0.5, 1.5]}]", {(160, 192)}),
        ("[{rotate90: 0.75}, {scale_jitter: [0.5, 1.5]}, {random_crop: [96, 128]}]", {(96, 128)}),
        ("[{scale_jitter: [0.5, 0.9]}]", {(192, 192)}),
    ],
)
def test_every_augmented_image_fits_a_shape_of_the_batches(augmentation, shapes, config_file):
    task, scan = checked(config_file, f"augmentation={augmentation}")
    dataset = create_dataset(task.config.data, "train", "detection")
    batches = task.create_batches(scan)
    batches = [
        batches.collate([batches.prepare(dataset[i], np.random.default_rng(n)) for i in (0, 1)]) for n in range(12)
    ]
    assert {images.shape[1:3] for images, _ in batches} <= shapes


def test_a_validation_split_without_objects_is_refused(config_file):
    task, _ = checked(config_file)
    with pytest.raises(UserError, match=r"data\.val: no object in its images"):
        task.check_validation_data(SimpleNamespace(class_objects=np.zeros(5, int)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_one_image_is_learned_to_an_ap_of_one(name, tmp_path):
    from detseg.data.shapes_writer import make_shapes

    make_shapes(tmp_path / "shapes", train=1, val=0, test=0)
    path = tmp_path / "one.yaml"
    options = (
        "anchor_sizes: [24, 48, 72, 96], head_channels: 64, rpn_samples: 64, roi_samples: 64, train_proposals: 200"
        if name == "faster_rcnn"
        else "anchor_sizes: [20, 40, 60, 80, 100]"
    )
    path.write_text(f"""
task: detection
data: {{format: voc, root: {tmp_path / "shapes"}, train: train, val: train}}
model:
  {{name: {name}, backbone: resnet18, alpha: 0.25, weights: null, norm: group, finest_stride: 8, fpn_channels: 32,
   {options}}}
train:
  epochs: 4
  steps_per_epoch: 100
  batch_size: 1
  optimizer: {{name: adamw, learning_rate: 0.002, clip_norm: 5.0}}
  schedule: {{name: cosine, warmup_steps: 30}}
""")
    history = fit.train(load_config(path), tmp_path / "run").read_history()
    assert float(history[-1]["val_AP"]) == pytest.approx(1)
