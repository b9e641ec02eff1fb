"""Whether a text ends in a loop, as the chains of compressed models often do."""

COPIES = 4  # how often in a row the end must be repeated
SHORTEST = 60  # characters of all copies together, so that a row of zeros or a short separator is no loop
LONGEST = 2_048  # characters of one copy: 256 tokens of eight characters
REPEATED = 0.5  # share of the end that makes an inexact loop
KEY = 16  # characters at the end that are searched for, to find candidates for the length of a copy


def ends_in_loop(text: str) -> bool:
    """Whether the end of a text is at least four copies of one string of at most 2,048 characters, one after another.

    The copies must be equal to the letter and have 60 characters or more together: lines that count upwards, or lists
    of different equations, are not loops. The last copy may be incomplete, since a budget cuts anywhere.
    """
    tail = text.rstrip("\ufffd")[-COPIES * LONGEST :]  # a cut within a character leaves a replacement character
    if len(tail) < SHORTEST:
        return False
    key, start = tail[-KEY:], len(tail) - KEY
    place = start
    # A string that repeats with a period recurs one period earlier, so only the places of the key need be tried.
    while (place := tail.rfind(key, 0, place + KEY - 1)) >= max(0, start - LONGEST):
        period = start - place
        copied = max(COPIES * period, SHORTEST)
        if copied <= len(tail) and tail[-copied:-period] == tail[period - copied :]:
            return True
    return False


def loops(thinking: str, text: str, repetition: float | None) -> bool:
    """Whether a chain loops: its thinking or its answer ends in a loop, or at least half of its end is repetition.

    repetition: as stored in a row, which also counts copies with small differences; None if it is not known.
    """
    return ends_in_loop(thinking) or ends_in_loop(text) or (repetition or 0.0) >= REPEATED
