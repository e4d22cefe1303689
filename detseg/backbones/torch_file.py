"""Reads a PyTorch state_dict file without torch, and without running anything that the file may contain.

Formats:  torch/serialization.py. The zip form (since torch 1.6) is ARCHIVE/data.pkl, a pickle that refers to storages,
          with ARCHIVE/data/KEY, a storage's bytes each, and ARCHIVE/byteorder. The legacy form is one stream: pickles
          of a magic number, 1001, system facts, the object and its storages' keys, then each storage's number of
          elements (int64) and bytes, little-endian on every machine.
"""

import hashlib
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from detseg.backbones.torch_unpickler import BadTorchFileError, Tensor, Unpickler, quoted
from detseg.backbones.torch_zip import Region, check_region, find_region, read_members
from detseg.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
MAX_OVERLAP = 4  # times the file's size that all tensors may have: some models keep several views of one storage
HASHED_NAME = re.compile(r"-([0-9a-f]{8,})\.(pth|pt)$")
CHUNK = 1 << 20


def read_state_dict(path, field="model.weights"):
    """The tensors of a state_dict that torch.save wrote, of any torch version since 0.1.11.

    path:     of a file that holds a state_dict, or a dict with one under "state_dict", "model", "model_state_dict" or
              "model_state" (also one in another), beside which epochs, optimizers and the like may stand. A "module."
              in front of all keys (DataParallel) is taken off.
    field:    what error messages start with.
    Returns   {key: array} in the file's order. Arrays are read-only, views of one another where the tensors are.
              float16 and bfloat16 come as float32; float32, float64, bool, uint8 and int8 to int64 as they are.

    No more is read or allocated than the file has bytes (twice as many for 16-bit floats), beside at most about 130 MB
    for the objects of a hostile pickle or zip directory. Checksums of the zip form are checked.
    Raises UserError for every other kind of file, with what is wrong: an incomplete or altered file, a whole pickled
    model, names that a state_dict has no need of (nothing is executed), sizes that lie, quantized, sparse and complex
    tensors, torch's tar form of 2016, a TorchScript file, a web page in place of the file.
    """
    try:
        if not Path(path).is_file():
            raise BadTorchFileError("is not a file; expected one that torch.save(model.state_dict(), path) wrote")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            saved, regions, is_big_endian = _read_saved(file, size)
            tensors = _find_state_dict(saved)
            _check_total(tensors.values(), size)
            return _read_arrays(file, tensors, regions, is_big_endian)
    except BadTorchFileError as error:
        raise UserError(f"{field}: {path} {error}") from error
    except (OSError, MemoryError) as error:
        raise UserError(f"{field}: {path} cannot be read: {error or 'not enough memory'}") from error


def check_hash(path, field="model.weights"):
    """Compares a file with the hash in its name: torchvision's end in the start of their sha256, -258fb6c6.pth.

    Returns   bool, whether the name has a hash, which the file then fits. Decimal digits that don't fit are taken for a
              date or a number of steps (-20240131.pth), and give False.
    Raises UserError where they differ, and for an unreadable file.
    """
    found = HASHED_NAME.search(Path(path).name)
    if found is None:
        return False
    expected, sha256 = found[1], hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                sha256.update(chunk)
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read: {error}") from error
    if sha256.hexdigest().startswith(expected):
        return True
    if expected.isdecimal():
        return False
    raise UserError(
        f"{field}: {path} is altered or incomplete: its sha256 starts with {sha256.hexdigest()[: len(expected)]}, its "
        f"name says {expected}; download it again. If it is a file of your own, give it a name that doesn't end so"
    )


# ----- the two forms: each gives the saved object, where its storages lie, and whether they are big-endian -----------


def _read_saved(file, size):
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        return _read_zip(file, size)
    if head.startswith(b"\x80"):  # a pickle of protocol 2 or later
        return _read_legacy(file, size)
    raise BadTorchFileError(_name_form(head))


