import contextlib
import io
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.config import load_config
from detseg.data.readers.create import create_dataset
from detseg.errors import UserError
from detseg.inference.prediction import Prediction
from detseg.metrics.coco import COCO_KEYS, CocoScores, CocoSettings
from detseg.tasks import create_task
from detseg.tasks.scoring import score_dataset, score_detections

CLASSES = {0: "cat", 1: "dog", 2: "fish"}


def scores_of(*images, engine="pycocotools"):
    """Of images (true boxes, found boxes, scores) of one class."""
    scores = CocoScores({0: "cat"}, engine=engine)
    for truth, found, confidence in images:
        scores.update(truth, [0] * len(truth), found, [0] * len(found), confidence)
    return scores.result()


def random_images(seed, count=12):
    """Dicts with true and found boxes and masks, ids descending, some images without either, many equal scores."""
    rng = np.random.default_rng(seed)
    for image_id in range(10 * count, 0, -10):
        true_count = rng.integers(0, 6) * (rng.random() < 0.8)
        corners = rng.integers(0, 60, (true_count, 2))
        truth = np.concatenate([corners, corners + rng.integers(4, 140, (true_count, 2))], 1)
        found = truth[rng.random(true_count) < 0.8]
        found = np.concatenate([found + rng.integers(-3, 4, found.shape), truth[:1], [[5, 5, 30, 40]]])
        found = found[rng.random(len(found)) < 0.9].clip(0, 200)
        yield {
            "image_id": image_id,
            "truth": truth,
            "true_labels": rng.integers(0, 2, true_count),
            "crowds": rng.random(true_count) < 0.2,
            "areas": 0.7 * truth[:, 2:].prod(1),
            "found": found,
            "labels": rng.integers(0, 3, len(found)),
            "scores": rng.integers(1, 5, len(found)) / 4,
        }


def masks_of(boxes):
    """Ellipses in boxes, in an image of 200 x 200."""
    rows, columns = np.indices((200, 200)) + 0.5
    masks = np.zeros((200, 200, len(boxes)), np.uint8, order="F")
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        height, width = max(y2 - y1, 1), max(x2 - x1, 1)
        masks[..., i] = ((2 * columns - x1 - x2) / width) ** 2 + ((2 * rows - y1 - y2) / height) ** 2 <= 1
    return rle.encode(masks)


def collected(images, iou_type, engine, settings=None):
    scores = CocoScores(CLASSES, iou_type, engine, settings)
    for image in images:
        more = {"true_crowds": image["crowds"], "true_areas": image["areas"], "image_id": image["image_id"]}
        labels = image["true_labels"], image["labels"]
        truth, found = image["truth"], image["found"]
        if iou_type == "segm":
            truth, found = masks_of(truth), masks_of(found)
        scores.update(truth, labels[0], found, labels[1], image["scores"], **more)
    return scores.result()


def write_files(images, folder):
    """The same as files, truth.json and found.json; categories have ids 5, 6, 7. What is found has box and mask."""
    annotations, results = [], []
    for image in images:
        common = {"image_id": image["image_id"]}
        for box, mask, label, crowd, area in zip(
            image["truth"], masks_of(image["truth"]), image["true_labels"], image["crowds"], image["areas"], strict=True
        ):
            annotation = {"bbox": xywh(box), "segmentation": as_text(mask), "category_id": 5 + int(label)}
            annotations.append(common | annotation | {"iscrowd": int(crowd), "area": area, "id": len(annotations) + 1})
        for box, mask, label, score in zip(
            image["found"], masks_of(image["found"]), image["labels"], image["scores"], strict=True
        ):
            shape = {"bbox": xywh(box), "segmentation": as_text(mask)}
            results.append(common | shape | {"category_id": 5 + int(label), "score": score})
    sections = {
        "images": [
            {"id": image["image_id"], "file_name": f"{image['image_id']}.png", "height": 200, "width": 200}
            for image in images
        ],
        "annotations": annotations,
        "categories": [{"id": 5 + label, "name": name} for label, name in CLASSES.items()],
    }
    (folder / "truth.json").write_text(json.dumps(sections))
    (folder / "found.json").write_text(json.dumps(results))


