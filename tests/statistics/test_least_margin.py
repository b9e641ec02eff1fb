"""The loss that problems can rule out at best, beside the p-values and bounds of the tests themselves."""

import numpy as np
import pytest

import prunus
from prunus.cli import main
from prunus.statistics import betting, exact
from prunus.statistics.least_margin import in_words, least_margin, problems_for

ALONE = [f"p{number}" for number in range(84)]


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7])
@pytest.mark.parametrize("problems", [5, 84, 400])
def test_of_single_draws_it_is_where_the_exact_test_turns(problems, alpha):
    names = [str(number) for number in range(problems)]
    least = least_margin([names], (256,), 1, alpha)
    assert exact.p_value(0, 0, problems, least + 1e-4)[0] <= alpha < exact.p_value(0, 0, problems, least - 1e-4)[0]
    assert least_margin([names], (0, 256), 1, alpha) == least  # the area is that of the budget above 0
    assert alpha < 0.05 or least == pytest.approx(1 - 0.05 ** (1 / problems), abs=1e-4)


@pytest.mark.parametrize(
    ("groups", "budgets", "draws"),
    [
        ([ALONE], (64, 256), 1),
        ([ALONE], (256,), 4),
        ([ALONE[:20], ALONE], (256,), 4),
        ([ALONE[:42] * 2], (256,), 1),  # pairs that belong together
    ],
)
def test_of_others_it_is_where_bets_turn(groups, budgets, draws):
    least = least_margin(groups, budgets, draws, 0.05)
    same = [np.zeros((len(set(of_task)), 1)) for of_task in groups]
    assert betting.p_value(same, least + 0.002, draws)[0] <= 0.05 < betting.p_value(same, least - 0.002, draws)[0]


@pytest.mark.parametrize(
    ("budgets", "variants", "says"),
    [
        ((256,), 1, "84 problems: a loss of less than 3.6 points cannot be ruled out, even where nothing differs"),
        ((256,), 7, "84 problems: a loss of less than 6.6 points of any of 7 variants cannot be ruled out"),
        ((64, 256), 1, "84 problems: a loss of less than 3.6 points cannot"),
    ],
)
def test_the_sentence(budgets, variants, says):
    assert in_words({"a": ALONE}, budgets, 1, variants).startswith(says)
    lacking = "; problems that levels of efforts need: high 220, medium 88"
    assert in_words({"a": ALONE}, budgets, 1, variants).endswith("differs" + lacking * (len(budgets) > 1))
    assert in_words({"a": ["p"]}, budgets, 1).startswith("1 problem: a loss of less than ")


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.1, 0.49])
@pytest.mark.parametrize("one_outcome", [True, False])
def test_the_least_number_of_problems_is_where_each_test_turns(margin, one_outcome):
    def p(n):
        return (exact.p_value(0, 0, n, margin) if one_outcome else betting.p_value([np.zeros((n, 1))], margin))[0]

    least = problems_for(margin, 0.05 / 3, one_outcome)
    assert p(least) <= 0.05 / 3 < p(least - 1)
    assert problems_for(1e-6, 0.05 / 3, one_outcome) == 4_094_343  # (1 - margin)^n, without a test


STUDY = """
models = ["tiny"]
[eval]
tasks = ["tiny"]
limit = 20
budgets = [16]
[[prune]]
method = "magnitude"
sparsity = [0.2, 0.4]
"""


@pytest.mark.slow
def test_eval_says_it_before_it_generates_and_a_plan_of_a_study_for_all_variants(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan = prunus.EvalPlan(tasks=("tiny",), budgets=(0,), limit=4)
    for said in (1, 0):  # a finished run does no work
        prunus.evaluate("tiny", plan, "results.db")
        assert capsys.readouterr().err.count("4 problems: a loss of less than 52.8 points cannot") == said
    (tmp_path / "study.toml").write_text(STUDY)
    line = "tiny: 20 problems: a loss of less than 18.5 points of any of 2 variants cannot be ruled out"
    assert prunus.plan_study("study.toml").margins[0].startswith(line)
    main(["study", "plan", "study.toml"])
    assert "less than 18.5 points" in capsys.readouterr().out.replace("\n", " ")