def _name_form(head):
    """What a file that torch.save of the last years didn't write is."""
    if not head:
        return "is empty. Is the download complete?"
    if head[257:262] == b"ustar":
        return "has the tar form of torch before 0.1.11 (2016); load it with an old torch and save it anew"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    if head.lstrip().startswith(b"<"):
        return "is a web page (HTML or XML), not a PyTorch file: the download gave a page in its place"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, not a PyTorch file; Keras' weights end in .h5"
    return "is no PyTorch file: neither the zip form nor the legacy form of torch.save. Is it complete?"


def _read_zip(file, size):
    members = read_members(file, size)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadTorchFileError("is a zip file without one data.pkl in a folder, so torch.save didn't write it")
    archive = pickles[0].removesuffix("data.pkl")
    if f"{archive}constants.pkl" in members:
        raise BadTorchFileError(
            "is a TorchScript file (torch.jit.save), not a state_dict; load it with torch.jit.load and save the "
            "weights alone: torch.save(model.state_dict(), path)"
        )
    for name, member in members.items():
        if not member.is_plain:
            raise BadTorchFileError(
                f"has a compressed or encrypted member, {quoted(name)}; torch.save writes none. Was it packed anew?"
            )
    region = find_region(file, pickles[0], members[pickles[0]])
    check_region(file, pickles[0], region)
    reader = Unpickler(file, region.size)
    saved = reader.load()
    if reader.left:
        raise BadTorchFileError(f"is damaged: {reader.left} bytes follow its pickle")
    regions = {}
    for key, storage in reader.storages.items():
        name = f"{archive}data/{key}"
        if name not in members:
            raise BadTorchFileError(f"is damaged: its storage {quoted(name)} is missing")
        regions[key] = find_region(file, name, members[name])
        _check_length(storage, regions[key].size)
    return saved, regions, _is_big_endian(file, f"{archive}byteorder", members)


def _is_big_endian(file, name, members):
    if name not in members:  # torch before 2.1, which wrote no such entry
        return False
    region = find_region(file, name, members[name])
    file.seek(region.offset)
    order = file.read(min(region.size, 10))
    if order not in (b"little", b"big"):
        raise BadTorchFileError(f"is damaged: its byteorder is {order!r}; expected little or big")
    return order == b"big"


def _read_legacy(file, size):
    reader = Unpickler(file, size)
    if reader.load() != MAGIC:
        raise BadTorchFileError("is a pickle, but not one that torch.save wrote")
    if (version := reader.load()) != LEGACY_VERSION:
        shown = version if type(version) is int else type(version).__name__  # to print what hostile lists hold can hang
        raise BadTorchFileError(f"has the version {shown} of torch's format; only {LEGACY_VERSION} is known")
    reader.load()  # facts of the system that wrote it: no need, as storages are little-endian everywhere
    saved = reader.load()
    keys = reader.load()
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(reader.storages) != sorted(keys):
        raise BadTorchFileError("is damaged: its list of storages doesn't fit its tensors")
    regions, position = {}, file.tell()
    for key in keys:
        file.seek(position)
        count = file.read(8)
        storage = reader.storages[key]
        length = storage.numel * _file_type(storage, "<").itemsize
        if len(count) == 8 and struct.unpack("<q", count)[0] != storage.numel:
            raise BadTorchFileError(f"is damaged: its storage {quoted(key)} has another length than its tensors say")
        if len(count) < 8 or position + 8 + length > size:
            raise BadTorchFileError(f"ends within its storage {quoted(key)}. Is the file complete?")
        regions[key] = Region(position + 8, length, None)
        position += 8 + length
    if position != size:
        raise BadTorchFileError(f"is damaged: {size - position} bytes follow its last storage")
    return saved, regions, False


def _check_length(storage, size):
    expected = storage.numel * _file_type(storage, "<").itemsize
    if size != expected:
        raise BadTorchFileError(
            f"is damaged: its storage {quoted(storage.key)} has {size} bytes; {storage.numel} elements of "
            f"{storage.elements} take {expected}"
        )


