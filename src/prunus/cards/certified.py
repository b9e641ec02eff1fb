"""What a model card tells of the certificate of `prunus find` that lies beside a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.cards.markdown import LIMIT, plain, redacted

CERTIFICATE = "certificate.json"


def claims_of_found(shown: Mapping[str, Any]) -> list[str]:
    """The claims of a certificate that are about the rung that was found, and how probable it is that one is false."""
    claims = list(shown["claims"])
    if shown["found"] is None:
        return claims
    return [claim for claim in claims[:-1] if claim.startswith(f"{shown['found']['name']}: ")] + claims[-1:]


def read_claims(folder: Path) -> tuple[list[str], str | None]:
    """(claims of the certificate in a folder, checksum of the weights that they are about); ([], None) without one.

    Its caution, if it has one, is the last of the claims.
    """
    try:
        data = json.loads((folder / CERTIFICATE).read_text("utf-8"))
        claims = [str(claim) for claim in claims_of_found(data["shown"])]
        if claims and data.get("caution"):
            claims.append(f"Warning: {data['caution']}")
        return claims, str(data["made"]["checksum"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # `prunus verify` says what is wrong with it
        return [], None


def certified_text(claims: Sequence[str]) -> list[str]:
    """The part of the card about these claims; empty without any."""
    if not claims:
        return []
    return [
        "## Certificate",
        f"`{CERTIFICATE}`, by `prunus find`, claims of the model compared with the dense one:",
        "\n".join(f"- {plain(redacted(claim), LIMIT)}." for claim in claims),
        "This is about problems like those of the problem set, under these budgets, this sampling and this grader; it"
        " says nothing about other tasks, speed or safety. `prunus verify` computes the claims again from the rows on"
        " which they rest.",
    ]
