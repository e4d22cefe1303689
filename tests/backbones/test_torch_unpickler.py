"""Hostile pickles in PyTorch files: each ends in one UserError, nothing is executed, nothing large is allocated."""

import contextlib
import io
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Storage, assert_refused, legacy_file, tensor, zip_file

from detseg.backbones import torch_unpickler


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(value)) + value


def called(name, *arguments):
    """A pickle that calls module.name with texts."""
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR."


def stack_called(module, name, *arguments):
    return text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


SENTINEL = "executed"  # a file in the working directory, which the hostile pickles would make
SHELL = f"touch {SENTINEL}"
CODE = f"open({SENTINEL!r}, 'w')"
ATTRIBUTES = text("__setstate__") + text(CODE)

# Pickles that Python's own unpickler executes here: the test below proves it.
EXECUTED = {
    "os.system": called("os.system", SHELL),
    "posix.system": called("posix.system", SHELL),
    "os.system in protocol 4": b"\x80\x04" + stack_called("os", "system", SHELL),
    "dotted name": b"\x80\x04" + stack_called("shutil", "os.system", SHELL),
    "subprocess.getoutput": called("subprocess.getoutput", SHELL),
    "builtins.eval": called("builtins.eval", CODE),
    "builtins.exec": called("builtins.exec", CODE),
    "python 2's eval": b"\x80\x02" + called("__builtin__.eval", CODE),
    "builtins.open": called("builtins.open", SENTINEL, "w"),
    "cProfile.run": called("cProfile.run", CODE),
    "INST": b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text(SHELL) + b"o.",
    "os.popen": called("os.popen", SHELL),
    "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n]" + text(SHELL) + b"atRtR.",
    "partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(SHELL) + b"tR)R.",
    "within a state_dict": b"}" + text("weight") + called("os.system", SHELL)[:-1] + b"s.",
    "hooks of a tensor": b"}" + text("hooks") + b"}" + text("a") + called("os.system", SHELL)[:-1] + b"ss.",
    "before a valid pickle": called("os.system", SHELL)[:-1] + b"0}.",
}

LAUGHS = b"]" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))  # a pair of pairs of pairs ...: 2^100 lists

