import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detseg import cli
from detseg.config import load_config
from detseg.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from benchmark.command import main
from benchmark.harness import OBJECTS, STILL, Side, benchmark, create_job, detseg_side, format_result, torch_side

TOOLS = Path(__file__).resolve().parents[1] / "tools"
CONFIG = """
task: segmentation
data: {format: voc-segmentation, root: there/is/none, train: train}
model: {name: fcn8s, backbone: vgg16, alpha: 0.0625, weights: null, head_channels: 8}
train: {epochs: 1, batch_size: 4, optimizer: {name: sgd, learning_rate: 0.01, momentum: 0.9, weight_decay: 0.0001}}
"""

DETECTION_CONFIG = """
task: detection
data: {format: voc, root: there/is/none, train: train}
model: {name: MODEL, backbone: resnet18, weights: imagenet, fpn_channels: 8, finest_stride: 16, freeze_stages: 2}
train: {epochs: 1, batch_size: 2, optimizer: {name: sgd, learning_rate: 0.01, momentum: 0.9, weight_decay: 0.0001}}
"""
SMALL = {
    "faster_rcnn": ["model.head_channels=8", "model.roi_samples=16", "model.anchor_sizes=[16, 24, 32]"],
    "retinanet": ["model.anchor_sizes=[8, 16, 24, 32]"],
}
FEW_LAYERS = ["model.backbone=vgg16", "model.alpha=0.0625"]  # which the twin has not

