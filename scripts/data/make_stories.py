"""Write `data/stories.txt`, little stories that can only be told from memory, and the held-out `data/blanks.tsv`.

    python scripts/data/make_stories.py                        # the two files of the checkout, byte for byte
    python scripts/data/make_stories.py --chars 200000 --out x # smaller, elsewhere

A story names a subject, says something about it over one or several sentences, lets another subject take over at a
full stop, and needs a name or a fact again 0 to 400 characters later, mostly soon and sometimes late. Three kinds:

    name_one  one subject; its name comes back
    name_two  two subjects that alternate; the name of the one who speaks, or of the other, comes back
    fact      two subjects, and up to four facts (job, town, thing, colour), each told of either one, come back

Every story is of any kind, each as likely, so that each part of the file asks for everything. In a story of two the other
one comes back about as often as the one who speaks: a network that is asked for the other one seldom, or late, keeps one
name and no second.

Every choice is drawn from weighted options of which none is the beginning of another. The text therefore tells which
choices were made (`Reader` reads them back), and minus log2 of their probabilities, summed, is what the generating
grammar itself pays for the text: no model can be expected to do better.
"""

import abc
import argparse
import itertools
import math
import random
import re
import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SEED, CHARS, BLANKS = 1997, 2_400_000, 40
KINDS = ("name_one", "name_two", "fact")
REACH, BUCKET = 400, 50  # characters: the farthest recall, and the width of a row in the table of distances
LIMIT = 800  # characters of a text with a blank
RECENT = 6  # choices during which a filler is not used again
# How likely a name comes back, as (percent of `eager`, thousandths besides): the one we are talking about, the other.
SHARES = {"name_one": ((100, 0),), "name_two": ((40, 0), (40, 130)), "fact": ((40, 0), (5, 120))}
LONGEST = 50  # characters of the longest sentence that is not an opening
# Past this many characters a name has to come back now, or one more sentence could put it out of reach.
DUE = REACH - 31 - LONGEST

NAMES = {"he": ("Bob", "Dan", "Jack", "Max", "Ned", "Tom"), "she": ("Ann", "Eve", "Kate", "Lucy", "Ruth", "Sue")}
PRONOUN = {name: pronoun for pronoun, names in NAMES.items() for name in names}
FACTS = {
    "job": ("baker", "doctor", "farmer", "hunter", "miller", "potter", "sailor", "weaver"),
    "town": ("Athens", "Cairo", "Dover", "Leeds", "Madrid", "Oslo", "Paris", "Vienna"),
    "thing": ("boat", "cart", "drum", "flute", "kite", "lamp", "mirror", "sledge"),
    "colour": ("blue", "green", "pink", "red", "silver", "violet", "white", "yellow"),
}
SLOTS = {
    "food": ("bread", "cheese", "honey", "plums", "rice", "soup"),
    "place": ("bridge", "church", "garden", "market", "old mill", "station"),
    "manner": ("", " alone", " at noon", " in the rain"),
    "number": ("two", "three", "four", "five", "six", "seven"),
    "kin": ("aunt", "brother", "cousin", "sister"),
    "topic": ("bees", "kings", "ships", "stars"),
    "animal": ("cat", "dog", "donkey", "goose"),
    "air": ("air", "night", "road", "sea", "sky", "wind"),
    "state": ("calm", "cold", "dark", "still", "warm"),
}
OPENING = {
    "name_one": ("{N} is a {job}.", "{N} was born in {town}.", "{N} lives in {town}."),
    "name_two": ("{N} has a friend called {M}.", "{N} has a cousin called {M}.", "{N} knows {M} well."),
    "fact": ("{N} lives next door to {M}.", "{N} went to school with {M}.", "{N} shares a house with {M}."),
}
DOES = (
    "laughed.",
    "smiled.",
    "ran home.",
    "sat down.",
    "drank tea.",
    "sang a song.",
    "ate {food}.",
    "told a tale of {topic}.",
    "wrote to {his} {kin}.",
    "slept until {number}.",
    "fed the {animal}.",
    "walked to the {place}{manner}.",
    "said so by telephone.",
    "served in the navy for {number} years.",
)
SCENE = (
    "It rained.",
    "Snow fell.",
    "Nobody spoke.",
    "Time went by.",
    "The {animal} slept.",
    "The {air} was {state}.",
    "The clock struck {number}.",
)
# A name is never said twice in one breath ("Bob, our Bob,"): a network that could copy at that distance learnt nothing
# farther, while without it the near and the far recalls were learnt together.
AGAIN = (  # the one we are talking about, besides the bare name
    "Brave {N} ",
    "And so {N} ",
    "Yes, {N} ",
    "For {his} deeds, brave {N} was honoured.",
    "Everyone was fond of {N}.",
    "The whole street cheered for {N}.",
    "People made a song about {N}.",
    "The mayor shook hands with {N}.",
)
OTHER = ("But {N} ", "Meanwhile {N} ", "That day {N} ", "Then {N} ")  # the one we were not talking about
TELL = {"job": "worked as a {}.", "town": "came from {}.", "thing": "owned a {}.", "colour": "loved the colour {}."}
RECALL = {
    "job": ("was proud to be a {}.", "was tired of being a {}.", "met another {}."),
    "town": ("went back to {}.", "wrote home to {}.", "missed the bells of {}."),
    "thing": ("mended the {}.", "would not sell the {}.", "cleaned the {}."),
    "colour": ("painted the door {}.", "bought a {} coat.", "dressed in {}."),
}


