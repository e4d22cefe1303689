"""Comparing runs, on run folders written by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli import main
from detseg.errors import UserError
from detseg.report.compare import compare, format_markdown, format_text, leaves, merge_orders
from detseg.report.plots import draw_curves
from detseg.report.runs import distinct_names, read_runs

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = """
task: segmentation
data: {{format: voc-segmentation, root: data/mine, train: train, val: val}}
model: {{name: {model}, backbone: vgg16, weights: null}}
train: {{epochs: {epochs}, batch_size: 8, optimizer: {{name: adam, learning_rate: {learning_rate}}}}}
"""
HEADER = "epoch,loss,learning_rate,val_miou,val_pixel_accuracy,train_images_per_second,seconds"
OLD_HEADER = HEADER.replace("train_images", "images")  # of runs of 0.1.0
HISTORY = [
    "1,2.0,0.01,,,4.0,100",
    "2,1.0,0.02,0.5,0.9,8.0,50",
    "3,0.5,0.01,0.7,0.8,9.0,70",
    "4,0.1,0.0,0.6,0.95,8.5,80",
]
SCORES = {"task": "segmentation", "split": "test", "miou": 0.5, "pixel_accuracy": 0.9}
COUNTS = {"images": 1234, "images_per_second": 10.0}


@pytest.fixture
def write_run(tmp_path):
    """Function that writes a run folder, by default of a finished run, and gives its path."""

    def write(
        name, history=HISTORY, model="fcn8s", epochs=4, learning_rate=0.01, model_json=None, commit="abc", **evaluations
    ):
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        config = CONFIG.format(model=model, epochs=epochs, learning_rate=learning_rate)
        (folder / "config.yaml").write_text(config)
        (folder / "environment.json").write_text(json.dumps({"commit": commit, "packages": {"keras": "3.15"}}))
        if model_json is not None:
            (folder / "model.json").write_text(json.dumps(model_json))
        if history:
            (folder / "history.csv").write_text("\n".join([HEADER, *history, ""]))
        for evaluation, result in evaluations.items():
            (folder / "evaluation" / f"{evaluation}.json").write_text(json.dumps(result))
        return folder

    return write


def scores(split="test", miou=0.5, per_class=None, **others):
    return SCORES | COUNTS | {"split": split, "miou": miou, "per_class": per_class or {"car": miou}} | others


def rows_of(paths, split=None):
    """{title: {label: cells}}, the best of a row with a * behind it."""
    return {
        table.title: {
            row.label: [cell + "*" * best for cell, best in zip(row.cells, row.best, strict=True)] for row in table.rows
        }
        for table in compare(read_runs(paths), split)
    }


def test_figures_of_three_runs_by_hand(write_run):
    paths = [
        write_run("a", model_json={"parameters": 1500000, "score_name": "miou"}, test=scores(miou=0.7)),
        write_run("b", history=HISTORY[:2], test=scores(miou=0.25, images_per_second=20.0)),
        write_run("c", history=[]),
    ]
    assert rows_of(paths) == {
        "training": {
            "epochs": ["4", "2 of 4", "0 of 4"],
            "best validation mIoU": ["0.700*", "0.500", "-"],
            "best epoch": ["3", "2", "-"],
        },
        "test": {
            "mIoU": ["0.700*", "0.250", "-"],
            "pixel accuracy": ["0.900", "0.900", "-"],
            "images": ["1,234", "1,234", "-"],
        },
        "test, per class": {"car": ["0.700*", "0.250", "-"]},
        "cost": {
            "training, minutes": ["5.0", "2.5*", "-"],
            "training, images/s": ["8.2*", "6.0", "-"],
            "parameters": ["1,500,000", "-", "-"],
            "test, ms an image": ["100.0", "50.0*", "-"],
        },
    }


def test_a_run_that_an_older_version_wrote_is_read(write_run):
    old = write_run("old")
    history = old / "history.csv"
    history.write_text(history.read_text().replace(HEADER, OLD_HEADER))
    (old / "log.txt").write_text("2026-01-01 a: 1 training images, 2 classes, 1500000 parameters\n")
    tables = rows_of([old, write_run("new", model_json={"parameters": 1500000, "score_name": "miou"})])
    assert tables["training"]["best validation mIoU"] == ["0.700", "0.700"]
    assert tables["cost"]["training, images/s"] == ["8.2", "8.2"]
    assert tables["cost"]["parameters"] == ["-", "1,500,000"]  # a log is no place to read figures from


def test_the_best_epoch_is_by_the_score_that_training_names_wherever_its_column_stands(write_run):
    run = write_run("a", model_json={"parameters": 1, "score_name": "pixel_accuracy"})
    assert rows_of([run])["training"] == {
        "epochs": ["4"],
        "best validation pixel accuracy": ["0.950"],
        "best epoch": ["4"],
    }


def test_the_time_that_scoring_took_is_no_score(write_run):
    tables = rows_of([write_run("a", test=scores(seconds=12.5)), write_run("b", test=scores(seconds=20.0))])
    assert list(tables["test"]) == ["mIoU", "pixel accuracy", "images"]


def test_all_results_are_found_val_first_and_split_leaves_the_others_out(write_run):
    results = {"test_tta": scores(), "test": scores(), "val": scores("val"), "again": scores("val")}
    paths = [write_run("a", **results)]
    titles = list(rows_of(paths))
    assert titles[1:5] == ["again (val)", "val", "test", "test_tta"]
    only_test = rows_of(paths, "test")
    assert [title for title in only_test if "val" in title] == []
    assert [label for label in only_test["cost"] if "ms" in label] == ["test, ms an image", "test_tta, ms an image"]


def test_classes_are_the_union_in_order_with_dashes_for_absent_and_undefined(write_run):
    paths = [
        write_run("a", test=scores(per_class={"road": 0.5, "tooth_loss": 0.25, "sky": None})),
        write_run("b", test=scores(per_class={"road": 0.5, "my_bus": 0.75, "tooth_loss": 0.125, "tree": 0.5})),
    ]
    table = rows_of(paths)["test, per class"]
    assert list(table.items()) == [
        ("road", ["0.500", "0.500"]),
        ("my_bus", ["-", "0.750"]),
        ("tooth_loss", ["0.250*", "0.125"]),
        ("tree", ["-", "0.500"]),
        ("sky", ["-", "-"]),
    ]


def test_nested_scores_of_another_task_need_no_code_of_their_own(write_run):
    result = {
        "task": "detection",
        "split": "val",
        "coco": {"AP": 0.375, "AP50": 0.5, "APs": None},
        "voc": {"mAP07": 0.625},
        "em": {"rand_error": 0.25},
        "per_class": {"car": {"AP": 0.5, "AP50": 0.75}},
        "images": 3,
        "images_per_second": 2.0,
    }
    worse = result | {"coco": {"AP": 0.25, "AP50": 0.5, "APs": 0.125}, "em": {"rand_error": 0.5}}
    tables = rows_of([write_run("a", val=result), write_run("b", val=worse), write_run("c", val=scores("val"))])
    assert tables["val"] == {
        "coco AP": ["0.375*", "0.250", "-"],
        "coco AP50": ["0.500", "0.500", "-"],
        "coco APs": ["-", "0.125", "-"],
        "voc mAP07": ["0.625", "0.625", "-"],
        "em rand error": ["0.250*", "0.500", "-"],
        "mIoU": ["-", "-", "0.500"],
        "pixel accuracy": ["-", "-", "0.900"],
        "images": ["3", "3", "1,234"],
    }
    assert tables["val, per class"] == {
        "car AP": ["0.500", "0.500", "-"],
        "car AP50": ["0.750", "0.750", "-"],
        "car": ["-", "-", "0.500"],
    }


def test_cells_that_read_the_same_are_equally_good(write_run):
    values = (0.5001, 0.5002, 0.4)
    paths = [write_run(f"run{i}", test=scores(miou=value)) for i, value in enumerate(values)]
    assert rows_of(paths)["test"]["mIoU"] == ["0.500*", "0.500*", "0.400"]


def test_long_trainings_are_given_in_hours(write_run):
    paths = [write_run("a", history=["1,2,0.1,0.5,0.5,1,36000"]), write_run("b"), write_run("c", history=[])]
    assert rows_of(paths)["cost"]["training, hours"] == ["10.0", "0.1*", "-"]


def test_only_keys_that_differ_are_shown_with_defaults_resolved(write_run):
    paths = [write_run("a", learning_rate=0.01), write_run("b", learning_rate=0.02, model="deeplabv3", commit="def")]
    with open(paths[1] / "config.yaml", "a") as file:
        file.write("seed: 0\naugmentation: [{random_crop: [64, 64]}]\nloss: [{name: dice, weight: 0.5}]\n")
    tables = rows_of(paths)
    differing = tables["config keys that differ"]
    assert differing["train.optimizer.learning_rate"] == ["0.01", "0.02"]
    assert differing["model.output_stride"] == ["32", "16"]
    assert differing["model.aspp_rates"] == ["-", "[6, 12, 18]"]
    assert differing["model.head_channels"] == ["null", "-"]
    assert differing["augmentation"] == ["[]", "-"]
    assert differing["augmentation.0.random_crop"] == ["-", "[64, 64]"]
    assert differing["loss.0.weight"] == ["1.0", "0.5"]
    assert not {"seed", "train.epochs", "model.backbone"} & set(differing)
    assert list(differing).index("model.aspp_rates") < list(differing).index("train.optimizer.learning_rate")
    assert tables["environment that differs"] == {"commit": ["abc", "def"]}


def test_leaves_are_what_set_can_reach():
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}, {"e": {"f": None}}], "g": {}}
    expected = {("a", "b"): 1, ("a", "c"): [1, 2], ("d", 0, "e"): 1, ("d", 1, "e", "f"): None, ("g",): {}}
    assert dict(leaves(tree)) == expected


def test_merged_order_keeps_neighbours_together():
    assert merge_orders([["a", "b", "d"], ["b", "c", "d", "e"], ["x", "a"], ["y"]]) == [
        "x",
        "a",
        "b",
        "c",
        "d",
        "e",
        "y",
    ]


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    paths = ["one/x/run", "two/x/run", "two/y/run", "other"]
    assert distinct_names([tmp_path / path for path in paths]) == ["one/x/run", "two/x/run", "y/run", "other"]
    with pytest.raises(UserError, match="given twice"):
        distinct_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_text_marks_the_best_and_lines_up(write_run):
    tables = compare(read_runs([write_run("a", test=scores(miou=0.25)), write_run("long_name", test=scores())]))
    text = format_text(tables, ["a", "long_name"])
    assert text.split("\n\n")[1].splitlines() == [
        "test                a   long_name",
        "mIoU            0.250       0.500*",
        "pixel accuracy  0.900       0.900",
        "images          1,234       1,234",
    ]


def test_a_long_value_is_wrapped_and_whole(write_run):
    paths = [write_run("a", commit="0123456789" * 4), write_run("b")]
    lines = format_text(compare(read_runs(paths)), ["a", "b"]).splitlines()[-2:]
    assert lines[0].split() == ["commit", "0123456789" * 3, "abc"]
    assert lines[1].split() == ["0123456789"]


def test_markdown_tables(write_run):
    paths = [write_run("a", test=scores(miou=0.25)), write_run("b", learning_rate=0.02, test=scores())]
    blocks = format_markdown(compare(read_runs(paths)), ["a|b", "_b_c_"]).split("\n\n")
    assert blocks[1].splitlines() == [
        r"| test | a\|b | \_b_c\_ |",
        "| --- | --- | --- |",
        "| mIoU | 0.250 | **0.500** |",
        "| pixel accuracy | 0.900 | 0.900 |",
        "| images | 1,234 | 1,234 |",
    ]
    assert blocks[-1].splitlines()[2:] == ["| `train.optimizer.learning_rate` | `0.01` | `0.02` |"]


def colours_in(path):
    """The set of RGB colours of a PNG's pixels, and its (width, height)."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return set(map(tuple, np.unique(np.array(image.convert("RGB")).reshape(-1, 3), axis=0).tolist())), image.size


