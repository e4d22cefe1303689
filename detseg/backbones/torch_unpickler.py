"""Reads the pickle of a PyTorch file: a machine for the 40 opcodes that a state_dict needs, which can run nothing.

Python's pickle module isn't used. A subclass with a strict find_class would still do what the file says with what it
admits (call it, set its attributes, fill its memo), and a check of the opcodes beforehand would be a second reader of
the same bytes, which only helps where the two agree. This machine has nothing to escape to: names are looked up in the
table below and never imported, a "call" checks numbers and returns a tuple, dicts and lists are plain ones, and every
length is compared with the file before a byte is read. Opcodes that torch.save never writes for a state_dict are
refused: INST, OBJ, NEWOBJ, EXT, DUP, POP, sets, bytes, long texts, numbers as text and the rest.
"""

import math
import struct
from typing import NamedTuple

MAX_BYTES = 16 << 20  # of pickles in a file; a tensor takes about 150
MAX_STEPS = 1_000_000  # opcodes; a tensor takes about 35, and one makes at most about 100 bytes of Python objects
MAX_NAME = 200  # characters in a module's or a class's name
MAX_NUMBER = 1 << 48  # sizes, strides and offsets: more elements than any file has, and products stay far from int64
MAX_DIMENSIONS = 64  # of a tensor in torch, of an array in numpy

# Storage class of the module torch -> what its elements are.
ELEMENTS = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
}

