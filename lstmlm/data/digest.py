"""SHA-256 of what streams by, worked out in a thread of its own: the passes over a large text take another core for it.

`decoding` feeds it the bytes of a text and `cache` the ids of a file.
"""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

SMALL = 4 << 20  # bytes up to which no thread is started
AHEAD = 16  # pieces that may wait: they bound the memory


class Digest:
    """A SHA-256 that is fed piece by piece; no piece may change after it was given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._thread: ThreadPoolExecutor | None = None  # it ends when this object does
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: bytes | bytearray) -> None:
        """Add a piece."""
        self._size += len(data)
        if self._thread is None:
            if self._size <= SMALL:
                self._hash.update(data)
                return
            self._thread = ThreadPoolExecutor(1)
        if len(self._waiting) >= AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._hash.update, data))

    def hexdigest(self) -> str:
        """Return the digest of all pieces so far, in hex."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()
