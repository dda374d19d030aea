"""Write a text of any size: blocks of the bundled stories in a random order, a different one for each seed.

python scripts/data/make_big.py big.txt --gigabytes 5
"""

import argparse
import random
from pathlib import Path

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories.txt"
BLOCK = 64 << 10  # bytes, up to the next line end


def blocks(text: bytes) -> list[bytes]:
    """Cut a text into blocks that end with a line."""
    found = []
    start = 0
    while start < len(text):
        end = text.find(b"\n", min(start + BLOCK, len(text) - 1)) + 1 or len(text)
        found.append(text[start:end])
        start = end
    return found


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of 10^9 bytes; the last block goes a little beyond")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, parts = random.Random(given.seed), blocks(STORIES.read_bytes())
    left = int(given.gigabytes * 1e9)
    with given.out.open("wb") as out:
        while left > 0:
            left -= out.write(rng.choice(parts))


if __name__ == "__main__":
    main()
