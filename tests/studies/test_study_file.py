"""A study's file: what a grid comes to, and what is refused, with the line."""

import re

import pytest

from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, RecoverRecipe
from prunus.studies.cells import variant_names
from prunus.studies.file import read_study

GOOD = """\
models = ["tiny"]
[eval]
tasks = ["tiny"]
budgets = [16, 64]
"""


def study(tmp_path, text):
    path = tmp_path / "file.toml"
    path.write_text(text)
    return read_study(path)


def recipes(tmp_path, text):
    return [entry.steps[0] for entry in study(tmp_path, GOOD + text).entries]


def test_defaults(tmp_path):
    found = study(tmp_path, GOOD)
    assert found.models == ("tiny",) and found.entries == () and found.name == "file"
    assert found.plans == (EvalPlan(tasks=("tiny",), budgets=(16, 64)),)
    assert (found.base, found.margin, found.keep_checkpoints) == ("dense", 0.05, False)


def test_lists_make_a_grid(tmp_path):
    found = recipes(
        tmp_path,
        '[[prune]]\nmethod = ["magnitude", "wanda"]\nsparsity = [0, 0.5]\nscope = "mlp"\n'
        '[[drop]]\nblocks = [1, "2,3"]\n',
    )
    assert found == [
        PruneRecipe(method="magnitude", sparsity=0.0, scope="mlp"),
        PruneRecipe(method="magnitude", sparsity=0.5, scope="mlp"),
        PruneRecipe(method="wanda", sparsity=0.0, scope="mlp"),
        PruneRecipe(method="wanda", sparsity=0.5, scope="mlp"),
        DropRecipe(blocks="1"),
        DropRecipe(blocks="2,3"),
    ]
    assert isinstance(found[0], PruneRecipe) and isinstance(found[0].sparsity, float), "0 and 0.0 are one cell"


def test_variants_have_the_order_of_the_file(tmp_path):
    found = recipes(
        tmp_path,
        '[[quantize]]\nbits = 8\n[[chain]]\nsteps = [{ drop = { blocks = "1" } }, { prune = { sparsity = 0.5 } }]\n'
        "[[prune]]\nsparsity = [0.4, 0.3]\n[[drop]]\nblocks = 2\n[[prune]]\nsparsity = 0.2\n",
    )
    assert [type(recipe).__name__ for recipe in found[:2]] == ["QuantizeRecipe", "DropRecipe"]
    assert [getattr(recipe, "sparsity", None) for recipe in found[2:]] == [0.4, 0.3, None, 0.2]


def test_pruning_after_experts_were_removed_is_an_axis_and_calibrates_as_its_table(tmp_path):
    entries = study(
        tmp_path,
        GOOD + "[calibration]\nsequences = 16\n[[prune]]\nsparsity = [0.2, 0.5]\n"
        'experts = [false, true, { method = "random", drop = 1, seed = 5, calibration_tokens = 99 }]\n',
    ).entries
    reap = ExpertsRecipe(sequences=16)
    own = ExpertsRecipe(method="random", drop=1, seed=5, sequences=16, calibration_tokens=99)
    assert [entry.steps for entry in entries] == [
        (*experts, PruneRecipe(sparsity=share, sequences=16))
        for share in (0.2, 0.5)
        for experts in ((), (reap,), (own,))
    ]
    words = ["wanda-20", "experts-reap-75-wanda-20", "experts-random-drop1-wanda-20"]
    assert variant_names(entries) == [*words, *(word.replace("20", "50") for word in words)]