# ----- from what was saved to arrays ---------------------------------------------------------------------------------


def _find_state_dict(saved):
    """{key: Tensor} of what was saved: itself, or under one of WRAPPERS; "module." taken off."""
    for _ in range(3):
        if type(saved) is not dict:
            raise BadTorchFileError(f"holds an object of type {type(saved).__name__}; expected a state_dict")
        inner = [key for key in WRAPPERS if type(saved.get(key)) is dict]
        if len(inner) > 1:
            raise BadTorchFileError(f"has several dicts that may be the state_dict: {', '.join(inner)}; save one alone")
        if not inner:
            break
        saved = saved[inner[0]]
    for key, value in saved.items():
        if type(key) is not str or type(value) is not Tensor:
            raise BadTorchFileError(
                f"has {quoted(str(key))} of type {type(value).__name__} where tensors should be; expected a "
                f"state_dict, or a dict with one under {', '.join(WRAPPERS)}: torch.save(model.state_dict(), path)"
            )
    if not saved:
        raise BadTorchFileError("has an empty state_dict")
    if all(key.startswith("module.") for key in saved):
        return {key.removeprefix("module."): tensor for key, tensor in saved.items()}
    return saved


def _check_total(tensors, file_size):
    """Views cost nothing until somebody copies them: a stride of 0 can say 10^12 elements in a file of one."""
    total = sum(math.prod(tensor.size) * _result_type(tensor.storage).itemsize for tensor in set(tensors))
    if total > MAX_OVERLAP * file_size:
        raise BadTorchFileError(
            f"has {file_size:,} bytes, but its tensors have {total:,}: they repeat the same elements. Save copies: "
            "torch.save({key: tensor.clone() for key, tensor in model.state_dict().items()}, path)"
        )


def _file_type(storage, order):
    """The numpy type in the file; bfloat16, which numpy lacks, comes as the upper half of a float32."""
    name = {"bfloat16": "uint16", "bool": "uint8"}.get(storage.elements, storage.elements)
    return np.dtype(name).newbyteorder(order)


def _result_type(storage):
    return np.dtype("float32" if storage.elements in ("bfloat16", "float16") else storage.elements)


def _read_arrays(file, tensors, regions, is_big_endian):
    storages, views = {}, {}
    for tensor in tensors.values():
        key = tensor.storage.key
        if key not in storages:
            storages[key] = _read_storage(file, tensor.storage, regions[key], is_big_endian)
        if tensor not in views:
            views[tensor] = _view(storages[key], tensor)
    return {key: views[tensor] for key, tensor in tensors.items()}


def _read_storage(file, storage, region, is_big_endian):
    """The elements as a read-only (numel,) array."""
    data = np.empty(region.size, np.uint8)
    file.seek(region.offset)
    if file.readinto(data) != region.size:
        raise BadTorchFileError(f"ends within its storage {quoted(storage.key)}. Is the file complete?")
    if region.crc is not None and zlib.crc32(data) != region.crc:
        raise BadTorchFileError(
            f"is altered or incomplete: its storage {quoted(storage.key)} doesn't have its checksum; download it again"
        )
    values = data.view(_file_type(storage, ">" if is_big_endian else "<"))
    if storage.elements == "bfloat16":
        bits = values.astype(np.uint32)
        bits <<= 16
        values = bits.view(np.float32)
    elif storage.elements == "bool":
        values = values != 0
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN among 16-bit floats is none of the user's business
            values = values.astype(_result_type(storage), copy=False)
    values.flags.writeable = False
    return values


def _view(values, tensor):
    """The tensor as an array on its storage's elements; _tensor of the unpickler has checked that it lies within."""
    if 0 in tensor.size:
        return np.empty(tensor.size, values.dtype)
    # A dimension of one element may have any stride, also one that overflows.
    steps = [0 if n == 1 else step * values.itemsize for n, step in zip(tensor.size, tensor.stride, strict=True)]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, steps, writeable=False)
