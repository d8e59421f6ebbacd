"""Bytes that are fetched, as a file: reads fetch exactly what is read, and nothing ahead."""

import io
from collections.abc import Callable


class RangeFile(io.RawIOBase):
    """Seekable, for reading; ``read_range(start, end)`` fetches bytes [start, end)."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self.size = size
        self.read_range = read_range
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self.place = base + offset
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        end = self.size if size is None or size < 0 else min(self.size, self.place + size)
        if end <= self.place:
            return b""
        data = self.read_range(self.place, end)
        self.place = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