def figures_of_files(images, iou_type, folder):
    """COCOeval's figures of `write_files`, as its demo computes them."""
    write_files(images, folder)
    results = json.loads((folder / "found.json").read_text())
    if iou_type == "segm":  # loadRes would take the boxes' areas
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


def xywh(box):
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def as_text(mask):
    return mask | {"counts": mask["counts"].decode()}


def test_average_precision_of_two_hits_and_one_miss_by_hand():
    truth, found = [[0, 0, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]]
    result = scores_of((truth, found, [0.9, 0.8, 0.7]))
    # Precision is 1 at the 51 recalls 0, 0.01 .. 0.5 and 2/3 at the other 50.
    expected = (51 + 50 * 2 / 3) / 101
    assert result["coco"]["AP"] == pytest.approx(expected)
    assert result["per_class"] == {"cat": {"AP": pytest.approx(expected), "AP50": pytest.approx(expected)}}
    assert result["coco"]["AR1"] == 0.5
    assert np.isnan(result["coco"]["APl"])


def test_boxes_are_continuous_so_that_iou_has_no_plus_one():
    # 8 of 10 columns: IoU 0.8 exactly, which matches at 0.5 .. 0.8, 7 of the 10 thresholds.
    result = scores_of(([[0, 0, 10, 10]], [[0, 0, 8, 10]], [1]))
    assert result["coco"]["AP"] == pytest.approx(0.7)


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_nothing_to_find_is_undefined_and_nothing_found_is_zero(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    for images in ([], [([], [], [])], [([], [[0, 0, 4, 4]], [0.5])]):
        result = scores_of(*images, engine=engine)
        assert np.isnan(list(result["coco"].values())).all()
        assert np.isnan(list(result["per_class"]["cat"].values())).all()
    result = scores_of(([[0, 0, 4, 4]], [], []), engine=engine)
    assert (result["coco"]["AP"], result["coco"]["AR100"], result["per_class"]["cat"]["AP50"]) == (0, 0, 0)


def test_size_follows_the_given_area():
    for area, key in ((1000, "APs"), (5000, "APm"), (10000, "APl")):
        scores = CocoScores({0: "cat"}, engine="pycocotools")
        scores.update([[0, 0, 10, 10]], [0], [[0, 0, 10, 10]], [0], [1], true_areas=[area])
        figures = scores.result()["coco"]
        assert [name for name in ("APs", "APm", "APl") if figures[name] > 0.99] == [key]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_figures_equal_those_of_cocoeval_on_files(iou_type, tmp_path):
    images = list(random_images(0))
    assert any(len(image["truth"]) == 0 for image in images)
    assert any(image["crowds"].any() for image in images)
    figures = collected(images, iou_type, "pycocotools")["coco"]
    assert 0.1 < figures["AP"] < 0.9
    np.testing.assert_array_equal([figures[key] for key in COCO_KEYS], figures_of_files(images, iou_type, tmp_path))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_both_engines_give_equal_figures(iou_type):
    pytest.importorskip("hotcoco")
    images = list(random_images(1))
    plain, fast = (collected(images, iou_type, engine) for engine in ("pycocotools", "hotcoco"))
    assert plain.pop("engine").startswith("pycocotools 2.")
    assert fast.pop("engine").startswith("hotcoco ")
    np.testing.assert_equal(fast, plain)
    no_detections = [image | {"found": np.zeros((0, 4), int), "labels": [], "scores": []} for image in images]
    plain, fast = (collected(no_detections, iou_type, engine) for engine in ("pycocotools", "hotcoco"))
    np.testing.assert_equal(fast["coco"], plain["coco"])


def test_thresholds_of_ones_own_by_hand():
    truth, found = [[0, 0, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 7], [20, 20, 30, 30], [50, 50, 60, 60]]

    def figures(**settings):
        scores = CocoScores({0: "cat"}, "bbox", "pycocotools", CocoSettings(**settings))
        scores.update(truth, [0, 0], found, [0, 0, 0], [0.9, 0.8, 0.7])
        return scores.result()

    two_of_three, one_of_three = (51 + 50 * 2 / 3) / 101, 51 * (1 / 3) / 101
    result = figures(iou_thresholds=[0.6])  # the first is found, with IoU 0.7
    assert result["coco"]["AP"] == pytest.approx(two_of_three)
    assert np.isnan([result["coco"]["AP50"], result["coco"]["AP75"], result["per_class"]["cat"]["AP50"]]).all()
    result = figures(iou_thresholds=(0.5, 0.75))
    assert [result["coco"][key] for key in ("AP50", "AP75")] == pytest.approx([two_of_three, one_of_three])
    assert result["coco"]["AP"] == pytest.approx((two_of_three + one_of_three) / 2)
    result = figures(iou_thresholds=[0.5], max_detections=[2])
    assert result["coco"]["AR2"] == 0.5
    assert "AR100" not in result["coco"]
    assert result["coco"]["AP"] == pytest.approx(51 / 101)
    result = figures(areas={"tiny": (0, 99), "round": (100, 100)})
    assert np.isnan(result["coco"]["APtiny"])
    assert result["coco"]["ARround"] == pytest.approx(figures()["coco"]["ARs"])
    assert "APs" not in result["coco"]


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_figures_at_other_thresholds_equal_those_of_cocoeval_where_it_knows_them(engine, tmp_path):
    """COCOeval computes the figures of three numbers of detections; other thresholds are among its own."""
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    images = list(random_images(2))
    settings = CocoSettings([0.75, 0.95], (2, 3), {"m": (32**2, 96**2), "all": (0, 1e10)})
    figures = collected(images, "bbox", engine, settings)["coco"]
    assert list(figures) == ["AP", "AP50", "AP75", "APm", "APall", "AR2", "AR3", "ARm", "ARall"]
    write_files(images, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.params.maxDets = [1, 2, 3]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = (evaluation.eval[key][[5, 9]] for key in ("precision", "recall"))  # at IoU 0.75 and 0.95
    assert figures["AP75"] == evaluation.stats[2] == precision[0, :, :2, 0, 2].mean()
    assert figures["AP"] == figures["APall"] == pytest.approx(precision[:, :, :2, 0, 2].mean())
    assert figures["APm"] == pytest.approx(precision[:, :, :2, 2, 2].mean())
    assert figures["AR2"] == pytest.approx(recall[:, :2, 0, 1].mean())
    assert figures["AR3"] == figures["ARall"] == pytest.approx(recall[:, :2, 0, 2].mean())
    assert 0 < figures["AP"] < figures["AP75"] < 1


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_images_with_more_objects_than_are_counted_are_said_and_a_higher_limit_finds_them_all(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    rows, columns = np.indices((15, 15)).reshape(2, -1) * 20
    boxes = np.stack([columns, rows, columns + 10, rows + 10], axis=1)  # 225 perfect ones

    def result(settings=None, crowds=None, labels=(0,) * 225):
        scores = CocoScores(CLASSES, engine=engine, settings=settings)
        scores.update(boxes, labels, boxes, labels, np.linspace(1, 0.5, 225), crowds)
        scores.update(boxes[:100], [0] * 100, boxes[:100], [0] * 100, np.linspace(1, 0.5, 100))
        return scores.result()

    limited = result()
    assert limited["coco"]["AP"] < 0.7
    assert limited["images_over_max_detections"] == {"images": 1, "max_detections": 100}
    whole = result(CocoSettings(max_detections=(1, 10, 225)))
    assert (whole["coco"]["AP"], whole["coco"]["AR225"]) == pytest.approx((1, 1))
    assert "images_over_max_detections" not in whole
    assert "images_over_max_detections" not in result(crowds=np.arange(225) >= 100)
    assert "images_over_max_detections" not in result(labels=np.arange(225) % 3)  # the limit is of a class


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_thresholds": 0.5}, "iou_thresholds: 0.5, expected a list of numbers above 0, up to 1"),
        ({"iou_thresholds": [50]}, "iou_thresholds: "),
        ({"iou_thresholds": []}, "iou_thresholds: "),
        ({"max_detections": 300}, "max_detections: 300, expected a list of rising whole numbers"),
        ({"max_detections": [10, 1]}, "max_detections: "),
        ({"max_detections": [0, 10]}, "max_detections: "),
        ({"areas": {"s": (9, 1)}}, r"areas: 's' is \(9, 1\), expected \(from, to\) in pixels"),
        ({"areas": {"s": 9}}, "areas: 's' is 9"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        CocoSettings(**settings)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="engine: 'coco', expected one of hotcoco, pycocotools"):
        CocoScores({0: "cat"}, engine="coco")


def test_between_equal_scores_the_order_of_image_ids_decides():
    hit, miss = ([[0, 0, 9, 9]], [[0, 0, 9, 9]]), ([], [[0, 0, 9, 9]])
    results = []
    for ids in ((1, 2), (2, 1), ("a", "b"), ("b", "a")):
        scores = CocoScores({0: "cat"}, engine="pycocotools")
        for (truth, found), image_id in zip((hit, miss), ids, strict=True):
            scores.update(truth, [0] * len(truth), found, [0], [0.5], image_id=image_id)
        results.append(scores.result()["coco"]["AP"])
    assert results == pytest.approx([1, 0.5, 1, 0.5])


def detection_task(folder):
    """(task, dataset) of a config whose data are `write_files`."""
    path = folder / "config.yaml"
    path.write_text(f"""
task: detection
data: {{format: coco, root: {folder}, train: null, val: {{annotations: truth.json, images: .}}, masks: true}}
model: {{name: retinanet, backbone: resnet18}}
train: {{epochs: 1, batch_size: 1, optimizer: {{name: sgd, learning_rate: 0.1}}}}
""")
    config = load_config(path)
    dataset = create_dataset(config.data, "val", "detection")
    return create_task(config, dataset.classes), dataset


def test_every_way_of_evaluation_gives_the_figures_of_cocoeval_where_ids_are_not_in_order_and_scores_tie(tmp_path):
    images = list(random_images(0))
    boxes, masks = (figures_of_files(images, iou_type, tmp_path).tolist() for iou_type in ("bbox", "segm"))
    in_order_of_the_file = collected([image | {"image_id": None} for image in images], "bbox", "pycocotools")["coco"]
    assert list(in_order_of_the_file.values()) != boxes, "ties matter here"
    for image in images:
        cv2.imwrite(str(tmp_path / f"{image['image_id']}.png"), np.zeros((200, 200, 3), np.uint8))
    task, dataset = detection_task(tmp_path)
    assert dataset.image_ids == sorted(dataset.image_ids, reverse=True)

    of_file, _ = score_detections(task, dataset, [(200, 200)] * len(images), tmp_path / "found.json")
    found = iter(images)

    def inference(picture):
        image = next(found)
        return Prediction(boxes=image["found"].astype("float32"), labels=image["labels"], scores=image["scores"])

    of_run = score_dataset(task, inference, dataset)  # as in training too
    assert list(of_file["coco"].values()) == list(of_run["coco"].values()) == boxes
    assert list(of_file["coco_masks"].values()) == masks


def test_nothing_is_printed(capsys):
    scores_of(([[0, 0, 4, 4]], [[0, 0, 4, 4]], [1]))
    assert capsys.readouterr().out == ""
