"""`detseg proposals`: from a config to files, figures and a plot; killed and begun again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import detseg.proposals
from detseg import make_proposals
from detseg.cli import main
from detseg.config import load_data_config
from detseg.data.proposals import load_proposals
from detseg.data.readers.create import create_dataset
from detseg.data.scan import scan_split
from detseg.detection.selective_search import selective_search
from detseg.errors import UserError


@pytest.fixture
def config(shapes_root, tmp_path):
    path = tmp_path / "mine.yaml"
    data = f"{{format: voc, root: {shapes_root}, train: val, test: test, proposals: {{folder: {tmp_path}/found}}}}"
    path.write_text(f"task: detection\ndata: {data}\n")
    return path


@pytest.fixture
def here(monkeypatch):
    """Searches in this process, where it can be counted and stopped."""
    calls = []

    def in_order(jobs, workers):
        for key, arguments in jobs:
            calls.append(key)
            yield key, (selective_search(*arguments), 0.5)

    monkeypatch.setattr(detseg.proposals, "_in_processes", in_order)
    return calls


def loaded(config, split):
    data = load_data_config(config).data
    dataset = create_dataset(data, split, "detection")
    return dataset, load_proposals(data, dataset, scan_split(dataset, "detection").image_sizes)


def test_the_command_makes_what_the_search_finds_in_each_image_and_measures_it(config, capsys):
    tool = Path(__file__).resolve().parents[1] / "tools/proposals.py"  # whose worker processes import it
    command = [sys.executable, str(tool), "--config", str(config), "--split", "train", "--workers", "2"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "IoU 0.5" in printed
    assert "mean average best overlap" in printed
    dataset, proposals = loaded(config, "train")
    for i in (0, len(dataset) - 1):
        assert np.array_equal(proposals.of(i), selective_search(dataset.image(i)))
    assert (config.parent / "found/train_fast_recall.png").stat().st_size > 5000
    assert sorted(path.name for path in (config.parent / "found").iterdir()) == [
        "train_fast.npz",
        "train_fast_recall.png",
    ]
    assert main(["proposals", "--config", str(config), "--split", "train"]) == 0
    assert "s an image" not in capsys.readouterr().out  # they were there


def test_a_script_without_the_guard_that_processes_need_is_told_so(config, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(f"import detseg\ndetseg.make_proposals({str(config)!r}, 'train', workers=2)\n")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert 'under `if __name__ == "__main__":`, or with workers=1' in result.stderr


def test_each_split_of_the_config_has_its_file(config, here):
    figures = make_proposals(config)
    assert [each["split"] for each in figures] == ["train", "test"]
    assert all(each["recall"]["0.5"]["2000"] > 0.5 for each in figures)
    assert all(each["seconds_per_image"] == 0.5 for each in figures)


def test_a_killed_search_goes_on_where_it_was_to_the_same_proposals(config, here, monkeypatch):
    whole = make_proposals(config, "train")[0]
    expected = loaded(config, "train")[1].boxes
    (config.parent / "found/train_fast.npz").unlink()
    count = len(here)
    here.clear()
    original = detseg.proposals._in_processes

    def dying(jobs, workers):
        for number, job in enumerate(original(jobs, workers)):
            if number == 3:
                raise KeyboardInterrupt
            yield job

    with monkeypatch.context() as patch:
        patch.setattr(detseg.proposals, "_in_processes", dying)
        with pytest.raises(KeyboardInterrupt):
            make_proposals(config, "train")
    here.clear()
    again = make_proposals(config, "train")[0]
    assert here == list(range(3, count))
    assert np.array_equal(loaded(config, "train")[1].boxes, expected)
    assert again["mabo"] == whole["mabo"]


def test_proposals_of_other_settings_are_another_file_or_refused(config, here):
    make_proposals(config, "train")
    with pytest.raises(UserError, match=r"train_fast\.npz: made for other images or settings: its seed is 0, exp"):
        make_proposals(config, "train", overrides=["data.proposals.seed=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "task: segmentation\ndata: {format: voc-segmentation, root: x, train: train}\n",
            "proposals are for task: detection",
        ),
        ("task: detection\ndata: {format: voc, root: x, train: train}\n", r"data\.proposals: null; name a folder"),
    ],
)
def test_a_config_without_proposals_is_told(text, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert main(["proposals", "--config", str(tmp_path / "c.yaml")]) == 2
    with pytest.raises(UserError, match=message):
        make_proposals(tmp_path / "c.yaml")


def test_the_figures_of_anybodys_file_are_told_too(config, here):
    (config.parent / "found").mkdir()
    (config.parent / "found/train.json").write_text("[]")
    figures = make_proposals(config, "train", overrides=["data.proposals.mode=file"])[0]
    assert not here
    assert figures["recall"]["0.5"]["100"] == 0
    assert f"without any proposal: {figures['images']} images" in str(figures)
