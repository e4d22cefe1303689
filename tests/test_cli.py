import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detseg.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*arguments, capsys):
    """(exit code, stdout, stderr) of a command line."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_reader_that_has_enough_is_no_error():
    """`detseg ... | head`."""
    command = "import sys; from detseg.cli import main; sys.exit(main(['train', '--print-schema']))"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert (process.wait(), errors) == (141, "")


def test_importing_detseg_loads_neither_keras_nor_tensorflow():
    code = "import sys, detseg; sys.exit(bool({'keras', 'tensorflow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_resolve_and_wrong_ones_do_not():
    import detseg

    assert all(getattr(detseg, name) is not None for name in detseg.__all__)
    with pytest.raises(AttributeError, match="Sgementer"):
        _ = detseg.Sgementer


@pytest.mark.parametrize("tool", ["train", "evaluate", "predict", "compare", "proposals", "make_shapes"])
def test_every_tool_is_a_door_to_its_command(tool):
    command = [sys.executable, str(REPOSITORY / "tools" / f"{tool}.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"detseg {tool.replace('_', '-')}" in result.stdout


def test_print_schema_needs_no_config(capsys):
    code, out, _ = run("train", "--print-schema", capsys=capsys)
    assert code == 0
    assert all(
        "model" in json.loads(out)["$defs"][name]["properties"] for name in ("SegmentationConfig", "DetectionConfig")
    )


def test_train_evaluate_predict_from_a_config_to_masks(quick_config_file, shapes_root, tmp_path, capsys):
    folder = tmp_path / "run"
    code, out, err = run(
        "train", "--config", quick_config_file, "--run", folder, "--set", "train.epochs=1", capsys=capsys
    )
    assert (code, err) == (0, "")
    assert "best val miou" in out

    code, out, _ = run("evaluate", "--run", folder, "--split", "test", "--name", "final", capsys=capsys)
    assert code == 0
    assert "mIoU" in out
    result = json.loads((folder / "evaluation" / "final.json").read_text())
    expected = {"task", "split", "miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class"}
    expected |= {"mean_dice", "per_class_dice"}
    assert set(result) == expected | {"images", "images_per_second", "seconds", "tta", "tile", "overrides"}
    assert (result["tta"], result["overrides"]) == (False, [])
    assert (result["split"], result["images"], len(result["per_class"])) == ("test", 4, 6)
    views = ["--set", "tta.scales=[1.0, 1.25]"]
    code, _, _ = run("evaluate", "--run", folder, "--split", "test", "--tta", *views, capsys=capsys)
    assert code == 0
    averaged = json.loads((folder / "evaluation" / "test_tta.json").read_text())
    assert averaged["pixel_accuracy"] != result["pixel_accuracy"]
    code, _, err = run("evaluate", "--run", folder, "--tta", "--set", "tta.scales=[0.1]", capsys=capsys)
    assert code == 2
    assert re.search(r"shapes_val_\d+\.jpg: tta\.scales: 0\.1 makes an image of 192x192", err)

    image = shapes_root / "JPEGImages" / "shapes_test_0001.jpg"
    output = tmp_path / "masks"
    code, _, _ = run("predict", "--run", folder, image, "--output", output, "--save-probabilities", capsys=capsys)
    assert code == 0
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) == [
        "shapes_test_0001.npz",
        "shapes_test_0001.png",
        "shapes_test_0001_overlay.png",
    ]
    mask = Image.open(output / "shapes_test_0001.png")
    assert (mask.mode, mask.size) == ("P", (192, 192))
    with np.load(output / "shapes_test_0001.npz") as file:
        np.testing.assert_array_equal(file["probabilities"].argmax(-1), np.array(mask))
        assert file["classes"].tolist()[0] == "background"


def test_training_validation_equals_the_evaluate_tool(trained_run, capsys):
    code, _, _ = run("evaluate", "--run", trained_run, "--split", "val", capsys=capsys)
    assert code == 0
    result = json.loads((trained_run / "evaluation" / "val.json").read_text())
    history = (trained_run / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("val_miou")
    assert result["miou"] == max(float(row.split(",")[column]) for row in history[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--config"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["evaluate", "--run", "missing"], "not a run folder"),
        (["predict", "--run", "missing", "x.jpg", "--output", "out"], "not a run folder"),
        (["evaluate", "--run", "missing", "--tile-memory", "2"], "--tile-memory 2: it is for --tile auto"),
        (["evaluate", "--detections", "d.json", "--config", "c.yaml", "--tile-memory", "2"], "no --tile-memory"),
        (["predict", "--run", "r", "x.jpg", "--output", "out", "--tile", "512", "--tile-memory", "2"], "--tile auto"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_predict_reports_bad_files_at_the_end_and_does_the_others(trained_run, shapes_root, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    good = cv2.imread(str(shapes_root / "JPEGImages" / "shapes_test_0001.jpg"))
    cv2.imwrite(str(inputs / "a.png"), good)
    (inputs / "b.jpg").write_bytes(b"")
    (inputs / "c.jpg").write_bytes(b"not an image")
    cv2.imwrite(str(inputs / "d.png"), good[:, :77])
    code, out, err = run("predict", "--run", trained_run, inputs, "--output", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "2 of 4 images" in err
    assert "b.jpg" in err
    assert "c.jpg" in err
    assert "2 images predicted" in out
    assert {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")} == {
        "a.png",
        "a_overlay.png",
        "d.png",
        "d_overlay.png",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_keeps_its_state_and_can_be_resumed(quick_config_file, tmp_path, signal_number, code):
    folder = tmp_path / "run"
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py"), "--config", str(quick_config_file)]
    command += ["--run", str(folder), "--set", "train.epochs=200", "--set", "train.schedule={name: constant}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        while not (folder / "state" / "last_epoch.npz").is_file():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        process.send_signal(signal_number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    epochs = len((folder / "history.csv").read_text().splitlines()) - 1
    command += ["--resume", "--set", f"train.epochs={epochs + 1}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len((folder / "history.csv").read_text().splitlines()) == epochs + 2