# A worker that has everything but a model: it answers with the seconds that its job gives for each round.
FAKE_WORKER = """
import json, sys
job = json.loads(sys.stdin.readline())
facts = {"parameters": 1000, "step_seconds": 0.1, "threads": 1, "device": "none", "versions": {}} | job["facts"]
print(json.dumps(facts), flush=True)
for seconds in job["seconds"]:
    steps = json.loads(sys.stdin.readline())["steps"]
    with open(job["diary"], "a") as diary:
        diary.write(f"{job['name']} {steps}, ")
    print(json.dumps({"seconds": seconds, "peak_memory": 2 * 10**9, "loss": job["loss"]}), flush=True)
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def detection_config_file(tmp_path):
    def create(model):
        path = tmp_path / f"{model}.yaml"
        path.write_text(DETECTION_CONFIG.replace("MODEL", model))
        return path

    return create


@pytest.fixture
def fake_side(config_file, tmp_path):
    def create(name, seconds, facts=None, loss=3.0, is_twin=False):
        job = create_job("train-step", config_file)
        job |= {"name": name, "seconds": seconds, "facts": facts or {}, "loss": loss, "diary": str(tmp_path / "diary")}
        return Side(name, [sys.executable, "-c", FAKE_WORKER], job, is_twin)

    return create


def script_side(script, config_file):
    return Side("peer", [sys.executable, "-c", script], create_job("train-step", config_file))


# ----- rounds, with workers that have no model -----------------------------------------------------------------------


def test_sides_take_turns_and_the_ratio_is_that_of_each_round(fake_side, tmp_path):
    result = benchmark([fake_side("a", [1, 2, 4]), fake_side("b", [2, 2, 2])], rounds=3, steps=5)
    assert (tmp_path / "diary").read_text() == "a 5, b 5, a 5, b 5, a 5, b 5, "
    assert result["sides"][0]["images_per_second"]["rounds"] == [20, 10, 5]  # 5 steps of 4 images
    assert result["sides"][0]["images_per_second"]["median"] == 10
    assert result["sides"][0]["images_per_second"]["quartiles"] == [7.5, 15]
    assert result["ratio"]["rounds"] == [2, 1, 0.5]
    assert result["ratio"]["median"] == 1


def test_a_round_takes_the_slower_side_about_four_seconds(fake_side):
    sides = [fake_side("a", [1], {"step_seconds": 0.01}), fake_side("b", [1], {"step_seconds": 1.3})]
    assert benchmark(sides, rounds=1)["steps"] == 3
    assert benchmark([fake_side("a", [1], {"step_seconds": 30})], rounds=1)["steps"] == 1


def test_one_side_has_no_ratio(fake_side):
    result = benchmark([fake_side("a", [1, 2])], rounds=2, steps=1)
    assert result["ratio"] is None
    assert "ratio" not in format_result(result)


def test_the_table_shows_both_sides_with_speed_memory_and_ratio(fake_side):
    table = format_result(benchmark([fake_side("ours", [1]), fake_side("theirs", [2])], rounds=1, steps=1))
    lines = [re.split(r"  +", line) for line in table.splitlines()]
    assert ["ours", "4", "4 to 4", "2.00 GB", "1,000", "float32", "1", "none"] in lines
    assert ["theirs", "2", "2 to 2", "2.00 GB", "1,000", "float32", "1", "none"] in lines
    assert ["ratio", "2", "2 to 2"] in lines


def test_a_twin_with_other_parameters_is_refused(fake_side):
    ours = fake_side("detseg", [1], {"parameters": 1_000_000})
    benchmark([ours, fake_side("torch", [1], {"parameters": 1_000_900}, is_twin=True)], rounds=1, steps=1)
    with pytest.raises(UserError, match=r"torch: its network has 1,001,100 .* ours 1,000,000"):
        benchmark([ours, fake_side("torch", [1], {"parameters": 1_001_100}, is_twin=True)], rounds=1, steps=1)
    benchmark([ours, fake_side("other config", [1], {"parameters": 5})], rounds=1, steps=1)


def test_a_loss_that_is_no_number_is_refused(fake_side):
    with pytest.raises(UserError, match=r"a: the loss became nan; lower train\.optimizer\.learning_rate"):
        benchmark([fake_side("a", [1], loss=math.nan)], rounds=1, steps=1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('out of ideas')", r"peer: its process ended with exit code 1.*\n  out of ideas"),
        ("import os; os.kill(os.getpid(), 9)", r"ended by signal 9 \(9: often, that memory has run out\)"),
        ("print('hello')", r"peer: .* is no Python: it says 'hello\\n'"),
        ("""print('{"error": "no such network"}')""", "peer: no such network"),
    ],
)
def test_a_worker_that_fails_is_told_with_its_last_words(script, message, config_file):
    with pytest.raises(UserError, match=message):
        benchmark([script_side(script, config_file)], rounds=1, steps=1)


# ----- our worker ----------------------------------------------------------------------------------------------------


def test_a_train_step_is_a_step_of_fit_with_the_configs_optimizer(config_file):
    from benchmark.worker import train_step

    overrides = ["train.optimizer={name: adam, learning_rate: 1e-7}", "train.bias_learning_rate_factor=2.0"]
    job = create_job("train-step", config_file, overrides, size=(64, 64), classes=4)
    model, measure = train_step(job, load_config(config_file, overrides))
    seconds, loss = measure(2)
    assert seconds > 0
    assert loss == pytest.approx(math.log(4), abs=0.05)  # random labels, score layers that start at zero
    assert int(model.optimizer.iterations.numpy()) == 3  # the first is not measured
    assert model.optimizer.name == "adam"
    assert set(model.optimizer.factors) == {1.0, 2.0}


def test_inference_is_that_of_prediction(config_file, monkeypatch):
    from benchmark.worker import inference

    from detseg.inference.segmentation import SegmentationInference

    images = []
    call = SegmentationInference.__call__
    monkeypatch.setattr(
        SegmentationInference, "__call__", lambda self, image: images.append(image) or call(self, image)
    )
    job = create_job("inference", config_file, ["data.resize=[32, 32]"], size=(40, 50))
    _, measure = inference(job, load_config(config_file))
    assert measure(2)[0] > 0
    assert [image.shape for image in images] == [(40, 50, 3)] * 3
    assert job["config"]["data"]["resize"] is None


# ----- our worker's detectors ----------------------------------------------------------------------------------------


def test_objects_of_a_job_lie_in_its_images(detection_config_file):
    job = create_job("train-step", detection_config_file("retinanet"), size=(64, 160), classes=3)
    assert job == create_job("train-step", detection_config_file("retinanet"), size=(64, 160), classes=3)
    assert job["config"]["train"]["optimizer"]["learning_rate"] == STILL
    assert len(job["objects"]) == job["batch_size"] == 2
    for objects in job["objects"]:
        boxes = np.array(objects["boxes"])
        assert boxes.shape == (OBJECTS, 4)
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= [160, 64]).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 4
        assert sides.max() <= 32
        assert set(objects["labels"]) <= {0, 1, 2}


def test_a_train_step_of_a_detector_has_its_jobs_objects(detection_config_file):
    from benchmark.worker import random_batch, train_step

    file, overrides = detection_config_file("retinanet"), [*FEW_LAYERS, "model.head_convolutions=0"]
    job = create_job("train-step", file, overrides, size=(64, 90), classes=3)
    config = load_config(file, overrides)
    images, truth = random_batch(job, config)
    assert images.shape == (2, 64, 96, 3)
    assert truth["image_sizes"].tolist() == [[64, 90]] * 2
    np.testing.assert_allclose(truth["boxes"], [objects["boxes"] for objects in job["objects"]], rtol=1e-6)
    model, measure = train_step(job, config)
    seconds, loss = measure(1)
    assert seconds > 0
    assert math.isfinite(loss)
    assert {metric.name: metric.result() > 0 for metric in model.metrics} == {
        "loss": True,
        "class_loss": True,
        "box_loss": True,
    }


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_one_score_of_each_region_reaches_the_threshold(name, detection_config_file, monkeypatch):
    from benchmark.worker import inference

    from detseg.inference.detection import DetectionInference

    found = []
    call = DetectionInference.__call__
    monkeypatch.setattr(DetectionInference, "__call__", lambda self, image: found.append(call(self, image)))
    overrides = [*SMALL[name], *FEW_LAYERS, "model.max_detections=10"]
    job = create_job("inference", detection_config_file(name), overrides, size=(64, 70), classes=3)
    _, measure = inference(job, load_config(detection_config_file(name), overrides))
    assert measure(1)[0] > 0
    assert len(found) == 2
    for detections in found:
        assert len(detections.boxes) == 10
        assert set(detections.labels) == {0}
        assert (detections.scores > 0.05).all()


@pytest.mark.parametrize(("name", "last"), [("resnet18", 2), ("resnet50", 3)])
def test_residual_branches_are_silent(name, last):
    from benchmark.worker import silence_residuals

    from detseg.backbones.create import create_backbone

    backbone = create_backbone(name, weights=None, norm="frozen", alpha=0.125)
    silence_residuals(backbone)
    for stage in (2, 5):
        scales = [backbone.model.get_layer(f"conv{stage}_block2_{i}_bn").gamma.numpy() for i in range(1, last + 1)]
        assert [scale.max() for scale in scales] == [1] * (last - 1) + [0]


def test_peak_memory_is_between_what_is_resident_and_what_the_machine_has():
    from benchmark.worker import peak_memory

    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
    assert 0.9 * resident <= peak_memory() <= os.sysconf("SC_PHYS_PAGES") * page


def test_two_configs_in_turns_from_command_line_to_json(config_file, tmp_path, capsys):
    arguments = ["train-step", "--config", str(config_file), "--size", "64", "48", "--rounds", "2"]
    arguments += ["--steps", "1", "--classes", "4", "--against-set", "train.precision=mixed_bfloat16"]
    assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 0
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert "detseg train.precision=mixed_bfloat16" in table
    assert "4 x 64x48, 4 classes; 2 rounds of 1 steps" in table
    assert [side["precision"] for side in result["sides"]] == ["float32", "mixed_bfloat16"]
    assert len(result["ratio"]["rounds"]) == 2
    for side in result["sides"]:
        assert side["peak_memory"] > 1e8
        assert side["versions"]["keras"]
        assert side["environment"]["processor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "torch"], "--torch-python PATH"),
        (["--against", "torch", "--torch-python", "no/such/python"], "no/such/python cannot be run"),
        (["--batch-size", "4"], "inference takes one image at a time"),
        (["--set", "model.backbon=vgg16"], "model.backbon"),
        (["--classes", "300"], "--classes 300: expected 2 to 255"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2(arguments, message, config_file, capsys):
    assert main(["inference", "--config", str(config_file), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("measure", ["loader", "evaluation"])
def test_other_benchmarks_have_their_own_options(measure, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([measure, "--help"])
    assert "--rounds" in capsys.readouterr().out


def test_the_tool_and_the_command_of_detseg_are_doors_to_the_benchmarks(config_file, capsys):
    command = [sys.executable, str(TOOLS / "benchmark.py"), "--help"]
    assert "--torch-python" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with pytest.raises(SystemExit, match="0"):
        cli.main(["benchmark", "--help"])
    assert "--torch-python" in capsys.readouterr().out
    assert cli.main(["benchmark", "inference", "--config", str(config_file), "--classes", "300"]) == 2
    assert "--classes 300" in capsys.readouterr().err


def test_without_a_checkout_the_command_says_where_benchmarks_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "detseg" / "cli.py"))
    assert cli.main(["benchmark", "train-step", "--config", "mine.yaml"]) == 2
    assert "part of a checkout" in capsys.readouterr().err


# ----- the twin in torch, where DETSEG_TORCH_PYTHON names the Python of an environment that has it -------------------


@pytest.fixture(scope="module")
def torch_python():
    python = os.environ.get("DETSEG_TORCH_PYTHON")
    if python is None:
        pytest.skip("DETSEG_TORCH_PYTHON names no Python with torch and torchvision")
    if subprocess.run([python, "-c", "import torch, torchvision"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no torch or no torchvision")
    return python


RUN_TWIN = """
import json, sys
import numpy as np, torch
folder, tools, settings = sys.argv[1:]
sys.path.insert(0, tools)
import torch_twin
model = torch_twin.create_model(json.loads(settings), 5).eval()
weights = {name: torch.from_numpy(value) for name, value in np.load(f"{folder}/weights.npz").items()}
missing, unexpected = model.load_state_dict(weights, strict=False)
assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
images = torch.from_numpy(np.load(f"{folder}/images.npy")).permute(0, 3, 1, 2)
with torch.inference_mode():
    np.save(f"{folder}/logits.npy", model(images).permute(0, 2, 3, 1).numpy())