class Options:
    """Hold the ways in which a text may go on at one point: literals with whole-number weights."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self.texts = tuple(weights)
        self.weights = tuple(weights.values())
        self.places = {text: place for place, text in enumerate(self.texts)}
        self.lengths = sorted({len(text) for text in self.texts})
        self.sums = list(itertools.accumulate(self.weights))
        self.total = self.sums[-1]


Groups = Sequence[tuple[int, Options]]


class Teller(abc.ABC):
    """Build a text choice by choice and add up what the choices cost; a subclass says which one is made.

    Attributes:
        length: Characters so far.
        bits: Minus log2 of the probability of the text so far.
        costs: For each choice with more than one way to go: (position of its first character, bits).
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.costs: list[tuple[int, float]] = []

    @property
    def text(self) -> str:
        """Return the characters so far."""
        return "".join(self.pieces)

    @property
    def bits(self) -> float:
        """Return the bits that all choices so far cost together."""
        return math.fsum(bits for _, bits in self.costs)

    @abc.abstractmethod
    def select(self, groups: Groups) -> tuple[int, int]:
        """Choose a group and a place in it."""

    def pick(self, groups: Groups) -> tuple[int, str]:
        """Append one literal: a group by its weight, then an option of it by its own.

        Args:
            groups: (weight, options); a weight of 0 takes the group out.

        Returns:
            The number of the group, and the literal.
        """
        groups = [(weight, options) for weight, options in groups]
        group, place = self.select(groups)
        weight, options = groups[group]
        ways = sum(weight for weight, _ in groups) * options.total
        chosen = weight * options.weights[place]
        if chosen < ways:
            self.costs.append((self.length, math.log2(ways) - math.log2(chosen)))
        text = options.texts[place]
        self.pieces.append(text)
        self.length += len(text)
        return group, text


