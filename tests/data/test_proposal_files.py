"""Files of proposals: ours, COCO results, the VOC authors' .mat; what isn't of the split is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import io

from detseg.data.dataset import Dataset
from detseg.data.objects import Objects
from detseg.data.proposals import ProposalSet, ProposalsPart, WithProposals, load_proposals, write_proposals
from detseg.data.proposals import describe_proposals as describe
from detseg.data.sample import Sample
from detseg.errors import UserError

SIZES = [(40, 60), (50, 30), (20, 20)]


class Pictures(Dataset):
    classes = ("a",)
    split = "val"

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return Sample(np.zeros((*SIZES[i], 3), np.uint8), str(i), objects=Objects([[0, 0, 9, 9]], [0]))


def data(folder, mode="fast", **changes):
    proposals = {"folder": str(folder), "mode": mode, "seed": 0}
    own = {name: changes.pop(name) for name in ("seed",) if name in changes}
    return SimpleNamespace(
        **{"channels": 3, "value_range": None} | changes, proposals=SimpleNamespace(**proposals | own)
    )


BOXES = [np.array([[0, 0, 60, 40], [3, 4, 25, 30]]), np.zeros((0, 4)), np.array([[1, 2, 20, 19]])]


@pytest.fixture
def stored(tmp_path):
    write_proposals(
        tmp_path / "val_fast.npz", ProposalSet.of_images(BOXES), describe(data(tmp_path), Pictures(), SIZES)
    )
    return tmp_path


def load(folder, dataset=None, sizes=SIZES, **changes):
    return load_proposals(data(folder, **changes), dataset or Pictures(), sizes)


@pytest.mark.parametrize("shift", [0, 0.25, 70000])
def test_what_was_written_is_read(tmp_path, shift):
    boxes = [each + np.float32(shift) for each in BOXES]
    write_proposals(
        tmp_path / "val_fast.npz", ProposalSet.of_images(boxes), describe(data(tmp_path), Pictures(), SIZES)
    )
    found = load(tmp_path)
    assert len(found) == 3
    for i, own in enumerate(boxes):
        assert found.of(i).dtype == np.float32
        assert np.array_equal(found.of(i), own)


def test_whole_pixels_take_two_bytes(stored):
    with np.load(stored / "val_fast.npz") as file:
        assert file["boxes"].dtype == np.uint16


def test_samples_have_their_proposals_and_all_else_of_their_data_set(stored):
    dataset, plain = WithProposals(Pictures(), load(stored)), Pictures()
    assert [len(dataset[i].proposals) for i in range(3)] == [2, 0, 1]
    assert np.array_equal(dataset.proposals(2), BOXES[2])
    for name in ("classes", "split", "channels", "ignore_label", "names", "image_ids", "category_ids", "has_masks"):
        assert getattr(dataset, name) == getattr(plain, name)
    assert np.array_equal(dataset.objects(1).boxes, plain.objects(1).boxes)
    assert dataset.image(1).shape == (50, 30, 3)
    assert dataset.fingerprint() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"its seed is 0, expected 1"),
        ({"channels": 1}, r"its channels is 3, expected 1"),
        ({"value_range": (0.0, 9.0)}, r"its value_range is None, expected \[0.0, 9.0\]"),
        ({"sizes": [(40, 60), (50, 31), (20, 20)]}, r"its images is 3 images, \w+, expected 3 images"),
        ({"mode": "quality"}, r"val_quality\.npz: there are no proposals.*detseg proposals"),
    ],
)
def test_a_file_of_other_images_or_settings_is_refused(stored, changes, message):
    with pytest.raises(UserError, match=message):
        load(stored, **changes)


def test_a_file_of_another_version_is_refused(stored, monkeypatch):
    monkeypatch.setattr("detseg.data.proposals._VERSION", 2)
    with pytest.raises(UserError, match=r"its version is 1, expected 2; delete it and make it anew"):
        load(stored)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", None])
def test_a_damaged_file_is_one_message(stored, content):
    path = stored / "val_fast.npz"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UserError, match=r"val_fast\.npz: damaged .*delete it and make it anew"):
        load(stored)


@pytest.mark.parametrize("counts", [[2, 0, 2], [-1, 2, 2], [3]])
def test_counts_that_are_not_those_of_the_boxes_are_damage(stored, counts):
    with np.load(stored / "val_fast.npz") as file:
        arrays = dict(file)
    np.savez(stored / "val_fast.npz", **arrays | {"counts": np.array(counts)})
    with pytest.raises(UserError, match="damaged"):
        load(stored)


# ----- anybody's -----------------------------------------------------------------------------------------------------


def write_coco(folder, entries):
    (folder / "val.json").write_text(json.dumps(entries))


def test_coco_results_are_sorted_by_score_and_an_image_without_any_has_none(tmp_path):
    write_coco(
        tmp_path,
        [
            {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.2, "category_id": 7},
            {"image_id": 3, "bbox": [0, 0, 20.5, 20], "score": 0.9},
            {"image_id": 1, "bbox": [5, 6, 7, 8], "score": 0.8},
        ],
    )
    found = load(tmp_path, mode="file")
    assert found.of(0).tolist() == [[5, 6, 12, 14], [1, 2, 4, 6]]
    assert len(found.of(1)) == 0
    assert found.of(2).tolist() == [[0, 0, 20, 20]]  # half a pixel outside is rounding


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"image_id": 9, "bbox": [0, 0, 1, 1], "score": 1}],
            r"\[0\]: field image_id is 9, but the split has no such image",
        ),
        ([{"image_id": 1, "bbox": [50, 0, 20, 9], "score": 1}], r"image 0: \[50.0, 0.0, 70.0, 9.0\].*60x40 pixels"),
        ([{"image_id": 1, "bbox": [5, 5, 0, 9], "score": 1}], r"no box within the image"),
        ([{"image_id": 1, "bbox": [0, 0, 1], "score": 1}], "expected COCO's results format"),
        ([{"image_id": 1, "score": 1}], "expected COCO's results format"),
        ([{"image_id": True, "bbox": [0, 0, 1, 1], "score": 1}], "field image_id is True"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": float("nan")}], r"\[0\]: field score is no number"),
        ([{"image_id": 1, "bbox": [0, 0, float("nan"), 1], "score": 1}], "no box within the image"),
        ({"images": []}, "expected COCO's results format"),
    ],
)
def test_coco_results_that_are_not_of_the_split_are_refused(tmp_path, entries, message):
    write_coco(tmp_path, entries)
    with pytest.raises(UserError, match=message):
        load(tmp_path, mode="file")


def cells(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_the_voc_authors_boxes_are_inclusive_from_one_with_y_first(tmp_path):
    boxes = [np.array([[1, 1, 40, 60], [5, 4, 30, 25]], float), np.zeros((0, 4)), np.array([[3, 2, 19, 20]], float)]
    io.savemat(tmp_path / "val.mat", {"images": cells(["0", "1", "2"]), "boxes": cells(boxes)})
    found = load(tmp_path, mode="file")
    assert [found.of(i).tolist() for i in range(3)] == [each.tolist() for each in BOXES]


def test_a_mat_file_without_an_image_of_the_split_or_that_is_none_is_refused(tmp_path):
    io.savemat(tmp_path / "val.mat", {"images": cells(["0", "2"]), "boxes": cells([np.zeros((0, 4))] * 2)})
    with pytest.raises(UserError, match=r"image 1 of the split is not in it"):
        load(tmp_path, mode="file")
    (tmp_path / "val.mat").write_bytes(b"MATLAB 5.0 nothing")
    with pytest.raises(UserError, match="expected the VOC authors' form"):
        load(tmp_path, mode="file")


def test_one_file_of_anybodys_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"val\.json or val\.mat is expected, but there is neither"):
        load(tmp_path, mode="file")
    for name in ("val.json", "val.mat"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="both are there"):
        load(tmp_path, mode="file")


# ----- a file that is being written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 7, 9, 20])
def test_a_part_gives_back_what_is_there_whole(tmp_path, cut):
    path = tmp_path / "part"
    with ProposalsPart(path, {"seed": 0}) as part:
        assert part.read() == {}
        for i, boxes in enumerate(BOXES):
            part.add(i, boxes)
    path.write_bytes(path.read_bytes()[: -cut or None])
    with ProposalsPart(path, {"seed": 0}) as part:
        found = part.read()
        assert sorted(found) == ([0, 1, 2] if cut == 0 else [0, 1])
        part.add(2, BOXES[2])
    with ProposalsPart(path, {"seed": 0}) as part:
        assert [part.read()[i].tolist() for i in range(3)] == [boxes.tolist() for boxes in BOXES]


def test_a_part_that_can_not_be_written_is_one_message_and_a_damaged_one_is_cut(tmp_path):
    with pytest.raises(UserError, match="part: can't be written"), ProposalsPart(tmp_path / "no/part", {}):
        pass
    with ProposalsPart(tmp_path / "part", {}) as part:
        part.read()
        part.add(0, BOXES[0])
    with open(tmp_path / "part", "ab") as file:
        file.write(np.array([1, -7, 3, 3], np.int32).tobytes())
    with ProposalsPart(tmp_path / "part", {}) as part:
        assert list(part.read()) == [0]


def test_a_part_of_another_description_is_begun_anew(tmp_path):
    with ProposalsPart(tmp_path / "part", {"seed": 0}) as part:
        part.read()
        part.add(0, BOXES[0])
    with ProposalsPart(tmp_path / "part", {"seed": 1}) as part:
        assert part.read() == {}
