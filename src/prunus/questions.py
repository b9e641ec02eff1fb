"""Questions of problem sets: which ones calibration must not contain, and which ones belong together."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Find questions of the built-in evaluation sets, which calibration must not contain, by their hashes.
# scripts/held_out.py writes the hashes to data/held_out.txt, so the check needs neither a network nor the questions.

DIGITS = 16
FILE = Path(__file__).parent / "data" / "held_out.txt"


def question_digest(question: str) -> str:
    """Stored: a hash of the question (16 hex digits) that ignores case, whitespace and Unicode normal forms."""
    plain = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]


def question_key(question: str, choices: Sequence[str] = ()) -> str:
    """Stored: the question_digest of a question with its choices in any order, the same in runs of any tool."""
    return question_digest("\n".join([question, *sorted(choices)]))


@cache
def held_out() -> dict[str, str]:
    """{digest: name of its evaluation set, the first that has it}. In the file, `# NAME` precedes a set's digests."""
    by_digest, name = {}, ""
    for line in FILE.read_text().splitlines():
        if line.startswith("# "):
            name = line[2:]
        else:
            by_digest.setdefault(line, name)
    return by_digest


def evaluation_set(digest: str) -> str | None:
    """The name of the evaluation set that has a question with this digest; None if no built-in set has one."""
    return held_out().get(digest)


def is_gated(name: str) -> bool:
    """Whether the texts of the evaluation set, or of another tool's task, with this name must not be published."""
    return "gpqa" in name.casefold()


def held_out_in(text: str) -> str | None:
    """The name of an evaluation set, one of whose questions is the whole text, a paragraph or a line of it; else None.

    A question with other words in the same line is not found, since hashes only identify whole texts.
    """
    parts = (text, *text.split("\n\n"), *text.splitlines())
    return next((name for part in parts if (name := evaluation_set(question_digest(part)))), None)


# Which problems of a set `limit` takes: the first in a seeded order, since sets may be sorted by subject or difficulty.

LIMIT_SEED = 0


def sampling_key(problem_id: str) -> bytes:
    """Sort key of a problem for the seeded order of a set: the first N are a sample of all and of any larger sample."""
    return hashlib.sha256(f"{LIMIT_SEED}|{problem_id}".encode()).digest()


# The order in which bets take problems (`prunus.statistics.betting`). It follows from the questions alone: if another
# name of the file, id or group, which changes nothing that is compared, gave another order, the best could be chosen.


def order_of_bets(problems: Iterable[str], questions: Mapping[str, str]) -> list[str]:
    """The problem ids in the order of hashes of their questions.

    questions: {problem id: question_key}; where it has no key, the id is hashed. A group of problems has the place of
    its first problem.
    """

    def place(problem: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"bets|{questions.get(problem, problem)}".encode()).digest(), problem

    return sorted(problems, key=place)


# Which problems of a set belong together, so that they count as one observation (docs/verdicts.md).
# Problems are joined where
# * a key of the set gives them the same group,
# * their questions are equal, apart from case, whitespace, punctuation and LaTeX spacing, or
# * their questions are nearly equal: the same numbers, single letters and symbols in the same order, and four fifths or
#   more of all pairs of adjacent words in both (Jaccard), which allows one word in twenty to be another. Two problems
#   that both have a key are not joined in this way.
# Pairs of words that occur ten times and in a tenth of the problems belong to a template, such as an instruction before
# every question, and do not count. Numbers do, so instances of one template with other numbers are apart unless a key
# joins them. Nearly equal questions are looked for among those that agree in four minima of hashed pairs of words
# (MinHash, twelve tables), which misses one in five hundred of the least similar such pairs, and fewer of others. All
# hashes are fixed, so the result follows from the texts alone.

ALIKE = 0.8  # smallest share of common pairs of adjacent words
COMMON, OFTEN = 0.1, 10  # pairs of a template occur as often as this share of the problems, and this often at least
TABLES, MINIMA = 12, 4
_LATEX = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|q?quad)(?![a-z])|\\[,;:! ]")
_TOKEN = re.compile(r"\\?[^\W\d_]+|\d+(?:,\d{3})*(?:\.\d+)?|[^\w\s]")
_IGNORED = frozenset(".,;:?!'\"`$~{}\\&’‘“”")
_SAME = {"\\dfrac": "\\frac", "\\tfrac": "\\frac"}
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying by it permutes 64-bit numbers

Hashes = NDArray[np.uint64]