def test_recover_is_an_axis_and_calibrates_as_its_table(tmp_path):
    (tmp_path / "t.jsonl").write_text("")
    entries = study(
        tmp_path,
        GOOD + "[calibration]\nsequences = 16\nseed = 3\n"
        '[[prune]]\nsparsity = [0.2, 0.5]\nrecover = [false, true, {epochs = 2, calibration = "traces:t.jsonl"}]\n'
        "[[drop]]\ncalibration_tokens = 99\nrecover = {sequences = 8}\n[[drop]]\nrecover = false\nblocks = 2\n",
    ).entries
    alike = RecoverRecipe(sequences=16, seed=3)
    own = RecoverRecipe(sequences=16, seed=3, epochs=2, calibration=f"traces:{tmp_path / 't.jsonl'}")
    drop = DropRecipe(sequences=16, seed=3, calibration_tokens=99)
    assert [entry.steps for entry in entries] == [
        *(
            (PruneRecipe(sparsity=s, sequences=16, seed=3), *recovery)
            for s in (0.2, 0.5)
            for recovery in ((), (alike,), (own,))
        ),
        (drop, RecoverRecipe(sequences=8, seed=3)),
        (DropRecipe(sequences=16, seed=3, blocks="2"),),
    ]
    names = ["wanda-20", "wanda-20-recovered", "wanda-50", "wanda-50-recovered", "shortgpt-1-recovered", "shortgpt-2"]
    assert variant_names([entry for entry in entries if own not in entry.steps]) == names
    assert len(set(variant_names(entries))) == len(entries)


def test_a_value_of_eval_that_is_a_list_makes_plans(tmp_path):
    plans = study(tmp_path, GOOD + 'mode = ["strict", "legacy"]\nanswer_tokens = 64\nsamples = [1, 2]\n').plans
    assert [(plan.mode, plan.samples) for plan in plans] == [("strict", 1), ("strict", 2), ("legacy", 1), ("legacy", 2)]
    assert all(plan.budgets == (16, 64) for plan in plans), "budgets are a list by themselves"


def test_calibration_is_for_all_tables_that_do_not_say_otherwise(tmp_path):
    first, second = recipes(
        tmp_path, '[calibration]\nsequences = 16\nseed = 3\n[[prune]]\n[[drop]]\nmethod = "sleb"\nsequences = 8\n'
    )
    first, second = (recipe.to_json() for recipe in (first, second))
    assert (first["sequences"], first["seed"], second["sequences"], second["seed"]) == (16, 3, 8, 3)


