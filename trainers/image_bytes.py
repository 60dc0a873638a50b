"""The bytes of an image file below a folder, or the reason why there are none. Travels with an exported ensemble."""

import os
import stat
import unicodedata
from pathlib import Path

from trainers.decode import UnreadableImage

BYTES_PER_PIXEL = 8  # of 16-bit RGBA, uncompressed: no image of `max_pixels` needs more
HEADER_BYTES = 64 * 2**20


def read_image_bytes(root: Path, path: str, *, max_pixels: int) -> bytes:
    """The file's bytes; raises UnreadableImage with the reason."""
    largest = max_pixels * BYTES_PER_PIXEL + HEADER_BYTES
    try:
        status = (root / path).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise UnreadableImage(f"it is {kind}, not a file")
        if status.st_size > largest:
            raise UnreadableImage(
                f"the file has {status.st_size:,} bytes, more than an image of data.max_pixels can need"
            )
        return (root / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableImage(f"file not found{_why_not_found(root, path)}") from None
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read: {error.strerror}") from None


def _why_not_found(root: Path, path: str) -> str:
    if "\\" in path:
        return " (the path is written with backslashes; use /)"
    # macOS and zip files made there write an accented letter as the letter and its accent (NFD), tables as one (NFC).
    for form, same in (("NFC", unicodedata.normalize("NFC", path)), ("NFD", unicodedata.normalize("NFD", path))):
        if same != path and os.path.exists(root / same):  # noqa: PTH110 - Path's raises for a name that is too long
            return f"; there is one whose name looks the same, but in Unicode form {form}; write the path in that form"
    return ""
