"""Verification of the claims of `find` and `choose` against a store."""

from pathlib import Path

from prunus.cards.certified import CERTIFICATE
from prunus.disk import as_path
from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.studies.choose.records import FILE
from prunus.studies.choose.verify import SEEN_NOWHERE, recompute
from prunus.studies.find.verify import Verification, verify_certificate


def verify(
    certificate: str | Path,
    store: str | Path = "results.db",
    *,
    again: int = 0,
    seed: int | None = None,
    device: str = "auto",
) -> Verification:
    """Compute the claims of a certificate again from a store, whose rows are compared with their texts.

    The checkpoint beside the certificate is checked, too. Of a choice, claims are computed again from these rows and
    from the speeds that it states, and a note says what was not checked.

        checked = prunus.verify("out/certificate.json", "results.db")
        assert not checked.differences
        print(checked.claims)

    certificate: the file certificate.json that `find` wrote, choice.json of `choose`, or the folder of either.
    store: the SQLite file of results that `find` or `choose` used.
    again: number of random chains that are drawn anew of the dense model, where it is at hand, and of the checkpoint
        beside the certificate; not of a choice.
    seed: by which these chains are chosen; None: random, since whoever knew it could forge all rows but these.
    device: as for `evaluate`.

    Raises PrunusError if a file is missing or is none of these.
    """
    file = in_folder(as_path(certificate, "certificate"))
    if (data := as_choice(file)) is None:
        return verify_certificate(file, store, again=again, seed=seed, device=device)
    if again:
        raise PrunusError("again draws chains of a certificate of `prunus find`: leave it out for a choice")
    found = recompute(data, file.parent, store)
    return Verification(
        claims=found.claims, differences=found.differences, searches=[], notes=found.notes, unseen=SEEN_NOWHERE
    )


def in_folder(file: Path) -> Path:
    """Path of the certificate.json or choice.json in a folder; any other path is returned as it is."""
    names = (file / name for name in (CERTIFICATE, FILE))
    return next((path for path in names if path.exists()), file)


def as_choice(file: Path) -> dict[str, object] | None:
    """The content of a choice.json; None of another file."""
    try:
        data = parse_json(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # verify_certificate says what is wrong
    return data if isinstance(data, dict) and ("kind", "choice") in data.items() else None
