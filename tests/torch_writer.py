"""Writes PyTorch's two file forms without torch, truthfully or with the lies that a test wants."""

import io
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from detseg.backbones.torch_file import read_state_dict
from detseg.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {  # numpy type in the file -> torch's storage class
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


ALLOWANCE = 4 << 20  # bytes of memory beside the file's size


def assert_refused(path, data):
    """Reading a file of these bytes ends in one UserError of one line, without more memory than the file has bytes.

    Returns   str, the error's message.
    """
    path.write_bytes(data)
    size = len(data)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read_state_dict(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size + ALLOWANCE
    message = str(error.value)
    assert message.startswith(f"model.weights: {path} ")
    assert message.isprintable()
    assert len(message) < 800
    return message


class Name:
    """Pickled as a reference to a module's member."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only there because picklers ask whether it can be called")


class Storage:
    """Pickled as a reference to a storage; its values lie elsewhere in the file."""

    def __init__(self, values, key="0", kind=None, numel=None, view=None):
        self.values, self.key, self.view = np.ravel(values), key, view
        self.kind = Name("torch", kind or KINDS[self.values.dtype.name])
        self.numel = self.values.size if numel is None else numel


class Call:
    """Pickled as the call of a name with arguments."""

    def __init__(self, module, name, *arguments):
        self.name, self.arguments = Name(module, name), arguments


def tensor(storage, size=None, stride=None, offset=0, metadata=()):
    """A tensor as torch pickles it: of a Storage, or of an array that becomes one."""
    if not isinstance(storage, Storage):
        size = storage.shape if size is None else size
        storage = Storage(storage, key=None)
    if stride is None:
        stride = tuple(int(np.prod(size[i + 1 :])) for i in range(len(size)))
    rest = (False, Call("collections", "OrderedDict"), *metadata)
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, *rest)


class _Pickler(pickle._Pickler):
    """Python's pickler in Python, as it is the one that can be taught to write names of modules that aren't there."""

    dispatch = pickle._Pickler.dispatch | {}

    def __init__(self, file, protocol, is_legacy):
        super().__init__(file, protocol)
        self.storages, self.is_legacy = {}, is_legacy

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        if thing.key is None:
            thing.key = str(len(self.storages))
        self.storages[thing.key] = thing
        rest = (thing.view,) if self.is_legacy else ()
        return ("storage", thing.kind, thing.key, "cpu", thing.numel, *rest)

    def save_name(self, name):
        if self.proto >= 4:
            self.save(name.module)
            self.save(name.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(f"c{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def save_call(self, call):
        self.save_reduce(call.name, call.arguments, obj=call)

    dispatch[Name] = save_name
    dispatch[Call] = save_call


def dump(saved, protocol=2, is_legacy=False):
    """The pickle's bytes and {key: Storage}."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol, is_legacy)
    pickler.dump(saved)
    return file.getvalue(), pickler.storages


def legacy_file(saved, protocol=2, keys=None, version=1001, pickled=None):
    """The bytes of a file in the form of torch < 1.6; pickled: bytes in place of saved's pickle."""
    data, storages = dump(saved, protocol, is_legacy=True)
    keys = sorted(storages) if keys is None else keys
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, version, facts)]
    parts += [data if pickled is None else pickled, pickle.dumps(keys, 2)]
    for key in keys:
        values = storages[key].values
        parts += [struct.pack("<q", values.size), values.tobytes()]
    return b"".join(parts)


def zip_file(saved, protocol=2, byteorder=b"little", pickled=None, extra=(), **lies):
    """The bytes of a file in the form of torch >= 1.6; extra: more (name, bytes) members, lies: of zip_members."""
    data, storages = dump(saved, protocol)
    members = [("archive/data.pkl", data if pickled is None else pickled), ("archive/version", b"3\n")]
    members += [] if byteorder is None else [("archive/byteorder", byteorder)]
    for key, storage in storages.items():
        values = storage.values.byteswap() if byteorder == b"big" else storage.values
        members.append((f"archive/data/{key}", values.tobytes()))
    return zip_members([*members, *extra], **lies)


def zip_members(members, change=None, zip64=False, change_end=None, change_end64=None):
    """An uncompressed zip file.

    change:     function of the list of entries, dicts that the directory is made of, to lie in them; "local_..." are
                fields of the local header.
    zip64:      sizes, offsets and the end's numbers all stand in 64-bit fields.
    change_end, change_end64:  functions of a dict (count, length, start) for the two ends of the directory.
    """
    entries = []
    for name, data in members:
        name = name if isinstance(name, bytes) else name.encode()
        entry = {"name": name, "data": data, "size": len(data), "full": len(data), "crc": zlib.crc32(data), "method": 0}
        entries.append({**entry, "flags": 0, "local_name": name, "local_size": len(data), "local_extra": 0})
    position = 0
    for entry in entries:
        entry["header"] = position
        position += 30 + len(entry["name"]) + len(entry["data"])
    if change is not None:
        change(entries)
    out = bytearray()
    for entry in entries:
        fields = (20, entry["flags"], entry["method"], 0, 0, entry["crc"], entry["local_size"], entry["local_size"])
        lengths = (len(entry["local_name"]), entry["local_extra"])
        out += struct.pack("<4s5H3I2H", b"PK\3\4", *fields, *lengths)
        out += entry["local_name"] + entry["data"]
    end = {"count": len(entries), "length": 0, "start": len(out)}
    out += b"".join(_central(entry, zip64) for entry in entries)
    end["length"] = len(out) - end["start"]
    if zip64:
        wide = dict(end)
        (change_end64 or (lambda end: None))(wide)
        numbers = (wide["count"], wide["count"], wide["length"], wide["start"])
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(out), 1)
        out += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers) + locator
        end = {"count": 0xFFFF, "length": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    (change_end or (lambda end: None))(end)
    return bytes(out) + struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, end["count"], end["count"], end["length"], end["start"], 0
    )


def _central(entry, zip64):
    sizes, extra = (entry["size"], entry["full"], entry["header"]), b""
    if zip64:
        extra = struct.pack("<2H2H3Q", 0x5855, 0, 1, 24, sizes[1], sizes[0], sizes[2])
        sizes = (0xFFFFFFFF,) * 3
    fields = (20, 20, entry["flags"], entry["method"], 0, 0, entry["crc"], sizes[0], sizes[1])
    lengths = (len(entry["name"]), len(extra), 0, 0, 0, 0)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields, *lengths, sizes[2]) + entry["name"] + extra
