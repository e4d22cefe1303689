"""PyTorch files whose parts lie, are cut off or altered: each ends in one UserError."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import MAGIC, Storage, assert_refused, dump, legacy_file, tensor, zip_file, zip_members

from detseg.backbones.torch_file import read_state_dict
from detseg.errors import UserError

FORMS = {"zip": zip_file, "legacy": legacy_file}
both_forms = pytest.mark.parametrize("form", FORMS)


def state():
    return {"a": tensor(np.arange(8, dtype="float32").reshape(2, 4)), "b": tensor(np.arange(3))}


def lie(name, **fields):
    """A change for zip_members: fields of the member whose name ends so."""

    def change(entries):
        for entry in entries:
            if entry["name"].decode().endswith(name):
                entry.update({key: value(entry) if callable(value) else value for key, value in fields.items()})

    return change


def deflate(name):
    def change(entries):
        lie(name, data=lambda entry: zlib.compress(entry["data"])[2:-4], method=8)(entries)
        position = 0
        for entry in entries:
            entry.update(header=position, size=len(entry["data"]), local_size=len(entry["data"]))
            position += 30 + len(entry["name"]) + len(entry["data"])

    return change


def same_header(entries):
    a, b = (entry for entry in entries if b"/data/" in entry["name"])
    b.update({key: a[key] for key in ("header", "size", "full", "crc")})


def duplicate(entries):
    entries[-1]["name"] = entries[-1]["local_name"] = entries[-2]["name"]


def bomb():
    zeros = {"a": tensor(np.zeros(10 << 20, "uint8"))}
    return zip_file(zeros, change=deflate("/data/" + next(iter(dump(zeros)[1]))))


def damaged_pickle(data):
    i = data.index(b"_rebuild_tensor_v2")
    return data[:i] + b"_rebuild_tensor_v3" + data[i + 18 :]


LAUGHS = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
ONE = {"a": tensor(Storage(np.arange(6, dtype="float32")), (6,))}  # its storage is the member archive/data/0
ZIPS = {
    "compressed pickle": lambda: zip_file(ONE, change=deflate("data.pkl")),
    "compressed storage": bomb,
    "stored, of two sizes": lambda: zip_file(ONE, change=lie("/data/0", full=10**9)),
    "encrypted": lambda: zip_file(ONE, change=lie("/data/0", flags=1)),
    "size beyond the file": lambda: zip_file(ONE, change=lie("/data/0", size=10**9, full=10**9)),
    "size that reaches into the next": lambda: zip_file(ONE, change=lie("data.pkl", size=400, full=400)),
    "size of less": lambda: zip_file(ONE, change=lie("/data/0", size=20, full=20)),
    "pickle of less": lambda: zip_file(ONE, change=lie("data.pkl", size=20, full=20)),
    "local size of another": lambda: zip_file(ONE, change=lie("/data/0", local_size=20)),
    "local name of another": lambda: zip_file(ONE, change=lie("/data/0", local_name=b"archive/data/1")),
    "local extra beyond": lambda: zip_file(ONE, change=lie("/data/0", local_extra=60_000)),
    "header beyond the file": lambda: zip_file(ONE, change=lie("/data/0", header=10**9)),
    "header elsewhere": lambda: zip_file(ONE, change=lie("/data/0", header=lambda entry: entry["header"] - 3)),
    "two members on one place": lambda: zip_file(state(), change=same_header),
    "a name twice": lambda: zip_file(state(), change=duplicate),
    "a name that is no text": lambda: zip_file(ONE, extra=[(b"archive/\xff", b"")]),
    "checksum of the pickle": lambda: zip_file(ONE, change=lie("data.pkl", crc=1)),
    "checksum of a storage": lambda: zip_file(ONE, change=lie("/data/0", crc=1)),
    "altered pickle": lambda: damaged_pickle(zip_file(ONE)),
    "fewer entries": lambda: zip_file(ONE, change_end=lambda end: end.update(count=end["count"] - 1)),
    "more entries": lambda: zip_file(ONE, change_end=lambda end: end.update(count=end["count"] + 1)),
    "100,001 entries": lambda: zip_file(ONE, zip64=True, change_end64=lambda end: end.update(count=100_001)),
    "2^63 entries": lambda: zip_file(ONE, zip64=True, change_end64=lambda end: end.update(count=2**63)),
    "directory elsewhere": lambda: zip_file(ONE, change_end=lambda end: end.update(start=end["start"] - 1)),
    "directory longer": lambda: zip_file(ONE, change_end=lambda end: end.update(length=2**32 - 2)),
    "64-bit directory longer": lambda: zip_file(ONE, zip64=True, change_end64=lambda end: end.update(length=2**62)),
    "ends that contradict": lambda: zip_file(ONE, zip64=True, change_end=lambda end: end.update(count=2)),
    "64-bit size beyond": lambda: zip_file(ONE, zip64=True, change=lie("/data/0", size=2**62, full=2**62)),
    "64-bit sizes missing": lambda: zip_file(ONE, change=lie("/data/0", size=2**32 - 1, full=2**32 - 1)),
    "a comment": lambda: zip_file(ONE)[:-2] + b"\x05\x00hello",
    "bytes in front": lambda: b"PK\3\4" + zip_file(ONE),
    "bytes behind": lambda: zip_file(ONE) + b"\0",
    "two pickles": lambda: zip_file(ONE, extra=[("other/data.pkl", b"}.")]),
    "no pickle": lambda: zip_members([("archive/data/0", bytes(24))]),
    "nothing at all": lambda: zip_members([]),
    "only an end": lambda: b"PK\3\4" + zip_members([])[4:],
    "unknown byteorder": lambda: zip_file(ONE, byteorder=b"middle"),
    "bytes behind the pickle": lambda: zip_file(ONE, pickled=dump(ONE)[0] + b"}."),
    "missing storage": lambda: zip_file({}, pickled=dump(ONE)[0]),
    "legacy: bytes behind": lambda: legacy_file(ONE) + b"\0",
    "legacy: no keys": lambda: legacy_file(ONE, keys=[]),
    "legacy: another's key": lambda: legacy_file({}, pickled=dump(ONE, is_legacy=True)[0]),
    "legacy: a key twice": lambda: legacy_file(ONE, keys=["0", "0"]),
    "legacy: another count": lambda: legacy_file(ONE).replace(struct.pack("<q", 6), struct.pack("<q", 5)),
    "legacy: giant count": lambda: legacy_file(ONE).replace(struct.pack("<q", 6), struct.pack("<q", 2**62)),
    "legacy: negative count": lambda: legacy_file(ONE).replace(struct.pack("<q", 6), struct.pack("<q", -6)),
    "legacy: code for a magic number": lambda: b"\x80\x02" + b"cos\nsystem\n.",
    "legacy: code for a version": lambda: pickle.dumps(MAGIC, 2) + b"\x80\x02" + b"cos\nsystem\n.",
    "legacy: 2^100 lists for a version": lambda: pickle.dumps(MAGIC, 2) + b"]" + LAUGHS + b"." + bytes(100),
    "legacy: nested lists for a version": lambda: pickle.dumps(MAGIC, 2) + b"]" * 30_000 + b"a" * 29_999 + b".",
    "legacy: part of a storage": lambda: legacy_file(
        {"a": tensor(Storage(np.arange(6), view=("1", 0, 6)), (6,))},
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_files_whose_parts_lie_are_refused(tmp_path, name):
    message = assert_refused(tmp_path / "weights.pth", ZIPS[name]())
    assert "has no need of" not in message or "code for" in name


def test_checksums_that_torch_was_told_to_leave_out_are_not_missed(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zip_file(ONE, change=lie("", crc=0)))
    np.testing.assert_array_equal(read_state_dict(path)["a"], np.arange(6))


@both_forms
def test_files_cut_off_anywhere_are_refused(tmp_path, form):
    data = FORMS[form](state())
    for end in range(len(data)):
        assert_refused(tmp_path / "weights.pth", data[:end])


@pytest.mark.parametrize("zip64", [False, True])
def test_no_altered_byte_of_a_zip_file_changes_a_tensor(tmp_path, zip64):
    data, path = zip_file(state(), zip64=zip64), tmp_path / "weights.pth"
    path.write_bytes(data)
    expected = read_state_dict(path)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :])
        try:
            found = read_state_dict(path)
        except UserError:
            continue  # else the byte says nothing about the tensors, as a date
        assert list(found) == list(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array)


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)


@given(edits=edits, end=st.none() | st.floats(0, 1), form=st.sampled_from(["legacy", "zip", "zip64"]))
@settings(derandomize=True, max_examples=400, deadline=None)
def test_random_bytes_give_tensors_or_a_refusal(scratch, edits, end, form):
    data = bytearray(legacy_file(state()) if form == "legacy" else zip_file(state(), zip64=form == "zip64"))
    for position, value in edits:
        data[int(position * len(data))] = value
    scratch.write_bytes(data if end is None else data[: int(end * len(data))])
    assert_read_or_refused(scratch)


@given(edits=edits, form=st.sampled_from(list(FORMS)), protocol=st.sampled_from([2, 4]))
@settings(derandomize=True, max_examples=600, deadline=None)
def test_random_bytes_in_a_pickle_give_tensors_or_a_refusal(scratch, edits, form, protocol):
    pickled = bytearray(dump(state(), protocol, is_legacy=form == "legacy")[0])
    for position, value in edits:
        pickled[int(position * len(pickled))] = value
    scratch.write_bytes(FORMS[form](state(), pickled=bytes(pickled)))
    assert_read_or_refused(scratch)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "weights.pth"


def assert_read_or_refused(path):
    try:
        found = read_state_dict(path)
    except UserError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())
    assert sum(array.nbytes for array in found.values()) <= 4 * path.stat().st_size