"""

HEAD_NAMES = {"aspp_1x1": "branches.0", "aspp_pooling": "pooling", "aspp_join": "join", "logits_conv": "classifier"}
VARIABLE_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def twin_name(layer):
    """The twin's module of a layer of ours."""
    if match := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        stage, block, index, kind = match.groups()
        part = f"downsample.{kind == 'bn':d}" if index == "0" else f"{kind}{index}"
        return f"trunk.net.layer{int(stage) - 1}.{int(block) - 1}.{part}"
    if layer in ("conv1_conv", "conv1_bn"):
        return f"trunk.net.{layer[6:]}1"
    if layer.startswith("block"):
        return f"trunk.{layer}"
    layer, norm, _ = layer.partition("_norm")
    name = HEAD_NAMES.get(layer) or re.sub(r"aspp_atrous(\d)", r"branches.\1", layer)
    return f"{name}.{1 if norm else 0}" if layer.startswith("aspp") else name


@pytest.mark.parametrize(
    "model",
    [
        "model={name: fcn8s, backbone: vgg16, alpha: 0.0625, head_channels: 8}",
        "model={name: fcn16s, backbone: resnet50, variant: b}",
        "model={name: deeplabv3, backbone: resnet50, variant: b, output_stride: 16, aspp_channels: 8}",
        "model={name: deeplabv3, backbone: resnet50, variant: b, output_stride: 8, aspp_channels: 8}",
    ],
)
def test_the_twin_is_our_network(model, torch_python, config_file, tmp_path):
    from detseg.tasks import create_task

    config = load_config(config_file, [model])
    ours, _ = create_task(config, ["a", "b", "c", "d", "e"]).create_model(pretrained=False)
    rng = np.random.default_rng(0)
    weights = {}
    for variable in ours.weights:
        layer, name = variable.path.split("/")[-2:]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name != "kernel" or layer.startswith("score"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        value = variable.numpy()
        value = value.transpose(3, 2, 0, 1) if name == "kernel" else value
        weights[f"{twin_name(layer)}.{VARIABLE_NAMES.get(name, 'weight' if name == 'kernel' else name)}"] = value
    np.savez(tmp_path / "weights.npz", **weights)
    images = rng.integers(0, 256, (2, 70, 90, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    settings = json.dumps(config.model.model_dump(mode="json"))
    subprocess.run([torch_python, "-c", RUN_TWIN, str(tmp_path), str(TOOLS / "benchmark"), settings], check=True)
    expected, logits = ours(images, training=False).numpy(), np.load(tmp_path / "logits.npy")
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    print("relative error", error)
    assert error < 1e-5


@pytest.mark.parametrize("measure", ["train-step", "inference"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_twin_is_measured(measure, precision, torch_python, config_file):
    job = create_job(measure, config_file, [f"train.precision={precision}"], size=(64, 64))
    result = benchmark([torch_side(job, torch_python)], rounds=2, steps=1)
    (side,) = result["sides"]
    assert side["images_per_second"]["median"] > 0
    assert side["peak_memory"] > 1e8
    assert side["parameters"] == 71691
    assert set(side["versions"]) == {"torch", "torchvision"}


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_both_sides_detectors_agree_on_parameters_and_loss(name, torch_python, detection_config_file):
    job = create_job("train-step", detection_config_file(name), SMALL[name], size=(64, 64))
    result = benchmark([detseg_side(job), torch_side(job, torch_python)], rounds=1, steps=1)
    ours, theirs = result["sides"]
    box_targets = 4 * 9 if name == "faster_rcnn" else 0  # torchvision has some of the background, never used
    assert theirs["parameters"] == ours["parameters"] + box_targets
    assert 0.5 < theirs["loss"] / ours["loss"] < 2  # other random weights and samples, RetinaNet's by other counts


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_the_twins_detectors_are_measured(name, torch_python, detection_config_file):
    job = create_job("inference", detection_config_file(name), SMALL[name], size=(64, 64))
    (side,) = benchmark([torch_side(job, torch_python)], rounds=1, steps=1)["sides"]
    assert side["images_per_second"]["median"] > 0


def test_both_sides_agree_on_parameters_and_loss(torch_python, config_file):
    job = create_job("train-step", config_file, ["train.optimizer.learning_rate=1e-9"], size=(64, 64))
    result = benchmark([detseg_side(job), torch_side(job, torch_python)], rounds=1, steps=1)
    assert result["sides"][0]["parameters"] == result["sides"][1]["parameters"]
    for side in result["sides"]:
        assert side["loss"] == pytest.approx(math.log(21), abs=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model={name: fcn8s, backbone: mobilenetv2}", 'model.backbone: the twin has no "mobilenetv2", only "vgg16"'),
        ("model={name: fcn8s, backbone: resnet50}", 'model.variant: the twin has no null, only "b"'),
        ("model={name: deeplabv3, backbone: vgg16}", 'model.backbone: the twin has no "vgg16", only "resnet50"'),
        ("train.optimizer={name: adam, learning_rate: 0.1}", 'train.optimizer.name: the twin has no "adam"'),
        ("loss=[{name: cross_entropy, label_smoothing: 0.1}]", "loss: the twin has no"),
    ],
)
def test_what_the_twin_lacks_is_refused(override, message, torch_python, config_file):
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark([torch_side(create_job("train-step", config_file, [override]), torch_python)])


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("faster_rcnn", "model.backbone=mobilenetv2", 'model.backbone: the twin has no "mobilenetv2", only "resnet18"'),
        ("faster_rcnn", "model.backbone=resnet50", 'model.variant: the twin has no null, only "b"'),
        ("faster_rcnn", "model.rpn_channels=9", "model.rpn_channels: the twin has no 9, only null or 8"),
        ("faster_rcnn", "model.norm=batch", "model.freeze_stages: the twin has no 2, only 0"),
        ("retinanet", "model.box_loss=giou", 'model.box_loss: the twin has no "giou", only "l1"'),
    ],
)
def test_a_detector_that_the_twin_lacks_is_refused(name, override, message, torch_python, detection_config_file):
    job = create_job("inference", detection_config_file(name), [override])
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark([torch_side(job, torch_python)])
