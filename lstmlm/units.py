"""Numbers as people read them: bits, durations, counts, sizes."""

import math


def bits(nats: float) -> float:
    """Return nats in bits, the unit in which every score is shown."""
    return nats / math.log(2)


def duration(seconds: float) -> str:
    """Return seconds as `0:38` or `1:02:03`; `?` where they are not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def count(number: float) -> str:
    """Return a count with three digits that matter: `950`, `41.2k`, `3.05M`, `1.2G`."""
    return _scaled(number, 1000.0, ("", "k", "M", "G", "T"))


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, an s behind it but for exactly one: `1 minute`, `0.5 minutes`, `1,200 steps`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" + ("" if number == 1 else "s")


def size(number: float) -> str:
    """Return a number of bytes with three digits that matter: `512 B`, `3.1 MiB`."""
    return _scaled(number, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: float, base: float, names: tuple[str, ...]) -> str:
    if not math.isfinite(number):
        return "?"
    name = 0
    # 999.6 would be shown as 1000: what counts is the number after rounding.
    while abs(number) >= base - 0.5 and name + 1 < len(names):
        number, name = number / base, name + 1
    if name == 0:
        return f"{number:.3g}" + names[0] if abs(number) < 100 else f"{number:.0f}" + names[0]
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    text = f"{number:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if digits else text) + names[name]