# What torch writes for tensors that have no plain array.
UNREADABLE = {
    "quantized": ("_rebuild_qtensor", *(f"{kind}Storage" for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2"))),
    "sparse": ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"),
    "nested": ("_rebuild_nested_tensor",),
    "complex": ("ComplexFloatStorage", "ComplexDoubleStorage"),
    "empty (device meta)": ("_rebuild_meta_tensor_no_storage",),
    "rare (float8, unsigned 16 to 64 bit)": ("_rebuild_tensor_v3",),
}
UNREADABLE = {name: kind for kind, names in UNREADABLE.items() for name in names}


class BadTorchFileError(Exception):
    """What is wrong with a file, as a sentence that goes on after its path."""


class Storage(NamedTuple):
    """Elements of one type in a row, which tensors view. `key` names their place in the file."""

    key: str
    elements: str  # float32, bfloat16, ...
    numel: int


class Tensor(NamedTuple):
    """A view of a storage that is known to lie within it; offset and stride in elements."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


class Name(NamedTuple):
    """A module's member that the file refers to: a marker, nothing that could be called."""

    module: str
    name: str

    def __str__(self):
        return quoted(f"{self.module}.{self.name}")


def quoted(text):
    """A text of the file for a message: without control characters, and not longer than a line."""
    shown = ascii(text[:100])[1:-1]
    return shown if len(text) <= 100 else f"{shown}..."


# ----- what the admitted names do with their arguments --------------------------------------------------------------


def _ordered_dict(pairs=()):
    """Python 2 wrote an OrderedDict with its items, as a list of lists; Python 3 fills it later."""
    result = {}
    for pair in pairs if type(pairs) is list else ():
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise BadTorchFileError("is damaged: its OrderedDict has an item that is no pair")
        _set_item(result, *pair)
    return result


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise BadTorchFileError("is damaged: a tensor without storage, size or stride")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise BadTorchFileError("is damaged: a tensor's size and stride have different or too many dimensions")
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in numbers) or (
        math.prod(n or 1 for n in size) >= MAX_NUMBER  # numpy refuses it, also where a size of 0 makes it nothing
    ):
        raise BadTorchFileError("is damaged: a tensor's size, stride or offset is negative, too large or no number")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise BadTorchFileError(
            f"is damaged: a tensor of size {quoted(str(size))} ends at element {last} of its storage "
            f"{quoted(storage.key)}, which has {storage.numel}"
        )
    if metadata:
        raise BadTorchFileError("has a tensor that is stored negated or conjugated: save tensor.resolve_neg().clone()")
    return Tensor(storage, offset, size, stride)


def _parameter(tensor, requires_grad, hooks):
    if type(tensor) is not Tensor:
        raise BadTorchFileError("is damaged: a Parameter without a tensor")
    return tensor


CALLS = {  # name: (function, numbers of arguments)
    Name("collections", "OrderedDict"): (_ordered_dict, (0, 1)),
    Name("torch._utils", "_rebuild_tensor"): (_tensor, (4,)),
    Name("torch._utils", "_rebuild_tensor_v2"): (_tensor, (6, 7)),
    Name("torch._utils", "_rebuild_parameter"): (_parameter, (3,)),
    Name("torch", "Size"): (lambda numbers: numbers, (1,)),
}
MARKERS = {Name("torch", name) for name in (*ELEMENTS, *ELEMENTS.values())}


def _find(module, name):
    found = Name(module, name)
    if found in CALLS or found in MARKERS:
        return found
    if module in ("torch", "torch._utils") and name in UNREADABLE:
        raise BadTorchFileError(f"holds {UNREADABLE[name]} tensors: {found}; expected plain ones of floats or integers")
    how = "torch.save(model.state_dict(), path)"
    if module.startswith("torch.nn."):
        raise BadTorchFileError(
            f"is a whole pickled model, not a state_dict: it refers to {found}; nothing of it was executed. If you "
            f"trust the file, load it in PyTorch and save the weights alone: {how}"
        )
    raise BadTorchFileError(
        f"refers to {found}, which a state_dict has no need of; nothing of it was executed. Is it a whole model, or a "
        f"checkpoint with other objects beside the weights? If you trust the file, load it in PyTorch and save the "
        f"weights alone: {how}"
    )


def _set_item(target, key, value):
    # Other keys could cost: a tuple's hash recurses, and huge integers can be chosen to have the same one.
    if type(key) is not str and not (type(key) is int and abs(key) < 1 << 60):
        raise BadTorchFileError("has a dict whose keys are neither texts nor numbers")
    if key in target:
        raise BadTorchFileError(f"is damaged: the key {quoted(str(key))} is there twice")
    target[key] = value


# ----- the machine ---------------------------------------------------------------------------------------------------

CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
CONTAINERS = {b"]": list, b"}": dict}
NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
TEXTS = {b"X": "<I", b"\x8c": "<B", b"T": "<I", b"U": "<B"}  # the format of the length; T and U are Python 2's str
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": "<B", b"r": "<I"}
GETS = {b"h": "<B", b"j": "<I"}
SKIPPED = {b"\x80": 1, b"\x95": 8}  # the protocol and a frame's length say nothing that is needed


class Unpickler:
    """Reads pickles that follow each other in `file`, from its position on and not beyond `size` bytes.

    storages:  {key: Storage} that the pickles referred to.
    """

    def __init__(self, file, size):
        self.file, self.left = file, min(size, MAX_BYTES)
        self.steps = 0
        self.storages = {}

    def load(self):
        """The next pickle's object: None, bool, int, float, str, list, tuple, dict, Storage, Tensor, Name.

        Raises BadTorchFileError for anything that a state_dict has no need of, and for damaged pickles.
        """
        self.stack, self.outer, self.memo = [], [], []  # `outer`: the stacks below each mark
        try:
            while (opcode := self._read(1)) != b".":
                self._count(1)
                self._step(opcode)
        except (IndexError, UnicodeDecodeError) as error:
            raise BadTorchFileError("is damaged: its pickle doesn't fit together") from error
        if len(self.stack) != 1 or self.outer:
            raise BadTorchFileError("is damaged: its pickle doesn't end with one object")
        return self.stack.pop()

    def _count(self, steps):
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise BadTorchFileError(f"has a pickle of more than {MAX_STEPS:,} steps, far beyond a state_dict")

    def _read(self, n):
        if n > self.left:
            raise BadTorchFileError(
                f"ends within its pickle, or the pickle is larger than {MAX_BYTES >> 20} MB. Is the file complete?"
            )
        self.left -= n
        data = self.file.read(n)
        if len(data) != n:
            raise BadTorchFileError("ends within its pickle. Is the file complete?")
        return data

    def _number(self, format):
        return struct.unpack(format, self._read(struct.calcsize(format)))[0]

    def _line(self):
        line = self.file.readline(min(MAX_NAME, self.left))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise BadTorchFileError(f"is damaged: a name in its pickle is longer than {MAX_NAME} characters or cut off")
        return line[:-1].decode()

    def _step(self, opcode):
        stack = self.stack
        if opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in CONTAINERS:
            stack.append(CONTAINERS[opcode]())
        elif opcode in NUMBERS:
            stack.append(self._number(NUMBERS[opcode]))
        elif opcode in TEXTS:
            stack.append(self._read(self._number(TEXTS[opcode])).decode())
        elif opcode in TUPLES:
            n = TUPLES[opcode]
            if len(stack) < n:
                raise IndexError
            stack[-n:] = [tuple(stack[-n:])]
        elif opcode in GETS:
            stack.append(self.memo[self._number(GETS[opcode])])
        elif opcode in PUTS:
            self._put(self._number(PUTS[opcode]))
        elif opcode in SKIPPED:
            self._skip(SKIPPED[opcode])
        elif opcode in ACTIONS:
            ACTIONS[opcode](self)
        else:
            raise BadTorchFileError(
                f"has the opcode {opcode!r} in its pickle, which a state_dict has no need of; nothing was executed"
            )

    def _put(self, index):
        if index > len(self.memo):  # picklers count up; this one would want memory for what was never put
            raise BadTorchFileError(f"is damaged: its pickle numbers an object {index} that is the {len(self.memo)}th")
        self.memo[index : index + 1] = [self.stack[-1]]

    def _skip(self, n):
        value = int.from_bytes(self._read(n), "little")
        if (n == 1 and value > 5) or (n == 8 and value > self.left):
            raise BadTorchFileError("is damaged: its pickle has an unknown protocol or a frame beyond the file")

    def _long(self):
        self.stack.append(int.from_bytes(self._read(self._number("<B")), "little", signed=True))

    def _mark(self):
        self.outer.append(self.stack)
        self.stack = []

    def _marked(self):
        """The objects above the last mark, which leave the stack."""
        marked, self.stack = self.stack, self.outer.pop()
        return marked

    def _tuple(self):
        items = tuple(self._marked())
        self.stack.append(items)

    def _append(self, items):
        if type(self.stack[-1]) is not list:
            raise BadTorchFileError("is damaged: its pickle appends to something that is no list")
        self.stack[-1].extend(items)

    def _set_items(self, items):
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BadTorchFileError("is damaged: its pickle sets items of something that is no dict, or half an item")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(target, key, value)

    def _stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise BadTorchFileError("is damaged: its pickle refers to a name that is no text")
        self.stack.append(_find(module, name))

    def _reduce(self):
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or name not in CALLS or type(arguments) is not tuple:
            shown = name if type(name) is Name else f"a {type(name).__name__}"
            raise BadTorchFileError(f"calls {shown}, which a state_dict has no need of; nothing was executed")
        function, counts = CALLS[name]
        if len(arguments) not in counts:
            raise BadTorchFileError(f"is damaged: {name} with {len(arguments)} arguments")
        # A list that the pickle refers to again and again would be copied each time: its items count as steps.
        self._count(sum(len(argument) for argument in arguments if type(argument) in (list, tuple)))
        self.stack.append(function(*arguments))

    def _build(self):
        """A state_dict's `_metadata`, the layers' versions, comes as the attributes of its OrderedDict: left out."""
        state = self.stack.pop()
        if type(state) is not dict or type(self.stack[-1]) is not dict:
            raise BadTorchFileError("sets attributes, which a state_dict has no need of; nothing was executed")

    def _storage(self):
        match self.stack.pop():
            # The legacy form has a sixth entry: what the storage is a part of, which torch has not written since 0.4.
            case ("storage", Name("torch", name), str(key), str(), int(numel), *view) if name in ELEMENTS:
                storage = Storage(key, ELEMENTS[name], numel)
            case _:
                raise BadTorchFileError("is damaged: its pickle refers to something that is no storage")
        if view not in ([], [None]):
            raise BadTorchFileError("has storages that are parts of others, of torch before 0.4: save it anew there")
        if type(numel) is not int or not 0 <= numel < MAX_NUMBER:
            raise BadTorchFileError(f"is damaged: its storage {quoted(key)} has {quoted(str(numel))} elements")
        if self.storages.setdefault(key, storage) != storage:
            raise BadTorchFileError(f"is damaged: its storage {quoted(key)} is said to have two types or lengths")
        self.stack.append(storage)


ACTIONS = {
    b"\x8a": Unpickler._long,
    b"(": Unpickler._mark,
    b"t": Unpickler._tuple,
    b"a": lambda machine: machine._append([machine.stack.pop()]),
    b"e": lambda machine: machine._append(machine._marked()),
    b"s": lambda machine: machine._set_items([machine.stack.pop(-2), machine.stack.pop()]),
    b"u": lambda machine: machine._set_items(machine._marked()),
    b"\x94": lambda machine: machine._put(len(machine.memo)),
    b"c": lambda machine: machine.stack.append(_find(machine._line(), machine._line())),
    b"\x93": Unpickler._stack_global,
    b"R": Unpickler._reduce,
    b"b": Unpickler._build,
    b"Q": Unpickler._storage,
}
