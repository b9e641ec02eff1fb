"""The certificate of a search over made rows: what it says, and that no change of rows or of it goes unnoticed."""

import json
import shutil
import sqlite3
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from certified_search import IDS, PROBLEMS, RUNGS, SEED, changed, make, rows_of, run_of
from tiny_models import make_model

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.results.certificate import read_certificate
from prunus.results.vocabulary import RungVerdict
from prunus.settings.margins import Margin
from prunus.statistics.anytime import interleaved
from prunus.store.rows import ProblemRow
from prunus.store.store import Store
from prunus.store.stored import Environment
from prunus.studies.find import certificate as certificates
from prunus.studies.find import decisions
from prunus.studies.find.find import refuse_mixed
from prunus.studies.find.page import page
from prunus.studies.find.verify import verify_certificate as verify


@pytest.mark.slow
def test_a_certificate_says_what_was_found_and_is_confirmed_by_the_rows(tmp_path):
    store, file = make(tmp_path)
    data = json.loads(file.read_text())
    gentle, harsh = data["shown"]["ladders"][0]["rungs"]  # the third rung was not reached
    assert (gentle["word"], harsh["word"]) == (RungVerdict.CERTIFIED, RungVerdict.REFUSED)
    assert data["shown"]["found"]["name"] == "gentle" and data["shown"]["found"]["removed"] == 0.1
    assert 30 < gentle["rounds"] <= gentle["looked"] <= gentle["rounds"] + 7 and gentle["looked"] % 8 == 0
    for end, margin in (("accuracy", 0.1), ("ends", 0.1)):
        estimate, low, high = gentle["path"][end][-1]
        assert -margin < low <= estimate <= high and gentle["evidence"][end]["harmless"] >= 20
        assert gentle["path"]["rounds"][-1] == gentle["rounds"]
    # Tokens: every chain thinks 60 tokens; 5 of an answer at each budget, or once at the end of a chain that ended.
    order = [name for _, name in interleaved(IDS, SEED)]
    every = rows_of("dense")
    dense = {p: [r for r in every if r.problem_id == p] for p in order}

    def tokens(rows):
        return 60 + 5 * len(rows)

    assert gentle["tokens"] == sum(tokens(dense[p]) for p in order[: gentle["looked"]])
    assert data["shown"]["tokens"] == sum(r["tokens"] for r in (gentle, harsh)) + data["shown"]["dense"]["tokens"]
    assert data["shown"]["full_grid_tokens"] == 4 * 70 * PROBLEMS
    share = np.mean([dense[p][0].correct for p in order[: gentle["looked"]]])
    for estimate, low, high in gentle["dense_accuracy"]:
        assert estimate == pytest.approx(share) and 0 < low < share < high < 1
        assert (
            high - low < 3.92 * (share * (1 - share) / gentle["looked"]) ** 0.5 * 2
        )  # at most twice as wide as normal
    checked = verify(file, store)
    assert checked.differences == [] and checked.claims == data["shown"]["claims"]
    first, second, third = checked.claims
    assert (
        first.startswith("The checkpoint made by gentle (checksum not known): its area under accuracy")
        and "less than 10 points below dense's" in first
    )
    assert "end by themselves within 64 tokens" in second
    written = read_certificate(file)
    assert certificates.caution(written.declared, written.shown, None) is None
    wider = replace(written.declared, margin=Margin(0.4))
    wide = certificates.caution(wider, written.shown, None)  # the dense model solves 3 of 4
    assert wide is not None and "the original solves 7" in wide and "40 points" in wide
    assert wide[1:] in page(replace(written, declared=wider))
    assert wide[10:40] not in page(written)
    assert third == "The probability that any claim is false is at most 5 %"


