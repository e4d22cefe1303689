"""What TIFF files hold that OpenCV passes over in silence: codecs that it can't unpack, pages after the first."""

import io

from detseg.errors import UserError

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of TIFF and BigTIFF in both byte orders
# Numbers of the tag Compression that the libtiff within OpenCV unpacks: none, CCITT (2, 3, 4 and 32771), LZW, JPEG,
# deflate (8 and 32946), NeXT, PackBits, ThunderScan and SGILog (both). Of others cv2.imdecode makes nothing or, at 8
# bits a channel, a black image, and tells stderr only.
_OPENCV_CODECS = frozenset({1, 2, 3, 4, 5, 7, 8, 32766, 32771, 32773, 32809, 32946, 34676, 34677})


def foreign_codec(data):
    """The number of the codec of a TIFF file's first image where OpenCV doesn't have it.

    data:      bytes of any file.
    Returns    int, or None: OpenCV has it, the file is no TIFF, or it is too broken to say.
    """
    number = _read(data, lambda file: int(file.pages[0].compression))
    return None if number in _OPENCV_CODECS else number


def page_count(data):
    """The number of pages of a TIFF file; None where the bytes are no TIFF or too broken to say."""
    return _read(data, lambda file: len(file.pages))


def _read(data, question):
    """The answer of a function of a TiffFile, or None."""
    if not data.startswith(_STARTS):
        return None
    import tifffile  # takes as long as all that detseg.data.images imports, and few images need it

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return question(file)
    except Exception:  # broken files raise whatever they like; the decoders have the last word
        return None


def codec_refusal(path, number, reason, advice=""):
    """UserError that names file and codec. number: of the tag Compression; reason: "which ..."; advice: "..., or "."""
    import tifffile

    try:
        name = tifffile.COMPRESSION(number).name
    except ValueError:
        name = "an unknown codec"
    return UserError(
        f"{path}: packed by {name} (TIFF compression {number}), {reason}: {advice}save it uncompressed or with deflate"
    )