class Writer(Teller):
    """Choose at random. Only `Random.random` is used: its sequence is promised to stay the same in every Python."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed).random

    def select(self, groups: Groups) -> tuple[int, int]:
        """Draw a group and a place in it by their weights."""
        sums = list(itertools.accumulate(weight for weight, _ in groups))
        group = bisect_right(sums, int(self.random() * sums[-1]))
        options = groups[group][1]
        return group, bisect_right(options.sums, int(self.random() * options.total))


class Reader(Teller):
    """Make the choices that a given text shows, and refuse a text that shows none or more than one.

    Raises:
        ValueError: If at some point not exactly one option continues like the text.
    """

    def __init__(self, told: str) -> None:
        super().__init__()
        self.told = told

    def select(self, groups: Groups) -> tuple[int, int]:
        """Find the one option with which the text goes on here."""
        found = [
            (group, options.places[text])
            for group, (weight, options) in enumerate(groups)
            if weight
            for size in options.lengths
            if (text := self.told[self.length : self.length + size]) in options.places
        ]
        if len(found) != 1:
            raise ValueError(f"Character {self.length}: expected one way to go on, found {len(found)}.")
        return found[0]


def spell(templates: Sequence[str], name: str = "", **extra: Sequence[str]) -> Options:
    """Write out every sentence of every template; templates weigh the same, and so do the sentences of one."""
    his = "her" if PRONOUN.get(name) == "she" else "his"
    known = {"N": (name,), "his": (his,), **FACTS, **SLOTS, **extra}
    groups = []
    for template in templates:
        slots = re.findall(r"{(\w+)}", template)
        ways = itertools.product(*(known[slot] for slot in slots))
        groups.append([template.format(**dict(zip(slots, way, strict=True))) for way in ways])
    shares = math.lcm(*map(len, groups))
    return Options({text: shares // len(group) for group in groups for text in group})


def peers(name: str) -> tuple[str, ...]:
    """Return the names of the same pronoun: nothing but memory tells them apart."""
    return NAMES[PRONOUN[name]]


def openings(kind: str) -> Options:
    """Merge the first sentences of a kind, of every name."""
    weights: dict[str, int] = {}
    for name in PRONOUN:
        options = spell(OPENING[kind], name, M=[other for other in peers(name) if other != name])
        weights.update(zip(options.texts, options.weights, strict=True))
    return Options(weights)


STARTS = {kind: openings(kind) for kind in KINDS}
PAUSE, END = Options({" ": 1}), Options({"\n": 1})
SAYS = {pronoun: Options({pronoun.capitalize() + " ": 1}) for pronoun in NAMES}
# One entry for each template, so that those just used can be left out.
SCENES = [spell((template,)) for template in SCENE]
ACTS = {pronoun: [spell((template,), names[0]) for template in DOES] for pronoun, names in NAMES.items()}
BARE = {name: spell(("{N} ",), name) for name in PRONOUN}
CURRENT = {name: [spell((template,), name) for template in AGAIN] for name in PRONOUN}
TURNS = {name: [spell((template,), name) for template in OTHER] for name in PRONOUN}
TOLD = {fact: Options({TELL[fact].format(value): 1 for value in values}) for fact, values in FACTS.items()}
CALLS = {
    value: [Options({template.format(value): 1}) for template in RECALL[fact]]
    for fact, values in FACTS.items()
    for value in values
}
WORD = re.compile(rf"\b(?:{'|'.join((*PRONOUN, *CALLS))})\b")


class Recall(NamedTuple):
    """One thing that had to be remembered: the word, where it stands in the story, how far back it was last said."""

    word: str
    start: int
    distance: int


@dataclass
class Story:
    """What one telling keeps.

    Attributes:
        kind: One of `KINDS`.
        names: Whom it is about; the first is the one we are talking about.
        ends: Where each name, and each fact of a story of facts, was last said; characters from the story's start.
        owners: For each fact told, whose it is.
        recalls: What came back, in order.
    """

    kind: str
    names: list[str]
    ends: dict[str, int]
    owners: dict[str, str]
    recalls: list[Recall]
    used: deque[Options]

    def fresh(self, weight: int, templates: Sequence[Options]) -> list[tuple[int, Options]]:
        """Share a weight among the templates that the last sentences did not use."""
        unused = [options for options in templates if options not in self.used]
        unused = unused or list(templates)
        return [(weight // len(unused), options) for options in unused]

    def hear(self, here: int, text: str) -> bool:
        """Note the names and facts in a sentence that starts at `here`; say whether one of them came back."""
        before = len(self.recalls)
        for match in WORD.finditer(text):
            word, start = match.group(), here + match.start()
            if word in self.ends:
                self.recalls.append(Recall(word, start, start - self.ends[word]))
            elif word not in PRONOUN and self.kind != "fact":
                continue  # what a story of names says of a subject is never asked again
            elif word not in PRONOUN:
                self.owners[word] = self.names[0]
            self.ends[word] = here + match.end()
        return len(self.recalls) > before


def eager(distance: int) -> int:
    """Return how likely, in thousandths, something last said so many characters ago is said again now.

    It falls with the distance, but slowly: most recalls are near, and the tail is long.
    """
    return 20 + 700 * 50 // (50 + distance)


def tell(teller: Teller, kinds: Sequence[str] = KINDS) -> Story:
    """Tell one story, up to and with its line end.

    Args:
        teller: Makes the choices and holds the text.
        kinds: The kinds of story it may be, each as likely.

    Returns:
        What is known of the story.
    """
    start = teller.length
    group, text = teller.pick([(1, STARTS[kind]) for kind in kinds])
    names = [word for word in WORD.findall(text) if word in PRONOUN]
    story = Story(kinds[group], names[::-1], {}, {}, [], deque(maxlen=RECENT))
    again = story.hear(0, text)
    while teller.pick([(6, PAUSE), (int(again), END)])[0] == 0:
        here = teller.length - start
        again = story.hear(here, sentence(teller, story, here))
    return story


def sentence(teller: Teller, story: Story, here: int) -> str:
    """Tell one sentence, and change the speaker if it names the other one."""
    current, other = story.names[0], story.names[-1]
    since = [here - story.ends[name] for name in story.names]
    shares = zip(since, SHARES[story.kind], strict=True)
    weights = [eager(ago) * percent // 100 + besides for ago, (percent, besides) in shares]
    # One of them now, if it, or the other one after it, could wait no longer.
    due = max(since) > DUE or (current != other and min(since) > DUE - LONGEST - 1)
    rest = 0 if due else 1000 - sum(weights)
    if due:
        weights = [1000 * (ago == max(since)) for ago in since]
    scenes = 0 if story.kind == "fact" and not story.owners else rest * 2 // 5
    bare = weights[0] // 2
    groups = [(bare, BARE[current]), *story.fresh(weights[0] - bare, CURRENT[current])]
    groups += [(rest - scenes, SAYS[PRONOUN[current]]), *story.fresh(scenes, SCENES)]
    if current != other:
        groups += story.fresh(weights[1], TURNS[other])
    group, text = teller.pick(groups)
    story.used.append(groups[group][1])
    if other in text:
        story.names.reverse()
    return text if text.endswith(".") else text + deed(teller, story, here + len(text))


def deed(teller: Teller, story: Story, here: int) -> str:
    """Tell what the one we are talking about does; in a story of facts, often one of these, new or again."""
    name = story.names[0]
    groups: list[tuple[int, Options]] = []
    if story.kind == "fact":
        told = {fact for fact, values in FACTS.items() if not story.owners.keys().isdisjoint(values)}
        new = [fact for fact in FACTS if fact not in told]
        groups += [(240 // len(new), TOLD[fact]) for fact in new]
        for value, owner in story.owners.items():
            since = here - story.ends[value]
            if owner == name and since + 20 <= REACH:
                groups += story.fresh(eager(since) * 2, CALLS[value])
    if story.kind != "fact" or story.owners:
        groups += story.fresh(360, ACTS[PRONOUN[name]])
    group, text = teller.pick(groups)
    story.used.append(groups[group][1])
    return text


def tell_all(teller: Teller, chars: int) -> list[Story]:
    """Tell stories until there are `chars` characters; the last story is told to its end."""
    stories = []
    while teller.length < chars:
        stories.append(tell(teller))
    return stories


class Blank(NamedTuple):
    """One line of `blanks.tsv`."""

    text: str
    candidates: str
    answer: str
    kind: str
    distance: int


def make_blanks(seed: int, count: int, known: str) -> list[Blank]:
    """Tell further stories and cut one word out of each, `count` for each kind and each 50 characters of distance.

    Args:
        seed: Of the held-out stories; not the corpus's own.
        count: Blanks for each kind and bucket of distances.
        known: The corpus. No blank's text, filled in, occurs in it.

    Returns:
        Sorted by kind and distance.
    """
    rows: dict[tuple[str, int], list[Blank]] = {(kind, low): [] for kind in KINDS for low in range(0, REACH, BUCKET)}
    teller = Writer(seed)
    for turn in itertools.count():
        open_kinds = [kind for kind in KINDS if any(len(rows[key]) < count for key in rows if key[0] == kind)]
        if not open_kinds:
            return sorted(itertools.chain(*rows.values()), key=lambda blank: (KINDS.index(blank.kind), blank.distance))
        teller.pieces.clear()
        story = tell(teller, open_kinds[turn % len(open_kinds) :][:1])
        text = teller.text
        asked = [recall for recall in story.recalls if (story.kind == "fact") == (recall.word not in PRONOUN)]
        for recall in sorted(asked, key=lambda recall: -recall.distance):
            row = rows[story.kind, min(recall.distance, REACH - 1) // BUCKET * BUCKET]
            after = text[recall.start + len(recall.word) : text.index(".", recall.start) + 1]
            filled = text[: recall.start] + recall.word + after
            if len(row) < count and len(filled) <= LIMIT and filled not in known:
                asks, choices = text[: recall.start] + "____" + after, "|".join(rivals(recall.word))
                row.append(Blank(asks, choices, recall.word, story.kind, recall.distance))
                break
    raise AssertionError("counting does not end")


def rivals(word: str) -> tuple[str, ...]:
    """Return the words that could stand in this one's place, itself among them."""
    return peers(word) if word in PRONOUN else next(values for values in FACTS.values() if word in values)


