"""docs/models.md: what was tried with every type of model, and how changes of transformers are told."""

import re
from importlib.metadata import version

import models
import pytest
from random_models import TYPES
from whole_models import NOT_RUN, REFUSED

DATA = models.read_data()
ROWS = DATA["types"]
same_version = pytest.mark.skipif(
    version("transformers") != DATA["transformers"], reason="docs/models.json is of another transformers"
)


def test_page_and_readme_are_what_the_data_gives():
    for path, text in models.generated().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run `make docs`"
        assert f"transformers {DATA['transformers']}" in text


def test_counts_are_those_of_the_tables():
    page, n = models.page(DATA), models.counts(ROWS)
    by_dense, failures = (
        [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        for part in page.split("## Decoders")[1].split("## ")[0].split("All four uses work")
    )
    names = [name for _, types in by_dense for name in types.split(", ")]
    assert len(names) == len(set(names)) == n["decoders"]
    for use in models.USES:
        fail = sum(len(types.split(", ")) for types, why in failures if re.search(rf"(^|; ){use}: ", why))
        assert n["decoders"] - fail == n[use]
    assert n["decoders"] <= n["streamed"] == n["types"] - n["refused"] - n["not_run"]


@same_version
def test_every_type_is_there_with_what_the_tests_know_of_it():
    assert set(ROWS) == set(TYPES)
    assert {name for name, row in ROWS.items() if "not_run" in row} == set(NOT_RUN)
    assert {name for name, row in ROWS.items() if "refused" in row} == set(REFUSED)
    assert models.counts(ROWS)["decoders"] >= 140


@same_version
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "inkling2_text"])
def test_trying_a_type_gives_its_row(model_type):
    assert models.try_type(model_type) == ROWS[model_type]


@pytest.mark.slow
def test_what_fails_is_told_with_its_reason(monkeypatch):
    def fail(_scratch):
        raise AssertionError("nothing gets smaller")

    monkeypatch.setattr(models, "_drop", fail)
    found = models.try_type("llama")
    assert (found["prune"], found["drop"]) == ("yes", "nothing gets smaller")


def test_changes_between_two_sweeps_are_told_by_kind():
    works = {"class": "A", "kind": "decoder", "groups": [], "dense": [], **dict.fromkeys(models.USES, "yes")}
    refused = {"class": "A", "refused": "no list"}
    old = {"same": works, "left": works, "mended": refused, "broken": works, "other": works}
    new = {"same": works, "fresh": works, "mended": works, "broken": refused, "other": works | {"drop": "shared"}}
    uses = "prune: yes, drop: yes, width: yes, quantize: yes"
    assert models.changes(old, new) == [
        f"new: fresh ({uses})",
        "gone: left",
        f"newly refused: broken (refused: no list); was {uses}",
        f"newly streamed: mended ({uses}); was refused: no list",
        "changed: other, drop: yes -> shared",
    ]
    assert models.changes(old, old) == []