def test_curves_show_every_run_that_has_some(write_run, tmp_path):
    runs = read_runs([write_run("$a$ is no formula"), write_run("_b", history=HISTORY[:1]), write_run("c", history=[])])
    draw_curves(runs, tmp_path / "curves.png")
    colours, (width, height) = colours_in(tmp_path / "curves.png")
    blue, orange, green = (31, 119, 180), (255, 127, 14), (44, 160, 44)
    assert {blue, orange} < colours
    assert green not in colours
    assert 1500 < width < 2500
    assert 400 < height < 900


def test_equal_curves_are_all_seen(write_run, tmp_path):
    draw_curves(read_runs([write_run("a"), write_run("b"), write_run("c")]), tmp_path / "curves.png")
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} < colours_in(tmp_path / "curves.png")[0]


def test_runs_without_validation_and_of_other_scores_are_drawn_together(write_run, tmp_path):
    other = write_run("other", model_json={"parameters": 10, "score_name": "AP"})
    plain, undefined = write_run("plain"), write_run("undefined")
    history = other / "history.csv"
    history.write_text(history.read_text().replace("val_miou", "val_AP"))
    (plain / "history.csv").write_text("epoch,loss,learning_rate,train_images_per_second,seconds\n1,1.0,0.1,5,60\n")
    (undefined / "history.csv").write_text(f"{HEADER}\n1,1.0,0.1,nan,0.5,5,60\n")
    runs = read_runs([write_run("a"), other, plain, undefined])
    draw_curves(runs, tmp_path / "curves.png")
    width = colours_in(tmp_path / "curves.png")[1][0]
    assert width > 2500  # a fourth panel
    training = next(table for table in compare(runs) if table.title == "training")
    assert [(row.label, row.cells) for row in training.rows[1:3]] == [
        ("best validation mIoU", ["0.700", "-", "-", "-"]),
        ("best validation AP", ["-", "0.700", "-", "-"]),
    ]


