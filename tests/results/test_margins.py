"""Margins relative to the base: what they claim, how often that is wrong, and bases that have nothing to lose."""

import json
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified_search import BUDGETS, RUNGS, SEED, declaration, rows_of, run_of
from comparable_runs import fill, grid
from said import page_of
from small_search import DOES, PLAN, PROBLEMS

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.reporting import prose
from prunus.results import ladder
from prunus.results.certificate import write_certificate
from prunus.results.comparison import compare
from prunus.results.ladder import ACCURACY, DENSE, ENDS, Rule
from prunus.results.order import settled_by
from prunus.results.vocabulary import RungVerdict, Verdict
from prunus.settings.margins import Margin
from prunus.statistics import anytime, betting
from prunus.store.store import Store
from prunus.studies.file import read_study
from prunus.studies.find import certificate as certificates
from prunus.studies.find.decisions import NOTHING_TO_LOSE
from prunus.studies.find.page import page
from prunus.studies.find.trace import declare_in
from prunus.studies.find.verify import verify_certificate as verify

FIVE = Margin(0.05, relative=True)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (0.02, Margin(0.02)),
        (0, Margin(0.0)),
        ("0.02", Margin(0.02)),
        ("5%", FIVE),
        (" 5 % ", FIVE),
        ({"relative": 0.05}, FIVE),
        (FIVE, FIVE),
    ],
)
def test_margins_are_read_and_written(asked, found):
    assert Margin.of(asked) == found and Margin.of(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("asked", ["5 points", "%", "nan", "100%", "-1%", -0.1, 1, {"share": 0.1}, {}, True])
def test_what_is_no_margin_is_refused(asked):
    with pytest.raises(PrunusError, match="margin"):
        Margin.of(asked)


def outcomes(rng, accuracy, kept, problems, runs):
    """(difference, base), (problems, runs) each: the other model solves this share of what the base solves, no more."""
    base = (rng.random((problems, runs)) < accuracy).astype(float)
    return base * (rng.random((problems, runs)) < kept) - base, base


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.95])
def test_a_loss_of_the_relative_margin_is_called_less_in_5_percent_at_most(accuracy):
    """At the margin itself, for a fixed number of problems and at the best time to stop."""
    rng, runs = np.random.default_rng(0), 800
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    difference, base = outcomes(rng, accuracy, 0.95, 200, runs)
    assert np.mean(betting.p_value(*anytime.exceeding([difference], [base], FIVE)) <= 0.05) < most
    certify, refuse = anytime.log_e_values(difference, 0.05, base)
    assert np.mean(certify[-1] >= log(20)) < most and np.mean(refuse[-1] >= log(20)) < most
    kept, base = outcomes(rng, accuracy, 1.0, 4000, 20)
    harmless = anytime.log_e_values(kept, 0.05, base)[0]
    assert (harmless[-1] >= log(20)).all(), "the margin is shown in the end, also where the base solves little"
    # It takes about as long as the same margin in points, which need not know what the base solves.
    same = anytime.log_e_values(kept, 0.05 * accuracy)[0]
    times = [np.median((logs >= log(20)).argmax(axis=0)) for logs in (harmless, same)]
    assert times[0] < 1.3 * times[1]


def test_bounds_of_a_relative_margin_are_those_of_what_is_kept_beyond_it():
    rng = np.random.default_rng(1)
    difference, base = (values[:, 0] for values in outcomes(rng, 0.8, 0.97, 400, 1))
    seen = anytime.path(difference, 0.1, base_T=base)
    beyond = difference + base - 0.9 * base
    assert seen.estimate == pytest.approx(np.cumsum(beyond) / np.arange(1, 401))
    assert (seen.lower <= seen.estimate + 1e-12).all() and (seen.estimate <= seen.upper + 1e-12).all()
    shown = anytime.log_e_values(difference, 0.1, base)[0] >= log(20)
    assert shown.any() and not shown.all() and ((seen.lower > -1e-9) == shown).all()
    values, null = anytime.scaled(difference, base, 0.1)
    assert np.abs(values).max() <= 1 and anytime.unscaled(np.array(-null), 0.1) == pytest.approx(0)
    worst, most = (anytime.scaled(np.array(d), np.array(b), 0.1)[0] for d, b in ((-1.0, 1.0), (1.0, 0.0)))
    assert (worst, most) == pytest.approx((-1, 1))


@pytest.mark.slow
def test_compare_takes_a_margin_relative_to_the_base(tmp_path):
    """A loss of a point: within 5 points and 5 % of a good base, as large as 5 % of a base that solves a fifth."""
    rng = np.random.default_rng(2)
    for accuracy, word in ((0.95, "non-inferior"), (0.2, "cannot tell")):
        right = rng.random(500) < accuracy
        dense = grid(lambda _, p, *__, right=right: right[p], problems=500)
        apart = 70 if accuracy > 0.5 else 20
        pruned = grid(lambda _, p, *__, right=right, apart=apart: right[p] and p % apart > 0, problems=500)
        path = fill(tmp_path / f"{accuracy}.db", {"dense": dense, "pruned": pruned})
        assert compare(path, "dense", margin=0.05, resamples=200).to_json()["others"][0]["within_margin"]
        found = compare(path, "dense", margin="5%", stop_margin="5%", resamples=200).to_json()
        (entry,) = found["others"]
        assert found["margin"] == found["stop_margin"] == entry["margin"] == {"relative": 0.05}
        assert entry["within_margin"] == (word == "non-inferior")
    (entry,) = compare(path, "dense", margin="30%", resamples=200)
    said = prose.lead(page_of([replace(entry, verdict=Verdict.NON_INFERIOR)], ["W"], 0, Margin(0.3, True)))
    assert "your limit is 30 % of what the original solves" in said


