"""Memory for the bytes of large files: it begins at a page of the system and is used again.

While factors are recorded, a file of some 20 MB is made at every step. In fresh memory the system
has to provide each of its pages again, and a buffer that grows is copied several times. Memory that
begins at a page can also go to a disk without a copy (``capture.store.direct``).
"""

import io
import mmap
import threading
from typing import Any

KEPT_BYTES = 64 * 2**20
"""Most memory that a thread keeps for its next file."""
ROOM = 1.125
"""A file may be so many times as large as its table before its memory is enlarged by a copy."""


class Memory(threading.local):
    """The memory that each thread keeps."""

    kept: mmap.mmap | None = None

    def take(self, num_bytes: int) -> mmap.mmap:
        """Return at least so many bytes that nothing else refers to."""
        if self.kept is None or len(self.kept) < num_bytes or not is_free(self.kept):
            new = private_memory(num_bytes)
            if len(new) > KEPT_BYTES:
                return new
            self.kept = new
        return self.kept


MEMORY = Memory()


class ReusedSink(io.RawIOBase):
    """A file for a writer of a table, in memory that this thread uses again when it is free.

    The memory is free when the result of ``getvalue``, and every view of it, no longer exist.
    """

    def __init__(self, num_bytes: int) -> None:
        """``num_bytes``: size of the table in memory."""
        super().__init__()
        self.memory = MEMORY.take(int(num_bytes * ROOM) + mmap.PAGESIZE)
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        end = self.size + len(data)
        if end > len(self.memory):
            larger = private_memory(2 * end)
            larger[: self.size] = self.memory[: self.size]
            self.memory = larger
        self.memory[self.size : end] = data
        self.size = end
        return len(data)

    def getvalue(self) -> memoryview:
        """Return what was written; not a copy."""
        return memoryview(self.memory)[: self.size]


def private_memory(num_bytes: int) -> mmap.mmap:
    """Return zeros in whole pages."""
    num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_free(memory: mmap.mmap) -> bool:
    """Return whether no view of the memory exists; False if the system cannot tell."""
    try:
        memory.resize(len(memory))  # is refused while there are views
    except (BufferError, SystemError, OSError):
        return False
    return True