def leaders(texts: Sequence[str], keys: Sequence[str]) -> list[int]:
    """For each problem the index of the first problem of its group, its own where it is alone or the first.

    texts: the questions, with their choices. keys: groups that a set gives; empty for problems without one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    questions, pairs = Questions(texts), list[tuple[int, int]]()
    for names in (keys, questions.whole):
        seen = dict[str | int, int]()
        pairs += [(seen.setdefault(name, place), place) for place, name in enumerate(names) if name]
    pairs += [(place, other) for place, other in questions.nearly_equal() if not (keys[place] and keys[other])]
    joined = coo_array((np.ones(len(pairs)), np.array(pairs, dtype=int).reshape(-1, 2).T), shape=2 * (len(texts),))
    first = dict[int, int]()
    return [first.setdefault(group, place) for place, group in enumerate(connected_components(joined)[1].tolist())]


# Instances of one template with other numbers and names, as in GSM-Symbolic, are not joined above, since nothing tells
# whether the templates are a sample or all that there are; but the user is told. Such questions are equal, or nearly
# so, once a placeholder stands for all numbers (also as words), another for all capitalised words, and pronouns agree.

_MANY = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
_NUMBERS = frozenset(_MANY.split())
_PRONOUNS = {"she": "he", "her": "his", "hers": "his", "him": "his"}
_NAME = "Somebody"
_MASKED = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\\?[^\W\d_]+")
_NAMES = re.compile(rf"{_NAME}(?:[\s.'’-]+{_NAME})+")


def without_numbers_and_names(text: str) -> str:
    """A question with 0 for every number, a placeholder for each run of capitalised words, and pronouns made alike."""

    def masked(match: re.Match[str]) -> str:
        word = match[0]
        plain = word.casefold()
        if word[0].isdigit() or plain in _NUMBERS:
            return "0"
        named = word[0].isupper() and plain not in _PRONOUNS and plain not in _PRONOUNS.values()
        return _NAME if named else _PRONOUNS.get(plain, word)

    return _NAMES.sub(_NAME, _MASKED.sub(masked, text))


class Questions:
    """Hashes of questions.

    whole: of all tokens of a question that count, in their order; 0 if none does. exact: of its numbers, single letters
    and symbols alone. pairs: of adjacent words, for all questions in a row. at: where each question begins in pairs.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        known: defaultdict[str, int] = defaultdict()
        known.default_factory = known.__len__  # numbers tokens in the order of their first appearance
        numbers: list[int] = []
        ends = [0]
        for text in texts:
            plain = _LATEX.sub(" ", text) if "\\" in text else text
            numbers += [known[token] for token in _TOKEN.findall(plain.casefold())]
            ends.append(len(numbers))
        tokens = [_SAME.get(token, token).replace(",", "") if len(token) > 1 else token for token in known]
        hash_of = np.array([_hash(token) for token in tokens], dtype=np.uint64)
        word = np.array([len(token) > 1 and token.isalpha() for token in tokens], dtype=bool)
        kept = np.array([token not in _IGNORED for token in tokens], dtype=bool)
        ids, at = np.array(numbers, dtype=int), np.array(ends)
        self.whole = _in_order(hash_of, ids, at, kept).tolist()
        self.exact = _in_order(hash_of, ids, at, kept & ~word)
        words, ends_of_words = _chosen(ids, at, word)
        question = np.repeat(np.arange(len(texts)), np.diff(ends_of_words))
        inside = question[1:] == question[:-1]
        hashes, question = hash_of[words], question[1:][inside]
        pairs = (hashes[:-1] * np.uint64(_FACTOR) + hashes[1:])[inside]
        _, number, times = np.unique(pairs, return_inverse=True, return_counts=True)
        own = times[number] < max(OFTEN, COMMON * len(texts))
        pairs, question = pairs[own], question[own]
        self.pairs = pairs
        self.at = np.concatenate([[0], np.cumsum(np.bincount(question, minlength=len(texts)))])

    def nearly_equal(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of indices of nearly equal questions: enough pairs to join all such questions that were found."""
        places = np.flatnonzero(np.diff(self.at))
        if not len(places):
            return
        sets: dict[int, set[int]] = {}
        for keys in self._sketches(places):
            _, number, size = np.unique(keys, return_inverse=True, return_counts=True)
            buckets: dict[int, list[int]] = defaultdict(list)
            for at in np.flatnonzero(size[number] > 1).tolist():
                place, bucket = int(places[at]), buckets[number[at]]
                if place not in sets:
                    sets[place] = set(self.pairs[self.at[place] : self.at[place + 1]].tolist())
                alike = [other for other in bucket if _alike(sets[place], sets[other])]
                yield from ((other, place) for other in alike)
                if not alike:
                    bucket.append(place)

    def _sketches(self, places: NDArray[np.int_]) -> Iterator[Hashes]:
        """Yield for each MinHash table a hash per question: of the minima over its pairs, and of its `exact` hash.

        places: indices of the questions that have pairs.
        """
        seeds = np.random.default_rng(0).integers(1, 2**63, (TABLES, MINIMA), dtype=np.uint64) | np.uint64(1)
        mixed = self.pairs ^ (self.pairs >> np.uint64(29))
        for table in seeds:
            keys = self.exact[places]
            for seed in table:
                keys = keys * np.uint64(_FACTOR) + np.minimum.reduceat(mixed * seed, self.at[places])
            yield keys


def _hash(token: str) -> int:
    return int.from_bytes(blake2b(token.encode(), digest_size=8).digest())


def _alike(shingles: set[int], other: set[int]) -> bool:
    common = len(shingles & other)
    return common >= ALIKE * (len(shingles) + len(other) - common)


def _chosen(
    ids: NDArray[np.int_], at: NDArray[np.int_], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The wanted tokens of all questions in a row, and the positions in it at which the questions begin and end."""
    mask = wanted[ids] if len(ids) else np.zeros(0, dtype=bool)
    return ids[mask], np.concatenate([[0], np.cumsum(mask)])[at]


def _in_order(hash_of: Hashes, ids: NDArray[np.int_], at: NDArray[np.int_], wanted: NDArray[np.bool_]) -> Hashes:
    """A hash of the wanted tokens of each question in their order; 0 where there are none."""
    chosen, ends = _chosen(ids, at, wanted)
    sizes = np.diff(ends)
    place = np.arange(len(chosen)) - np.repeat(ends[:-1], sizes)
    powers = np.cumprod(np.full(int(sizes.max(initial=0)), _FACTOR, dtype=np.uint64))
    total = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hash_of[chosen] * powers[place], dtype=np.uint64)])
    return total[ends[1:]] - total[ends[:-1]]
