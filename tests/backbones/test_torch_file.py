"""state_dicts read from PyTorch's files without torch: every type, both forms, what stands around them."""

import collections
import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from torch_writer import KINDS, Call, Name, Storage, legacy_file, tensor, zip_file

from detseg.backbones.torch_file import check_hash, read_state_dict
from detseg.errors import UserError

TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torch") and sys.executable)
FORMS = {"zip": zip_file, "legacy": legacy_file}
both_forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def read(tmp_path):
    """Function of a file's bytes -> what read_state_dict gives."""

    def read(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_state_dict(path)

    return read


def values_of(dtype):
    numbers = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 100, (2, 3, 4))
    return numbers.astype(dtype)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", KINDS)
@both_forms
def test_every_type_comes_back_as_it_was_saved(read, form, dtype, protocol):
    values = values_of(dtype)
    (key, found), *rest = read(FORMS[form]({"weight": tensor(values)}, protocol)).items()
    assert key == "weight"
    assert not rest
    assert found.dtype == ("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(found, values)


@both_forms
def test_bfloat16_is_the_upper_half_of_a_float32(read, form):
    values = np.array([1.0, -2.5, 0.0, np.inf, 3e38, 1e-40], "float32").view("uint32") & 0xFFFF0000
    storage = Storage((values >> 16).astype("uint16"), kind="BFloat16Storage")
    found = read(FORMS[form]({"a": tensor(storage, (2, 3))}))["a"]
    np.testing.assert_array_equal(found, values.view("float32").reshape(2, 3))


@pytest.mark.parametrize("dtype", KINDS)
def test_files_of_big_endian_machines_are_swapped(read, dtype):
    values = values_of(dtype)
    np.testing.assert_array_equal(read(zip_file({"a": tensor(values)}, byteorder=b"big"))["a"], values)


def test_files_of_torch_before_2_1_have_no_byteorder(read):
    np.testing.assert_array_equal(read(zip_file({"a": tensor(np.arange(3.0))}, byteorder=None))["a"], [0, 1, 2])


def test_directories_of_64_bit_are_read(read):
    np.testing.assert_array_equal(read(zip_file({"a": tensor(np.arange(3.0))}, zip64=True))["a"], [0, 1, 2])


@both_forms
def test_views_show_their_part_of_the_storage(read, form):
    values = np.arange(24, dtype="float32")
    storage = Storage(values)
    found = read(
        FORMS[form](
            {
                "whole": tensor(storage, (4, 6)),
                "transposed": tensor(storage, (6, 4), (1, 6)),
                "slice": tensor(storage, (3, 3), (6, 2), 6),
                "last": tensor(storage, (), offset=23),
                "one": tensor(storage, (1, 2), (2**40, 1), 3),
                "repeated": tensor(storage, (2, 3), (0, 1), 3),
                "empty": tensor(storage, (0, 3), offset=24),
                "tied": tensor(storage, (4, 6)),
            }
        )
    )
    whole = values.reshape(4, 6)
    expected = {"whole": whole, "transposed": whole.T, "slice": whole[1:, :5:2], "last": 23, "one": [[3, 4]]}
    expected |= {"repeated": [[3, 4, 5]] * 2, "empty": np.empty((0, 3)), "tied": whole}
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].shape == np.shape(array)
        assert not found[key].flags.writeable or not found[key].size
        np.testing.assert_array_equal(found[key], array)
    assert np.shares_memory(found["tied"], found["slice"])


@both_forms
def test_parameters_and_the_oldest_way_to_pickle_a_tensor(read, form):
    inner = tensor(np.arange(4.0))
    old = Call("torch._utils", "_rebuild_tensor", Storage(np.arange(2.0), key="old"), 0, (2,), (1,))
    parameter = Call("torch._utils", "_rebuild_parameter", inner, True, Call("collections", "OrderedDict"))
    found = read(FORMS[form]({"a": parameter, "b": old}))
    np.testing.assert_array_equal(found["a"], np.arange(4.0))
    np.testing.assert_array_equal(found["b"], [0, 1])


@both_forms
def test_ordered_dicts_with_metadata_keep_their_order(read, form):
    state = collections.OrderedDict((f"layer{9 - i}.weight", tensor(np.array([i]))) for i in range(9))
    state._metadata = collections.OrderedDict({"": {"version": 1}, "layer1": {"version": 2}})
    found = read(FORMS[form](state))
    assert list(found) == [f"layer{9 - i}.weight" for i in range(9)]
    assert [int(array[0]) for array in found.values()] == list(range(9))


