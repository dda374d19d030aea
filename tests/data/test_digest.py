import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lstmlm.data import digest
from lstmlm.data.digest import Digest


@pytest.mark.parametrize("small", [0, 1000, 10**9])
def test_same_as_hashlib(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a thread works it out from the first piece, from a later one or never: it is the SHA-256, also half-way."""
    monkeypatch.setattr(digest, "SMALL", small)
    pieces = [bytes([i % 256]) * (97 * i) for i in range(60)]
    made, expected = Digest(), hashlib.sha256()
    for i, piece in enumerate(pieces):
        made.update(piece)
        expected.update(piece)
        if i in (0, 30):
            assert made.hexdigest() == expected.hexdigest()

    assert made.hexdigest() == expected.hexdigest()


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the thread is never more than a few pieces, and the thread ends with its digest."""
    monkeypatch.setattr(digest, "SMALL", 0)
    threads = threading.active_count()
    made = Digest()
    longest = 0
    for _ in range(200):
        made.update(bytes(10_000))
        longest = max(longest, len(made._waiting))
    made.hexdigest()

    assert 1 <= longest <= digest.AHEAD
    assert isinstance(made._thread, ThreadPoolExecutor)
    made._thread.shutdown()
    assert threading.active_count() == threads
