"""Sentences of a model card about the certificate of `prunus find` that lies beside a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus.errors import PrunusError
from prunus.results.certificate import Certificate, EarlierRows, EarlierSearch, SearchResult, read_certificate

CERTIFICATE = "certificate.json"
SERVED = " served with "  # in claims
MOST_NAMED = 5  # earlier searches that are described one by one


@dataclass(frozen=True)
class Certified:
    """Sentences of a certificate. claims: about the rung that was found, and how probable it is that one is false.

    searches: sentences about the searches before it. checksum: of the weights that it is about.
    """

    claims: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    checksum: str | None = None


NOTHING = Certified()


def checkpoint_of(name: str, checksum: str | None) -> str:
    """How claims name the checkpoint of a rung: claims are about these weights, and not about a recipe."""
    return f"The checkpoint made by {name} ({f'blake3 {checksum[:16]}' if checksum else 'checksum not known'})"


def claims_of_found(shown: SearchResult) -> list[str]:
    """The claims of a certificate that are about the rung that was found, and how probable it is that one is false."""
    claims, found = list(shown.claims), shown.found
    if found is None:
        return claims
    checkpoint = checkpoint_of(found.name, found.checksum)
    about = (f"{checkpoint}: ", f"{checkpoint}{SERVED}")
    return [claim for claim in claims[:-1] if claim.startswith(about)] + claims[-1:]


def about_searches(data: Certificate) -> list[str]:
    """Sentences on the searches before a certificate's search, and on the rows that existed when that was declared."""
    traced = data.shown.searches
    if traced is None:
        return []
    before, had = traced.before, traced.had
    if not before:
        lines = ["No other search on the same model and tasks was declared before it in its store"]
    else:
        many = f"{len(before)} other searches" if len(before) > 1 else "1 other search"
        verb = "were" if len(before) > 1 else "was"
        rest = f"; and {len(before) - MOST_NAMED} more" if len(before) > MOST_NAMED else ""
        named = "; ".join(search_words(search) for search in before[:MOST_NAMED])
        lines = [f"{many} on the same model and tasks {verb} declared before it in its store: {named}{rest}"]
    if not had:
        return [*lines, "It was declared before the first row of its runs was in the store"]
    return [*lines, f"When it was declared, the store had rows of {problems_had(had)}"]


def problems_had(had: Sequence[EarlierRows]) -> str:
    """`12 problems of tiny and 5 of wanda-10`: whose rows existed when a search was declared."""
    first = f"{had[0].problems} problem{'' if had[0].problems == 1 else 's'} of {had[0].name}"
    rest = [f"{earlier.problems} of {earlier.name}" for earlier in had[1:]]
    return f"{', '.join([first, *rest[:-1]])} and {rest[-1]}" if rest else first


def search_words(search: EarlierSearch) -> str:
    """`wanda-10 to wanda-50 (margins 2 points and 5 points, alpha 5 %, seed 0, 630 problems)`."""
    rungs = search.rungs[0] if len(search.rungs) == 1 else f"{search.rungs[0]} to {search.rungs[-1]}"
    margins = f"{search.margin.words()} and {search.stop_margin.words()}"
    number = sum(search.problems.values())
    return f"{rungs} (margins {margins}, alpha {100 * search.alpha:g} %, seed {search.seed}, {number} problems)"


def read_claims(folder: Path) -> Certified:
    """Sentences of the certificate in a folder; NOTHING where there is none or it cannot be read.

    Its caution, if it has any, is the last of the claims.
    """
    try:
        data = read_certificate(folder / CERTIFICATE)
    except PrunusError:  # `prunus verify` says what is wrong with it
        return NOTHING
    claims = [str(claim) for claim in claims_of_found(data.shown)]
    if claims and data.caution:
        claims.append(f"Warning: {data.caution}")
    return Certified(tuple(claims), tuple(about_searches(data)), str(data.made.checksum))