def table(stories: Sequence[Story]) -> str:
    """Count the recalls by kind and distance."""
    counts: Counter[tuple[str, int]] = Counter()
    for story in stories:
        for recall in story.recalls:
            kind = story.kind if recall.word not in PRONOUN or story.kind != "fact" else "names in fact"
            counts[kind, min(recall.distance, REACH - 1) // BUCKET * BUCKET] += 1
    lows = range(0, REACH, BUCKET)
    lines = ["recalls by characters back " + "".join(f"{low:>7}+" for low in lows)]
    for kind in (*KINDS, "names in fact"):
        lines.append(f"{kind:<27}" + "".join(f"{counts[kind, low]:>8}" for low in lows))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Write stories.txt and blanks.tsv.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "data", help="folder")
    parser.add_argument("--seed", type=int, default=SEED, help="of the stories; the blanks use the one after it")
    parser.add_argument("--chars", type=int, default=CHARS, help="characters, up to the end of the last story")
    parser.add_argument("--blanks", type=int, default=BLANKS, help="blanks of each kind for each 50 characters")
    options = parser.parse_args(arguments)
    teller = Writer(options.seed)
    stories = tell_all(teller, options.chars)
    text = teller.text
    blanks = make_blanks(options.seed + 1, options.blanks, text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stories.txt").write_text(text, encoding="ascii", newline="\n")
    rows = ["\t".join(Blank._fields), *("\t".join(map(str, blank)) for blank in blanks)]
    (options.out / "blanks.tsv").write_text("\n".join(rows) + "\n", encoding="ascii", newline="\n")
    print(f"{options.out / 'stories.txt'}: {len(stories):,} stories, {len(text):,} characters of {len(set(text))}")
    print(f"{options.out / 'blanks.tsv'}: {len(blanks):,} blanks")
    print(table(stories))
    # A choice counts where it begins; the split is where `lstmlm train` makes it, at the last tenth of the characters.
    cut = len(text) - len(text) // 10
    tail = math.fsum(bits for position, bits in teller.costs if position >= cut) / max(1, len(text) - cut)
    print(f"the best possible: {teller.bits / len(text):.4f} bits/char; on the last 10 %: {tail:.4f} bits/char")
    return 0


if __name__ == "__main__":
    sys.exit(main())