def test_files_that_python_2_wrote(read):
    weight = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nLongStorage\nT\x01\x00\x00\x000U\x03cpuK\x02Nt"
        b"QK\x00K\x02\x85K\x01\x85\x89h\x00]\x85RtR"
    )
    pickled = b"\x80\x02ccollections\nOrderedDict\nq\x00]](U\x01a" + weight + b"ea\x85R}U\x09_metadatah\x00]\x85Rsb."
    found = read(legacy_file({"a": tensor(Storage(np.array([5, 7])), (2,))}, pickled=pickled))
    np.testing.assert_array_equal(found["a"], [5, 7])


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_state"])
@both_forms
def test_checkpoints_give_their_state_dict_alone(read, form, key):
    moments = {0: {"step": 3, "exp_avg": tensor(np.ones(2))}, 140234866358000: {"step": tensor(np.array(3.0))}}
    saved = {
        "epoch": 3,
        "arch": "resnet50",
        "loss": [0.5, None, True, -7, 2**70, 1e300],
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}]},
        "dtype": Name("torch", "float32"),
        "size": Call("torch", "Size", (3, 4)),
        key: collections.OrderedDict(weight=tensor(np.arange(3.0))),
    }
    found = read(FORMS[form](saved))
    assert list(found) == ["weight"]
    np.testing.assert_array_equal(found["weight"], [0, 1, 2])


def test_a_wrapper_within_a_wrapper_is_followed(read):
    assert list(read(zip_file({"model": {"state_dict": {"a": tensor(np.ones(1))}, "epoch": 1}}))) == ["a"]


def test_module_is_taken_off_where_all_keys_start_with_it(read):
    one = {"module.a": tensor(np.ones(1)), "module.module.b": tensor(np.ones(1))}
    assert list(read(zip_file({"state_dict": one}))) == ["a", "module.b"]
    assert list(read(zip_file(one | {"c": tensor(np.ones(1))}))) == ["module.a", "module.module.b", "c"]


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "type list"),
        (tensor(np.ones(2)), "type Tensor"),
        ({}, "empty"),
        ({"state_dict": {}}, "empty"),
        ({"epoch": 3, "net": {"a": tensor(np.ones(1))}}, "has epoch of type int where tensors should be"),
        ({"a": tensor(np.ones(1)), "b": [tensor(np.ones(1))]}, "has b of type list"),
        ({"a": Storage(np.ones(1))}, "has a of type Storage"),
        ({3: tensor(np.ones(1))}, "has 3 of type Tensor"),
        ({"model": {"a": tensor(np.ones(1))}, "state_dict": {"a": 1}}, "several dicts"),
        ({"a": Call("torch._utils", "_rebuild_qtensor")}, "quantized"),
        ({"a": Call("torch._utils", "_rebuild_sparse_tensor")}, "sparse"),
        ({"a": tensor(Storage(np.ones(2), kind="ComplexFloatStorage"), (1,))}, "complex"),
        ({"a": tensor(Storage(np.ones(2), kind="QInt8Storage"), (1,))}, "quantized"),
        ({"a": tensor(np.ones(2), metadata=({"neg": True},))}, "negated"),
        (Call("torch.nn.modules.linear", "Linear"), r"whole pickled model.*torch\.save\(model\.state_dict\(\), path\)"),
        ({"model": Call("models.yolo", "Model")}, r"models\.yolo\.Model.*torch\.save\(model\.state_dict\(\), path\)"),
        ({"a": Call("numpy.core.multiarray", "scalar")}, r"numpy\.core\.multiarray\.scalar"),
    ],
)
@both_forms
def test_what_is_no_state_dict_is_named(read, form, saved, message):
    with pytest.raises(UserError, match=message) as error:
        read(FORMS[form](saved))
    assert "weights.pth" in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"just a text\n", "no PyTorch file"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"pickle".ljust(257, b"\0") + b"ustar\x0000" + bytes(500), "tar form"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (pickle.dumps({"a": 1}, 0), "no PyTorch file"),
        (legacy_file({}, version=1000), "version 1000"),
        (zip_file({}, extra=[("archive/constants.pkl", b"")]), "TorchScript"),
        (b"PK\3\4", "doesn't end as torch.save ends one"),
    ],
)
def test_other_files_are_told_apart(read, data, message):
    with pytest.raises(UserError, match=message) as error:
        read(data)
    assert str(error.value).startswith("model.weights: ")


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pth", "a\0b"):
        with pytest.raises(UserError, match=r"^train\.initial_weights: .* is not a file"):
            read_state_dict(path, field="train.initial_weights")