def test_files_are_looked_for_beside_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "model").mkdir()
    (tmp_path / "p.jsonl").write_text("")
    (tmp_path / "t.jsonl").write_text("")
    found = study(
        tmp_path,
        'models = ["model", "org/name"]\n[eval]\ntasks = ["p.jsonl", "gsm8k"]\n'
        '[[prune]]\ncalibration = "traces:t.jsonl"\n[[prune]]\ncalibration = "elsewhere.txt"\n',
    )
    assert found.models == (str(tmp_path / "model"), "org/name")
    assert found.plans[0].tasks == (str(tmp_path / "p.jsonl"), "gsm8k")
    calibrations = [vars(entry.steps[0])["calibration"] for entry in found.entries]
    assert calibrations == [f"traces:{tmp_path / 't.jsonl'}", "elsewhere.txt"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('modles = ["tiny"]', 1, r"unknown key 'modles'; did you mean 'models'\?"),
        (GOOD + "sampels = 2", 5, r"unknown key 'sampels' in \[eval\]; did you mean 'samples'\?"),
        (GOOD + "sparsity = 0.2", 5, r"unknown key 'sparsity' in \[eval\]; it belongs under \[\[prune\]\]"),
        (GOOD + "zzz = 1", 5, r"unknown key 'zzz' in \[eval\]; known keys are aa_control, answer_tokens, .*wait"),
        (
            GOOD + "[[prune]]\n\n[[prune]] # two\nsparsty = 0.2",
            8,
            r"'sparsty' in \[\[prune\]\]; did you mean 'sparsity'",
        ),
        (GOOD + "[[prune]]\nsparsity = '0.2'", 6, "'sparsity' must be a number, not '0.2'"),
        (GOOD + "[[prune]]\nsparsity = [0.1, true]", 6, "'sparsity' must be a number, not True"),
        (GOOD + "[[prune]]\nsparsity = []", 6, "'sparsity' is an empty list"),
        (GOOD + "[[prune]]\nsequences = 1.5", 6, "'sequences' must be a whole number, not 1.5"),
        (GOOD + "[[prune]]\nspread = 'x'", 6, "'spread' must be a number, not 'x'"),
        (GOOD + "[[prune]]\nsparsity = 1.2", 5, r"sparsity must lie in \[0, 1\), not 1.2"),
        (GOOD + "[[prune]]\nscope = 'norms'", 5, "scope 'norms' is not known; choose one of all, attention, mlp"),
        (
            GOOD + "[[prune]]\nallocation = ['owl', 'uniform']\nspread = 0.1",
            5,
            r"spread belongs to allocation owl.*\(in the combination allocation uniform, spread 0.1\)",
        ),
        (GOOD + "mode = 'loose'", 2, r"mode 'loose' is not known; choose one of strict, legacy$"),
        (GOOD + "[[prune]]\nrecover = 1", 6, "'recover' must be true, false or a table, not 1"),
        (GOOD + "[[prune]]\nrecover = []", 6, "'recover' is an empty list"),
        (GOOD + "[[prune]]\nrecover = {epoch = 2}", 6, "unknown key 'epoch' of recover; did you mean 'epochs'"),
        (GOOD + "[[prune]]\nrecover = {epochs = 0.5}", 6, "'epochs' must be a whole number, not 0.5"),
        (GOOD + "[[drop]]\nrecover = [true, {rate = 2}]", 6, r"recover: rate must lie in \(0, 1\), not 2"),
        (GOOD + "[[prune]]\nexperts = 0.5", 6, "'experts' must be true, false or a table, not 0.5"),
        (GOOD + "[[prune]]\nexperts = {kep = 0.5}", 6, "unknown key 'kep' of experts; did you mean 'keep'"),
        (GOOD + "[[prune]]\nexperts = {keep = 2}", 6, r"experts: keep must lie in \(0, 1\), not 2"),
        (GOOD + "[[prune]]\nkeep = 0.5", 6, r"'keep' in \[\[prune\]\]; it belongs under \[\[experts\]\]"),
        (GOOD + "[[drop]]\nexperts = true", 6, r"'experts' in \[\[drop\]\]; it belongs under"),
        (GOOD + "[[prune]]\nepochs = 2", 6, r"'epochs' in \[\[prune\]\]; it belongs under recover = \{"),
        (GOOD + "[[drop]]\nblocks = 0", 5, "blocks must be at least 1"),
        (GOOD + "[prune]\nsparsity = 0.5", 5, r"write \[\[prune\]\] with double brackets"),
        (GOOD + "[calibration]\nsequences = [1, 2]", 6, "'sequences' takes one value here"),
        (GOOD + "[calibration]\ndtype = 'float16'", 6, r"'dtype' in \[calibration\]; it belongs under \[\[prune\]\]"),
        (GOOD + "[report]\nmargin = 2", 6, "margin must be a share"),
        (GOOD + "[report]\nbase = 2", 6, "'base' must be a text"),
        (GOOD.replace("[16, 64]", "[64, 16]"), 2, "budgets must increase: 16 follows 64"),
        (GOOD.replace("[16, 64]", "64"), 4, "'budgets' must be a list, each a whole number or off, not 64"),
        ('models = ["tiny", "tiny"]\n[eval]\ntasks = ["tiny"]', 1, "model 'tiny' is listed twice"),
        ("models = [1]\n", 1, "'models' must be a list, each a text"),
        ("name = 'x'\n", None, "name at least one model"),
        ("models = ['tiny']\n", None, r"there is no \[eval\] table"),
        ("models = ['tiny']\n[eval]\nsamples = 2\n", 2, "name at least one task"),
        ("models = ['tiny']\neval.tasks = ['tiny']\neval.sampels = 2\n", 3, "unknown key 'sampels'"),
        ("models = ['tiny']\neval = 3\n", 2, r"write \[eval\] with single brackets"),
        ("models = ['tiny'\n[eval]\n", None, r"is not TOML: .*line 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, message):
    with pytest.raises(PrunusError, match=message) as error:
        study(tmp_path, text)
    assert "\n" not in str(error.value)
    where = re.match(rf"{re.escape(str(tmp_path / 'file.toml'))}(?:, line (\d+))?[: ]", str(error.value))
    assert where, error.value
    assert (where[1] and int(where[1])) == line


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(PrunusError, match="cannot be read: No such file"):
        read_study(tmp_path / "no.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PrunusError, match="is not TOML"):
        read_study(tmp_path / "bytes.toml")