REFUSED = {
    "nt.system": called("nt.system", SHELL),
    "numpy.load": called("numpy.load", SENTINEL),
    "numpy's scalar": called("numpy.core.multiarray.scalar", "a"),
    "torch.load": called("torch.load", SENTINEL),
    "torch.hub.load": called("torch.hub.load", SENTINEL),
    "torch.storage._load_from_bytes": called("torch.storage._load_from_bytes", "a"),
    "torch.jit._pickle": called("torch.jit._pickle.build_intlist", "a"),
    "torch.device": called("torch.device", "cpu"),
    "torch.UntypedStorage": called("torch.storage.UntypedStorage", "a"),
    "pickle.loads": called("pickle.loads", "a"),
    "importlib": called("importlib.import_module", "a"),
    "attrgetter": called("operator.attrgetter", "system"),
    "methodcaller": called("operator.methodcaller", "system"),
    "codecs": called("_codecs.encode", "a", "latin1"),
    "getattr": called("builtins.getattr", "a", "b"),
    "ctypes": called("ctypes.CDLL", "a"),
    "runpy": called("runpy.run_path", "a"),
    "set": called("builtins.set", "a"),
    "bytearray": called("builtins.bytearray", "a"),
    "defaultdict": called("collections.defaultdict", "a"),
    "globals of an admitted name": stack_called("torch._utils", "_rebuild_tensor.__globals__"),
    "class of an admitted name": stack_called("collections", "OrderedDict.__class__"),
    "module within an admitted one": stack_called("torch._utils", "os.system", SHELL),
    "admitted name split elsewhere": stack_called("torch", "_utils._rebuild_tensor_v2"),
    "admitted name, empty module": stack_called("", "OrderedDict"),
    "name that is no text": b"K\x01K\x02\x93.",
    "name without end": b"c" + b"a" * 5000 + b".",
    "name with control characters": called("os\x1b[2J.system", SHELL),
    "name that is no UTF-8": b"c\xff\xfe\n\xff\n.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92.",
    "call of a storage type": b"ctorch\nFloatStorage\nK\x01\x85R.",
    "call of a text": text("os.system") + text(SHELL) + b"\x85R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.",
    "call with too many arguments": b"ccollections\nOrderedDict\n]]]\x87R.",
    "OrderedDict of no pairs": b"ccollections\nOrderedDict\n]K\x01a\x85R.",
    "attributes of a list": b"]}" + ATTRIBUTES + b"sb.",
    "attributes of a name": b"ctorch._utils\n_rebuild_tensor_v2\n}" + ATTRIBUTES + b"sb.",
    "attributes as a pair": b"}N}" + ATTRIBUTES + b"s\x86b.",
    "persistent id as a text": b"Pcos\nsystem\n.",
    "persistent id of a module": b"(" + text("module") + b"ctorch\nfloat32\nNNtQ.",
    "persistent id of a text": text("storage") + b"Q.",
    "persistent id of a dtype": b"(" + text("storage") + b"ctorch\nfloat32\n" + text("0") + text("cpu") + b"K\x01tQ.",
    "DUP": b"]2a.",
    "POP": b"]N0.",
    "POP_MARK": b"](N1.",
    "EMPTY_SET": b"\x8f.",
    "FROZENSET": b"(N\x91.",
    "INT as text": b"I" + b"9" * 100_000 + b"\n.",
    "LONG as text": b"L" + b"9" * 100_000 + b"L\n.",
    "LONG4": b"\x8b\xff\xff\xff\x7f" + bytes(1000) + b".",
    "FLOAT as text": b"F1e5\n.",
    "STRING": b"S'a'\n.",
    "GET as text": b"]p0\ng0\n.",
    "BINUNICODE8": b"\x8d" + b"\xff" * 7 + b"\x7fa.",
    "BINBYTES8": b"\x8e" + b"\xff" * 7 + b"\x7fa.",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40) + b"a.",
    "BINBYTES": b"B\xff\xff\xff\x7fa.",
    "SHORT_BINBYTES": b"C\x01a.",
    "NEXT_BUFFER": b"\x97.",
    "BINUNICODE beyond the file": b"X\xff\xff\xff\xffa.",
    "BINSTRING beyond the file": b"T\xff\xff\xff\x7fa.",
    "text that is no UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "lone surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "FRAME beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.",
    "unknown protocol": b"\x80\x63}.",
    "unknown opcode": b"\xf0.",
    "LONG_BINPUT far away": b"]r\xff\xff\xff\x7f.",
    "LONG_BINGET of nothing": b"j\xff\xff\xff\x7f.",
    "BINGET of nothing": b"h\x00.",
    "BINPUT of nothing": b"q\x00.",
    "empty": b"",
    "no end": b"}",
    "empty stack": b".",
    "two objects": b"}}.",
    "open mark": b"(}.",
    "no mark": b"}t.",
    "tuple of too few": b"}\x87.",
    "append to a tuple": b")Na.",
    "item of a list": b"]NNs.",
    "half an item": b"}(Nu.",
    "key twice": b"}" + (text("a") + b"N") + b"s" + (text("a") + b"N") + b"s.",
    "key that is a tuple": b"}" + b")" + b"\x85" * 30_000 + b"Ns.",
    "key that is a huge number": b"}\x8a\x09" + bytes(8) + b"\x01Ns.",
    "nested lists": b"]" * 30_000 + b"a" * 29_999 + b".",
    "nested tuples": b")" + b"\x85" * 30_000 + b".",
    "nested marks": b"(" * 20_000 + b".",
    "a billion laughs": LAUGHS + b".",
    "a billion laughs for a tensor": b"}" + text("a") + LAUGHS + b"s.",
    "dict that holds itself": b"}q\x00" + text("model") + b"h\x00s.",
    "list that holds itself": b"]q\x00h\x00a.",
}


def storage(**options):
    return Storage(np.arange(6, dtype="float32"), **options)


def rebuilt(*arguments):
    return Call("torch._utils", "_rebuild_tensor", *arguments)


TENSORS = {  # values of a state_dict that no tensor may have
    "offset beyond the storage": tensor(storage(), (1,), offset=6),
    "negative offset": tensor(storage(), (1,), offset=-1),
    "size beyond the storage": tensor(storage(), (7,)),
    "size beyond it by the offset": tensor(storage(), (2, 3), offset=1),
    "stride beyond the storage": tensor(storage(), (2,), (6,)),
    "negative size": tensor(storage(), (-1,), (1,)),
    "two negative sizes": tensor(storage(), (-2, -3), (1, 1)),
    "negative stride": tensor(storage(), (2,), (-1,), offset=3),
    "stride 0": tensor(storage(), (10**12,), (0,)),
    "strides 0": tensor(storage(), (10**5, 10**5, 10**5), (0, 0, 0)),
    "overflowing size": tensor(storage(), (2**32, 2**32), (0, 0)),
    "overflowing stride": tensor(storage(), (2,), (2**62,)),
    "size of 600 digits": tensor(storage(), (2**2000,), (1,)),
    "overflowing size of nothing": tensor(storage(), (0, 2**40, 2**40), (0, 0, 0)),
    "bool for a size": tensor(storage(), (True,), (1,)),
    "float for a size": tensor(storage(), (1.0,), (1,)),
    "text for an offset": tensor(storage(), (1,), (1,), offset="0"),
    "list for a size": tensor(storage(), [1], (1,)),
    "fewer strides": tensor(storage(), (1, 1), (1,)),
    "65 dimensions": tensor(storage(), (1,) * 65),
    "storage that is a text": rebuilt("storage", 0, (1,), (1,)),
    "storage that is a tensor": rebuilt(tensor(storage(), (1,)), 0, (1,), (1,)),
    "too few arguments": rebuilt(storage(), 0, (1,)),
    "parameter of a text": Call("torch._utils", "_rebuild_parameter", "a", True, None),
    "storage longer than its bytes": tensor(storage(numel=7), (6,)),
    "storage shorter than its bytes": tensor(storage(numel=5), (5,)),
    "storage of 10^12 elements": tensor(storage(numel=10**12), (10**12,)),
    "storage of 2^70 elements": tensor(storage(numel=2**70), (1,)),
    "negative storage": tensor(storage(numel=-1), (0,)),
    "storage of True elements": tensor(storage(numel=True), (1,)),
    "storage of another type": tensor(storage(kind="DoubleStorage"), (6,)),
    "unknown storage": tensor(storage(kind="GiantStorage"), (6,)),
    "storage with two types": [tensor(storage(), (6,)), tensor(storage(kind="IntStorage"), (6,))],
    "storage key that is a number": tensor(storage(key=0), (6,)),
}