@both_forms
def test_memory_is_that_of_the_tensors_asked_for(read, form):
    saved = {"model": {"a": tensor(np.ones(2**20, "float32"))}, "other": [tensor(np.ones(2**21, "float32"))]}
    data = FORMS[form](saved)
    tracemalloc.start()
    found = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["a"].nbytes == 2**22
    assert peak < 2**22 + 2**20


def test_reading_needs_neither_keras_nor_torch():
    code = (
        "import sys, detseg.backbones.torch_file; sys.exit(bool({'keras', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hashes_in_names_are_checked(tmp_path):
    data = b"weights"
    start = hashlib.sha256(data).hexdigest()

    def write(name):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    assert check_hash(write(f"resnet50-{start[:8]}.pth"))
    assert check_hash(write(f"resnet50-{start[:10]}.pt"))
    for name in ("resnet50.pth", "resnet50-v2.pth", f"resnet50-{start[:7]}.pth", "run-20240131.pth", "x-0676ba61.bin"):
        assert not check_hash(write(name))
    with pytest.raises(UserError, match=r"^model\.weights: .*altered or incomplete.*0676ba61; download it again"):
        check_hash(write("resnet50-0676ba61.pth"))
    with pytest.raises(UserError, match="cannot be read"):
        check_hash(tmp_path / "absent-0676ba61.pth")


TORCH_SCRIPT = """
import sys
import numpy as np, torch

torch.manual_seed(0)
base = torch.randn(4, 6)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.LSTM(4, 3))
tensors = dict(net.state_dict())
types = ("float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool")
tensors |= {f"type {name}": (torch.randn(3, 5) * 50).to(getattr(torch, name)) for name in types}
tensors |= {"base": base, "slice": base[1:, ::2], "transposed": base.T, "scalar": base[2, 3], "empty": base[:0]}
tensors |= {"parameter": torch.nn.Parameter(base), "half slice": base.half()[:, 3:], "channels last":
            torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
optimizer = torch.optim.Adam(net[:2].parameters())
net[:2](torch.randn(2, 3, 8, 8)).sum().backward()
optimizer.step()
for form in ("zip", "legacy"):
    for protocol in (2, 4):
        options = {"_use_new_zipfile_serialization": form == "zip", "pickle_protocol": protocol}
        torch.save({"state_dict": tensors, "optimizer": optimizer.state_dict(), "epoch": 1},
                   f"{sys.argv[1]}/{form}{protocol}.pth", **options)
        torch.save(net.state_dict(), f"{sys.argv[1]}/net_{form}{protocol}.pth", **options)
        torch.save(net, f"{sys.argv[1]}/whole_{form}{protocol}.pth", **options)
half = (torch.float16, torch.bfloat16)
arrays = {key: x.detach().float() if x.dtype in half else x.detach() for key, x in tensors.items()}
np.savez(f"{sys.argv[1]}/arrays.npz", **{key: x.numpy() for key, x in arrays.items()})
"""


@pytest.mark.skipif(TORCH_PYTHON is None, reason="no torch here, and DETSEG_TORCH_PYTHON names no Python with it")
def test_files_that_torch_writes_give_its_arrays(tmp_path):
    command = [TORCH_PYTHON, "-c", TORCH_SCRIPT, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "arrays.npz") as file:
        arrays = dict(file)
    for form in ("zip2", "zip4", "legacy2", "legacy4"):
        found = read_state_dict(tmp_path / f"{form}.pth")
        assert list(found) == list(arrays)
        net = read_state_dict(tmp_path / f"net_{form}.pth")
        assert list(net) == list(arrays)[: len(net)]
        for key, array in arrays.items():
            for ours in (found, net) if key in net else (found,):
                assert (ours[key].dtype, ours[key].shape) == (array.dtype, array.shape), key
                np.testing.assert_array_equal(ours[key], array, err_msg=key)
        with pytest.raises(UserError, match="whole pickled model"):
            read_state_dict(tmp_path / f"whole_{form}.pth")
