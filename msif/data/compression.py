"""Files that may be compressed, by the end of their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 16
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


class ZstdFile(io.RawIOBase):
    """The content of a Zstandard file, of any number of frames and any window.

    `zstandard`'s own reader ends without a word where a file was cut off, and after the first frame.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)  # archives are packed with --long=31
        self._file = open(path, "rb")  # noqa: SIM115 - close() closes it
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._file.read(CHUNK)
            if not packed:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            self._ready = memoryview(self._unpack(packed))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            self._frame = self._frame or self._decompressor.decompressobj()
            parts.append(self._frame.decompress(packed))
            packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> IO[bytes]:
    return io.BufferedReader(ZstdFile(path), CHUNK)


OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in OPENERS


def unpacked(path: Path) -> Path:
    """A file's name without the suffix that says it is compressed."""
    return path.with_suffix("") if is_compressed(path) else path


def open_bytes(path: Path) -> IO[bytes]:
    """What is in a file, unpacked where its name says that it is compressed."""
    opener: Callable[..., IO[bytes]] | None = OPENERS.get(path.suffix.lower())
    return opener(path) if opener else open(path, "rb")


def decompression_errors() -> tuple[type[Exception], ...]:
    """What reading a compressed file that is damaged, or none, raises."""
    from zstandard import ZstdError

    return (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError)


def not_text(path: Path, line: int | None = None) -> str:
    """The sentence for a file that does not decode as UTF-8."""
    with open(path, "rb") as file:
        head = file.read(8)
    suffix = next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), None)
    if suffix and not is_compressed(path):
        return f"'{path}' is compressed, which its name does not say; rename it to '{path.name}{suffix}'."
    where = f"'{path}'" if line is None else f"Line {line} of '{path}'"
    return f"{where} is not UTF-8 text; convert the file, for instance with iconv."