FORMS = {"zip": zip_file, "legacy": legacy_file}
both_forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Function of a file's bytes -> the message of the UserError; asserts that nothing was executed."""
    monkeypatch.chdir(tmp_path)

    def refused(data):
        message = assert_refused(tmp_path / "weights.pth", data)
        assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
        return message

    return refused


@pytest.mark.parametrize("name", EXECUTED)
def test_pythons_unpickler_runs_these_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):
        pickle.loads(EXECUTED[name])
    for _ in range(500):  # os.popen doesn't wait
        if (tmp_path / SENTINEL).exists():
            return
        time.sleep(0.01)
    raise AssertionError("not executed")


@pytest.mark.parametrize("name", EXECUTED)
@both_forms
def test_pickles_that_run_something_are_refused_by_name(refused, form, name):
    message = refused(FORMS[form]({}, pickled=EXECUTED[name]))
    assert "refers to" in message or "opcode" in message
    assert "executed" in message


@pytest.mark.parametrize("name", REFUSED)
@both_forms
def test_other_pickles_that_no_state_dict_has_are_refused(refused, form, name):
    refused(FORMS[form]({}, pickled=REFUSED[name]))


@pytest.mark.parametrize("name", TENSORS)
@both_forms
def test_tensors_that_lie_are_refused(refused, form, name):
    values = TENSORS[name] if isinstance(TENSORS[name], list) else [TENSORS[name]]
    refused(FORMS[form]({str(i): value for i, value in enumerate(values)}))


BOMBS = {  # what takes the most memory for a step
    "lists": b"]" * 20_000,
    "dicts of one item": b"}K\x00Ns" * 4_000,
    "lists of one item": b"]Na" * 7_000,
    "marks": b"(" * 20_000,
    "numbers": b"K\x01J\xff\xff\xff\x7f" * 10_000,
    "numbered objects": b"]\x94" * 10_000,
    "ordered dicts": b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R" * 7_000,
    "copies of a list": b"ccollections\nOrderedDict\nq\x00]("
    + b"".join(b"K%cN\x86" % i for i in range(200))
    + b"eq\x01"
    + b"h\x00h\x01\x85R" * 4_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_by_the_number_of_steps(refused, name, monkeypatch):
    monkeypatch.setattr(torch_unpickler, "MAX_STEPS", 10_000)
    tracemalloc.start()
    with pytest.raises(torch_unpickler.BadTorchFileError, match="steps"):
        torch_unpickler.Unpickler(io.BytesIO(BOMBS[name]), len(BOMBS[name])).load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * 10_000


def test_tensors_may_overlap_but_not_repeat_the_file_many_times(refused):
    views = {str(i): tensor(storage(), (1,) * i + (6,)) for i in range(3)}
    assert "repeat the same elements" in refused(zip_file(views | {"a": tensor(storage(), (2, 10_000), (0, 0))}))


PIECES = [  # what a pickle of a state_dict is made of, to be put together at random
    *(bytes([opcode]) for opcode in b"(tuseaRbQ}])N\x85\x86\x87\x88\x93\x94"),
    *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\x02\x00\x00\x00", b"K\x00", b"K\x03", b"\x8a\x00", b"\x8a\x01\xff"),
    *(text("storage"), text("0"), text("torch"), text("FloatStorage"), text("model"), b"G" + bytes(8)),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ",
    b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)R",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
@settings(derandomize=True, max_examples=1000, deadline=None)
def test_random_pickles_give_an_object_or_a_refusal(pieces):
    data = b"".join(pieces) + b"."
    with contextlib.suppress(torch_unpickler.BadTorchFileError):
        torch_unpickler.Unpickler(io.BytesIO(data), len(data)).load()