@pytest.mark.slow
def test_tokens_end_a_walk_and_the_certificate_says_so(tmp_path):
    store, file = make(tmp_path, max_tokens=3000)
    (gentle,) = json.loads(file.read_text())["shown"]["ladders"][0]["rungs"]
    assert (gentle["word"], gentle["why"]) == ("cannot tell", decisions.OUT_OF_TOKENS)
    assert gentle["looked"] == 24  # 2 x 70 tokens a problem: 21 are not enough, and looks are at every eighth
    checked = verify(file, store)
    assert (checked.claims, checked.differences, checked.searches) == ([], [], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE sample SET correct = 1 - correct WHERE run_id LIKE '1%' AND problem_id = '{first}'", "gentle: rows"),
        ("UPDATE sample SET ended = 'forced' WHERE run_id LIKE '0%' AND problem_id = '{first}'", "dense rows"),
        ("UPDATE sample SET answer = 'x' WHERE run_id LIKE '2%' AND problem_id = '{first}'", "harsh: rows"),
        ("UPDATE sample SET thinking_tokens = 9 WHERE run_id LIKE '1%' AND problem_id = '{first}'", "gentle: tokens"),
        ("DELETE FROM sample WHERE run_id LIKE '1%' AND problem_id = '{first}'", "lacks rows: gentle is not decided"),
        ("DELETE FROM sample WHERE run_id LIKE '2%'", "lacks rows: harsh is not decided"),
        ("UPDATE problem SET digest = 'other' WHERE problem_id = '{first}'", "problems is"),
        ("UPDATE run SET plan = '{{\"seed\": 4}}' WHERE run_id LIKE '1%'", "gentle: same_plan"),
    ],
)
def test_a_changed_store_is_found_out(tmp_path, statement, named):
    store, file = make(tmp_path)
    first = interleaved(IDS, SEED)[0][1]
    with sqlite3.connect(store) as connection:
        assert connection.execute(statement.format(first=first)).rowcount > 0
    checked = verify(file, store)
    assert checked.claims == [] and any(named in line for line in checked.differences), checked


@pytest.mark.slow
def test_rows_on_which_nothing_rests_may_be_added(tmp_path):
    store, file = make(tmp_path)
    last = interleaved(IDS, SEED)[-1][1]
    with Store(store) as opened:
        opened.add_problems([ProblemRow("a", last, "1", "exact", (), "d")])
        for place, name in enumerate(RUNGS):
            opened.add_samples(run_of(place), [r for r in rows_of(name) if r.problem_id == last])
    assert verify(file, store).differences == []


def swap(data):
    rungs = data["declared"]["ladders"][0]["rungs"]
    rungs[0], rungs[1] = rungs[1], rungs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda d: d["shown"]["ladders"][0]["rungs"][1].update(word=RungVerdict.CERTIFIED),
            "harsh: word is refused by the rows",
        ),
        (lambda d: d["shown"]["found"].update(name="harsh"), "found name is gentle by the rows"),
        (lambda d: d["shown"]["claims"].append("it is better"), "claims"),
        (lambda d: d["declared"].update(margin=0.01), "lacks rows|gentle: "),
        (lambda d: d["declared"].update(alpha=0.5), "gentle: rounds"),
        (lambda d: d["declared"].update(seed=4), "lacks rows"),
        (lambda d: d["declared"].update(look=1), "harsh: looked"),
        (lambda d: d["declared"].update(budgets=[64]), "budgets of the runs"),
        (lambda d: d["declared"]["problems"]["a"].pop(), "full_grid_tokens"),
        (lambda d: d["declared"]["model"].update(checksum="1"), "other weights"),
        (lambda d: d["shown"]["ladders"][0]["rungs"][0].update(tokens=1), "gentle: tokens is"),
        (lambda d: d["shown"]["ladders"][0]["rungs"][0]["path"]["ends"][-1].__setitem__(1, 0.3), "path ends"),
        (swap, "ladders"),
        (lambda d: d["declared"].pop("look"), "makes no sense"),
        (lambda d: d["declared"].update(ladders=[]), "makes no sense"),
    ],
)
def test_a_changed_certificate_is_found_out_even_if_its_hash_fits(tmp_path, change, named):
    store, file = make(tmp_path)
    checked = verify(changed(file, change), store)
    assert checked.claims == []
    assert any(part in line for line in checked.differences for part in named.split("|")), checked


