"""Where the members of a PyTorch zip file lie: its central directory, read strictly.

torch.save stores members uncompressed, one behind the other, and closes the file without a comment. Whatever differs is
refused, and every size is compared with the file's before something is read. zipfile is more tolerant: it inflates, it
accepts data in front of the archive, and it makes an object of half a kilobyte for each of as many entries as a file
claims to have.
"""

import struct
import zlib
from typing import NamedTuple

from detseg.backbones.torch_unpickler import BadTorchFileError, quoted

MAX_MEMBERS = 100_000  # one for each storage and a handful more
CHUNK = 1 << 20
LOCAL, CENTRAL, END, END64, LOCATOR64 = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF  # stand for "see the 64-bit entry"
ENCRYPTED, SIZES_FOLLOW = 1, 8  # of a member's flags


class Region(NamedTuple):
    """A piece of the file; crc is the checksum that zip files keep of it, None where there is none."""

    offset: int
    size: int
    crc: int | None


class Member(NamedTuple):
    header: int  # where its local header starts
    size: int
    crc: int
    is_plain: bool  # neither compressed nor encrypted
    end: int  # where the next member or the directory starts


def read_members(file, size):
    """The members of the zip file `file` of `size` bytes: {name: Member}. Raises BadTorchFileError."""
    count, start, length = _find_directory(file, size)
    file.seek(start)
    directory = _read(file, length)
    entries, position = {}, 0
    for _ in range(count):
        name, entry, position = _read_entry(directory, position)
        if name in entries:
            raise BadTorchFileError(f"is damaged: its member {quoted(name)} is there twice")
        entries[name] = entry
    if position != length:
        raise BadTorchFileError("is damaged: its zip directory has more entries than it says")
    ordered = sorted(entries, key=entries.get)
    ends = [entries[name][0] for name in ordered[1:]] + [start]
    members = {}
    for name, end in zip(ordered, ends, strict=True):
        header, stored, *_ = entries[name]
        if header + 30 + len(name.encode()) + stored > end:
            raise BadTorchFileError(f"is damaged: its member {quoted(name)} of {stored} bytes overlaps what follows it")
        members[name] = Member(*entries[name], end)
    return members


def find_region(file, name, member):
    """The bytes of a member. Its local header is read, which must agree with the directory."""
    file.seek(member.header)
    fields = struct.unpack("<4s5H3I2H", _read(file, 30))
    signature, _, flags, method, _, _, _, _, stored, name_length, extra_length = fields
    offset = member.header + 30 + name_length + extra_length
    if signature != LOCAL or method or _read(file, name_length) != name.encode():
        raise BadTorchFileError(f"is damaged: its member {quoted(name)} is not where the zip directory says")
    if offset + member.size > member.end or not (flags & SIZES_FOLLOW or stored in (member.size, MAX32)):
        raise BadTorchFileError(f"is damaged: its member {quoted(name)} is not {member.size} bytes long, as it says")
    # torch writes 0 for all of them after torch.serialization.set_crc32_options(False).
    return Region(offset, member.size, member.crc or None)


def check_region(file, name, region):
    """Compares a member with its checksum, and leaves the file at the member's start."""
    file.seek(region.offset)
    crc, left = 0, region.size
    while left:
        chunk = _read(file, min(left, CHUNK))
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if region.crc is not None and crc != region.crc:
        raise BadTorchFileError(f"is altered or incomplete: its member {quoted(name)} doesn't have its checksum")
    file.seek(region.offset)


def _read(file, n):
    data = file.read(n)
    if len(data) != n:
        raise BadTorchFileError("ends within its zip directory. Is the file complete?")
    return data


def _find_directory(file, size):
    """Number of entries, offset and length in bytes of the central directory, which lies right before its end record.

    torch writes 64-bit end records in all files, repeated by the short one as far as they fit there.
    """
    incomplete = "starts as a zip file but doesn't end as torch.save ends one. Is the file complete?"
    if size < 22:
        raise BadTorchFileError(incomplete)
    file.seek(size - 22)
    signature, disk, first_disk, here, count, length, start, comment = struct.unpack("<4s4H2IH", _read(file, 22))
    if signature != END or comment or disk or first_disk or here != count:
        raise BadTorchFileError(incomplete)
    end = size - 22
    if end >= 20 + 56:
        file.seek(end - 20 - 56)
        record = struct.unpack("<4sQ2H2I4Q", _read(file, 56))
        signature, end64, _ = struct.unpack("<4s4xQI", _read(file, 20))
        if signature == LOCATOR64:
            end -= 20 + 56
            here, count64, length64, start64 = record[6:]
            short = [(count, count64, MAX16), (length, length64, MAX32), (start, start64, MAX32)]
            if record[0] != END64 or end64 != end or here != count64 or any(a not in (b, m) for a, b, m in short):
                raise BadTorchFileError("is damaged: the two ends of its zip directory contradict each other")
            count, length, start = count64, length64, start64
    if start + length != end:
        raise BadTorchFileError("is damaged: its zip directory is not where it says. Is the file complete?")
    if count > MAX_MEMBERS:
        raise BadTorchFileError(f"is a zip file of {count:,} members; a state_dict has at most {MAX_MEMBERS:,}")
    return count, start, length


def _read_entry(directory, position):
    """The name of the entry at `position`, a Member's fields but the last, and where the next entry starts."""
    if position + 46 > len(directory):
        raise BadTorchFileError("is damaged: its zip directory has fewer entries than it says")
    fields = struct.unpack_from("<4s6H3I5H2I", directory, position)
    signature, _, _, flags, method, _, _, crc, stored, full, name_length, extra_length, comment, *_, header = fields
    after_name = position + 46 + name_length
    after = after_name + extra_length + comment
    if signature != CENTRAL or after > len(directory):
        raise BadTorchFileError("is damaged: its zip directory doesn't fit together")
    try:
        name = directory[position + 46 : after_name].decode()
    except UnicodeDecodeError as error:
        raise BadTorchFileError("is damaged: a name in its zip directory is no text") from error
    if MAX32 in (full, stored, header):
        extra = directory[after_name : after_name + extra_length]
        full, stored, header = _read_zip64(extra, (full, stored, header))
    is_plain = method == 0 and stored == full and not flags & ENCRYPTED
    return name, (header, stored, crc, is_plain), after


def _read_zip64(extra, values):
    """`values` with those that are MAX32 taken, in their order, from the extra field 1."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            missing = sum(value == MAX32 for value in values)
            if length < 8 * missing or position + 4 + length > len(extra):
                break
            large = iter(struct.unpack_from(f"<{missing}Q", extra, position + 4))
            return tuple(next(large) if value == MAX32 else value for value in values)
        position += 4 + length
    raise BadTorchFileError("is damaged: a 64-bit size is missing in its zip directory")