def test_many_runs_of_long_names_are_drawn(write_run, tmp_path):
    draw_curves(read_runs([write_run(f"{'long' * 20}_{i}") for i in range(12)]), tmp_path / "curves.png")
    assert 700 < colours_in(tmp_path / "curves.png")[1][1] < 1500


def test_the_command_prints_tables_and_writes_curves_beside_the_runs(write_run, tmp_path, capsys):
    paths = [write_run("runs/a", test=scores()), write_run("runs/b")]
    curves = tmp_path / "runs" / "compare" / "curves.png"
    for _ in range(2):  # the second time runs/* names runs/compare too
        runs = sorted(curves.parents[1].iterdir())
        assert main(["compare", *map(str, runs)]) == 0
        out = capsys.readouterr().out
        assert "mIoU" in out
        assert out.splitlines()[-1] == str(curves)
        assert curves.is_file()
    output = tmp_path / "elsewhere"
    assert main(["compare", str(paths[0]), "--split", "val", "--markdown", "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert all(line.startswith("|") for line in captured.out.splitlines() if line)
    assert "test" not in captured.out
    assert captured.err.strip() == str(output / "curves.png")
    assert [path.name for path in output.iterdir()] == ["curves.png"]


def test_runs_in_their_first_epoch_have_tables_only(write_run, tmp_path, capsys):
    assert main(["compare", str(write_run("runs/a", history=[]))]) == 0
    assert "0 of 4" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "compare").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "a: not a run folder"),
        ("config.yaml", "task: [", "config.yaml:1"),
        ("environment.json", "{", "environment.json: can't be read"),
        ("model.json", "[]", "model.json: got [], expected a JSON object"),
        ("model.json", '{"score_name": "miou"}', "model.json: parameters: got null, expected int"),
        ("model.json", '{"parameters": 1, "score_name": 2}', "model.json: score_name: got 2, expected str"),
        ("evaluation/test.json", '{"split": "test"', "test.json: can't be read"),
        ("evaluation/test.json", "[1]", "expected a JSON object"),
        ("evaluation/test.json", "{}", "test.json: split: got None"),
        ("evaluation/test.json", b"\xff\xfe", "test.json: can't be read"),
        ("history.csv", "", "history.csv: has no column epoch"),
        ("history.csv", f"{HEADER}\n{HISTORY[0]}\n2,1.0", "history.csv:3: the line has not as many values"),
        ("history.csv", f"{HEADER}\n{HISTORY[0]},7\n", "history.csv:2: the line has not as many values"),
        ("history.csv", f"{HEADER}\n1,high,0.1,,,4,9\n", "history.csv:2: loss: got 'high'"),
        ("history.csv", f"{HEADER}\n1,1,0.1,,,4,\n", "history.csv:2: seconds: got ''"),
        ("history.csv", b"\xff\xfe", "history.csv: can't be read"),
    ],
)
def test_damage_is_named_by_file_with_exit_code_2(write_run, tmp_path, capsys, file, content, message):
    folder = write_run("a", test=scores(), model_json={"parameters": 1, "score_name": "miou"})
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["compare", str(write_run("b")), str(folder)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "compare").exists()


def test_an_output_that_is_a_file_is_refused(write_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["compare", str(write_run("a")), "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err


def test_the_door_opens_without_keras(write_run):
    code = (
        "import sys; from detseg.cli import main; main(sys.argv[1:]); "
        "sys.exit(bool({'keras', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "compare", str(write_run("a"))]
    subprocess.run(command, capture_output=True, check=True)
    door = [sys.executable, str(REPOSITORY / "tools" / "compare.py"), "--help"]
    assert "detseg compare" in subprocess.run(door, capture_output=True, text=True, check=True).stdout