@pytest.mark.slow
def test_a_change_that_leaves_all_numbers_is_found_by_the_hash(tmp_path):
    store, file = make(tmp_path)
    file.write_text(file.read_text().replace('"source": "dense"', '"source": "other"'))
    line, undeclared = verify(file, store).differences
    assert "content hash differs" in line and "no record that this search was declared" in undeclared


@pytest.mark.slow
def test_rows_that_were_computed_in_several_ways_are_refused(tmp_path):
    store, file = make(tmp_path)
    with Store(store) as opened:
        dense, rung = (opened.run(run_of(place)) for place in (0, 1))
        opened.update_environment(rung.run_id, {"torch": "2.0"})
        opened.add_run(replace(rung, environment=Environment.of({"torch": "1.0"})), mixed=True)
        search: Any = SimpleNamespace(dense=SimpleNamespace(run_id=dense.run_id), cells={rung.run_id: None})
        with pytest.raises(PrunusError, match=r"several ways \(torch is 1\.0, not 2\.0"):
            refuse_mixed(opened, search)
    found = verify(file, store)
    assert not found.claims and any("rows were computed in several ways" in line for line in found.differences)


@pytest.mark.slow
def test_the_checkpoint_beside_it_has_to_be_the_one_that_was_made(tmp_path):
    store, file = make(tmp_path)
    folder = tmp_path / "found"
    make_model(folder, "qwen2")
    checksum, files = Checkpoint(folder).checksum(), certificates.files_of(folder)
    for made, expected in ((checksum, []), ("0" * 64, ["the checkpoint beside the certificate has other weights"])):
        beside = folder / "certificate.json"
        made = {"checksum": made, "files": files}
        shutil.copy(changed(file, lambda d, made=made: d.update(made=made)), beside)
        found = verify(beside, store).differences
        assert len(found) == len(expected) and all(a in b for a, b in zip(expected, found, strict=True))
    alone = changed(file, lambda d: d.update(made={"checksum": checksum, "files": {}}))
    assert "were not checked" in verify(alone, store).notes[-1]


@pytest.mark.slow
def test_the_command_prints_a_line_per_claim_and_fails_with_one_per_difference(tmp_path, capsys):
    store, file = make(tmp_path)
    main(["verify", str(file), "--store", str(store)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("holds: ") for line in lines)
    broken = changed(file, lambda d: d["shown"]["found"].update(name="harsh"))
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(broken), "--store", str(store)])
    assert ended.value.code == 1
    assert capsys.readouterr().out == "differs: found name is gentle by the rows, the certificate says harsh\n"
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / "none.json"), "--store", str(store)])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: the certificate '")


def test_what_is_no_certificate_is_wrong_input(tmp_path):
    store, file = make(tmp_path)
    for text, message in (("{", "not JSON"), ("[]", "not a certificate of"), ('{"format": 1}', "not a certificate of")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PrunusError, match=message):
            verify(tmp_path / "bad.json", store)
    with pytest.raises(PrunusError, match=r"the certificate .* cannot be read"):
        verify(tmp_path / "none.json", store)
    with pytest.raises(PrunusError, match=r"none\.db' cannot be read: No such file"):
        verify(file, tmp_path / "none.db")
    for key, value, named in (
        ("samples", 10**30, "it is no number of draws"),  # of which a list would take all memory
        ("look", -1, "-1 is no number of problems"),  # which would never end
    ):
        certificate = json.loads(file.read_text())
        certificate["declared"][key] = value
        (tmp_path / "bad.json").write_text(json.dumps(certificate))
        assert any(named in text for text in verify(tmp_path / "bad.json", store).differences)