@pytest.mark.slow
def test_a_gate_ends_with_exit_code_3(tmp_path, capsys):
    """Who releases a model if it is non-inferior and still stops has an exit code for it."""
    all_right = [replace(one, ended="natural") for one in grid(lambda *_: True, problems=300)]
    half_right = [replace(one, correct=int(one.problem_id[-1]) % 2 == 0) for one in all_right]
    path = fill(tmp_path / "s.db", {"dense": all_right, "good": all_right, "bad": half_right})
    gate = ["compare", str(path), "--base", "dense", "--margin", "5%"]
    assert main([*gate, "--other", "good", "--require", "non-inferior", "--require", "stops"]) is None
    assert main([*gate, "--require", "stops"]) is None
    assert "does not meet" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="3"):
        main([*gate, "--require", "non-inferior", "--json"])
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line == "prune 50\N{NO-BREAK SPACE}% (2fffffff) does not meet 'non-inferior': worse"
    assert len(json.loads(printed.out)["others"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*gate, "--require", "faster"])
    with pytest.raises(PrunusError, match="'stop' is no requirement; did you mean 'stops'"):
        compare(path, "dense").unmet("stop")


@pytest.mark.slow
def test_commands_take_percent(tmp_path, capsys):
    good = grid(lambda *_: True, problems=300)
    path = fill(tmp_path / "s.db", {"dense": good, "pruned": good})
    assert main(["compare", str(path), "--base", "dense", "--margin", "5%", "--stop-margin", "10%"]) is None
    said = capsys.readouterr().out
    assert "A loss of 5 % of what the original solves is ruled out" in said
    assert main(["report", str(path), str(tmp_path / "r.html"), "--margin", "5%"]) is None
    assert "5 % of what the original solves" in (tmp_path / "r.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(path), "--base", "dense", "--margin", "5 points"])
    assert "margin '5 points' is no margin" in capsys.readouterr().err


def test_a_study_takes_percent(tmp_path):
    file = tmp_path / "s.toml"
    text = 'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\n[report]\nmargin = "5%"\n[[find]]\nstop_margin = "10%"\n'
    file.write_text(text)
    study = read_study(file)
    (table,) = study.finds
    assert Margin.of(study.margin) == Margin.of(table.rules.margin) == FIVE and study.stop_margin == 0.05
    assert Margin.of(table.rules.stop_margin) == Margin(0.1, relative=True)
    file.write_text(text.replace("5%", "5 points"))
    with pytest.raises(PrunusError, match=r"s.toml, line 5: margin '5 points' is no margin"):
        read_study(file)


def searched(folder: Path, rule: Rule, rows=rows_of):
    """(store, certificate, its file) of a search over the runs of test_certificate, all of whose rows are there."""
    runs = {name: rows(name) for name in RUNGS}
    store = fill(folder / "results.db", runs, {name: {"budgets": list(BUDGETS), "seed": SEED} for name in RUNGS}, {})
    rungs = [{"name": RUNGS[k], "run": run_of(k), "removed": 0.1 * k} for k in (1, 2)]
    declared = declaration(rungs, rule)
    with Store(store) as opened:
        declare_in(opened, declared)
        data = certificates.certificate(opened, declared, None)
    write_certificate(data, folder / "certificate.json")
    return store, data, folder / "certificate.json"


@pytest.mark.slow
def test_a_certificate_of_a_relative_margin_is_confirmed_by_the_rows(tmp_path):
    store, data, file = searched(tmp_path, Rule("15%", 0.1))
    written = data.to_json()["declared"]
    assert written["margin"] == {"relative": 0.15} and written["stop_margin"] == 0.1
    gentle, harsh = data.shown.rungs
    assert (gentle.word, harsh.word) == (RungVerdict.CERTIFIED, RungVerdict.REFUSED)
    checked = verify(file, store)
    assert not checked.differences and "is less than 15 % of dense's below it" in checked.claims[0]
    estimate, low, _ = gentle.path.accuracy[-1]  # what it keeps beyond 85 % of the dense model's
    dense, mean = [share for share, _, _ in gentle.dense_accuracy or []], gentle.evidence[ACCURACY]["difference"]
    assert low > -1e-9 and gentle.rounds <= gentle.looked
    assert mean is not None and estimate == pytest.approx(mean + 0.15 * np.mean(dense), abs=0.02)
    assert "15 % of what the original solves" in page(data)
    forged = json.loads(file.read_text())
    forged["declared"]["margin"] = {"relative": 0.05}
    forged["content"] = certificates.content_of(forged)
    file.write_text(json.dumps(forged))
    assert verify(file, store).differences


@pytest.mark.slow
def test_a_base_that_solves_nothing_gets_no_word(tmp_path):
    wrong = grid(lambda *_: False, problems=400)
    path = fill(tmp_path / "s.db", {"dense": wrong, "pruned": wrong})
    for margin in (0.02, "5%"):
        found = compare(path, "dense", margin=margin, resamples=200)
        (entry,), (warning, _) = found, found.warnings
        assert (entry.verdict, entry.within_margin, entry.nothing_to_lose) == ("cannot tell", False, True)
        assert warning.startswith("the base solves nothing, so there is nothing to lose")
        assert prose.title(page_of([entry], ["W"])) == "No loss can be ruled out: the original solves nothing"
        said = prose.in_one_sentence(page_of([entry], ["W"]))
        assert said == "No loss can be ruled out: the original solves nothing; your limit is 3 points."
    (entry,) = compare(fill(tmp_path / "short.db", dict.fromkeys(("dense", "pruned"), grid(lambda *_: False))), "dense")
    assert (entry.primary.settle.problems or 0) > entry.primary.all_problems and settled_by([entry]) == ""
    prunus.report(path, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<title>No loss can be ruled out: the original solves nothing</title>" in text and "nothing to lose" in text
    few = grid(lambda _, problem, *__: problem < 6, problems=400)  # 1.5 points: all of it is within the margin
    path = fill(tmp_path / "few.db", {"dense": few, "pruned": few})
    found = compare(path, "dense", resamples=200)
    (entry,) = found
    assert entry.verdict == "cannot tell" and "would be all of it" in found.warnings[0]
    assert "losing everything would be within the limit" in prose.title(page_of([entry], ["W"]))
    (entry,) = compare(path, "dense", margin=0.0149, resamples=200)
    assert not entry.nothing_to_lose


@pytest.mark.slow
def test_a_walk_certifies_nothing_where_there_is_nothing_to_lose(tmp_path):
    same, rule = np.zeros(300), Rule(0.05, 0.05)
    found = {ACCURACY: same, ENDS: same, DENSE[ACCURACY]: np.full(300, 0.04), DENSE[ENDS]: np.ones(300)}
    decision = ladder.decide(found, rule)
    assert (decision.word, decision.failed, decision.covered) == (RungVerdict.CANNOT_TELL, (ACCURACY,), True)
    enough = ladder.decide(found | {DENSE[ACCURACY]: np.full(300, 0.06)}, rule)
    assert (enough.word, enough.rounds, enough.covered) == (RungVerdict.CERTIFIED, decision.rounds, False)

    def wrong(name):
        return [row for row in rows_of("dense") if not vars(row).update(correct=False)] if name else []

    store, data, file = searched(tmp_path, Rule(0.1, 0.1), rows=wrong)
    (rung,) = data.shown.rungs
    assert (rung.word, rung.why) == ("cannot tell", NOTHING_TO_LOSE) and not data.shown.claims
    assert data.caution is not None and data.caution.startswith("the original solves nothing")
    assert data.caution[1:60] in page(data)
    assert verify(file, store).differences == []
    changed = json.loads(file.read_text()) | {"caution": None}
    changed["content"] = certificates.content_of(changed)
    file.write_text(json.dumps(changed))
    assert "the caution is" in verify(file, store).differences[0]


@pytest.mark.slow
def test_a_search_on_a_base_that_solves_nothing_warns_and_then_is_refused(search_folder, scripted, monkeypatch, capsys):
    monkeypatch.setitem(DOES, "dense", (1, 0))
    monkeypatch.setitem(DOES, "magnitude-10", (1, 0))

    rule: dict[str, Any] = {"methods": ["magnitude"], "margin": 0.1, "stop_margin": 0.1, "store": "rows.db"}
    found = prunus.find("model", "out", PLAN, "0.1", **rule).to_json()
    assert found["found"] is None and found["ladders"]["magnitude"][0]["why"] == NOTHING_TO_LOSE
    assert "warning: so far the original solves nothing" in capsys.readouterr().err
    # The store now has some of the dense rows: the warning comes first. With all of them, the search is refused.
    ahead = prunus.plan_find("model", "out", PLAN, "0.1", **rule)
    assert any("warning: the original solves nothing" in line for line in ahead.lines)
    with Store("rows.db", create=True) as store:
        (dense,) = (run.run_id for run in store.runs() if run.model.name == "model")
        rows = store.samples(dense)
        one = [row for row in rows if row.problem_id == rows[0].problem_id]
        missing = {f"p{n}" for n in range(PROBLEMS)} - {row.problem_id for row in rows}
        store.add_samples(dense, [replace(row, problem_id=name) for name in missing for row in one])
    with pytest.raises(PrunusError, match="losing all of the original's accuracy would be within the margin"):
        prunus.find("model", "other", PLAN, "0.1", **rule)
