"""How many threads write characters, or train: as many as were quickest when last tried.

`generate` asks a `Pace` before each call, the trainer before each step: of a run in minutes, or with a kernel
whose bits do not hang on the number.
"""

TRIAL = 8
"""Steps after which it is judged how long one takes."""

SECONDS = 0.5
"""After so long it is tried again whether another number of threads is quicker."""


class Pace:
    """How many threads to take: all of them or one, whichever was quicker when last tried.

    Threads meet for every layer of every character. Where another process takes a processor away, each of these meetings waits
    for the system to give it back, and one thread alone is many times as fast.

    Args:
        most: All of them.
        trial: Steps after which it is judged how long one takes.
        seconds: After which it is tried again whether another number of threads is quicker.
    """

    def __init__(self, most: int, trial: int = TRIAL, seconds: float = SECONDS) -> None:
        self._trial, self._wait = trial, seconds
        self._seconds: dict[int, list[float]] = {count: [] for count in (1, most)}
        self._tried = 0.0

    def plan(self, now: float) -> tuple[int, int]:
        """Return the number of threads to take, and for how many steps at most."""
        best = min(self._seconds, key=lambda count: min(self._seconds[count], default=0.0))
        if len(self._seconds) == 1:
            return best, 64
        for count, seconds in self._seconds.items():
            too_slow = seconds and seconds[-1] > 3 * min(self._seconds[best], default=seconds[-1])
            if len(seconds) < 3 and not too_slow:
                self._tried = now
                return count, self._trial
        if now - self._tried < self._wait:
            return best, 64
        self._tried = now
        return next(count for count in self._seconds if count != best), self._trial

    def note(self, count: int, seconds: float) -> None:
        """Remember how long a step took."""
        self._seconds[count] = [*self._seconds[count][-2:], seconds]
