"""Labels of runs that look alike: dtypes where they differ, and the settings in which recipes differ."""

import sys
from types import ModuleType
from typing import Any

import pytest
from fake_store import with_history

import prunus.step
from prunus.cards.text import Card, card_text
from prunus.recipes import PruneRecipe, QuantizeRecipe, RecoverRecipe
from prunus.reporting.render.table import run_styles
from prunus.reporting.sections.sparsity import recipe_text
from prunus.steps.prune import Prune
from prunus.store.labels import Identity, identity, is_called, label_of, unique_labels
from prunus.store.rows import Run

FIFTY = "Wanda 50\N{NO-BREAK SPACE}%"


def run(run_id: str, *recipes: PruneRecipe | RecoverRecipe, dtype: str = "", computed: str = "", **summary: Any) -> Run:
    """A run of the model m. dtype: of its weights. computed: of the engine. summary: of the calibration."""
    steps: list[dict[str, Any]] = [
        {"action": "recover" if isinstance(one, RecoverRecipe) else "prune", "recipe": one.to_json()} | summary
        for one in recipes
    ]
    model: dict[str, Any] = {"name": "m", "manifest": {"history": steps}} | ({"dtype": dtype} if dtype else {})
    return Run.of(run_id + (12 - len(run_id)) * "0", model, {}, {"dtype": computed} if computed else {})


def labels(*runs: Run) -> list[str]:
    return unique_labels(map(identity, runs))


def wanda(**settings: Any) -> PruneRecipe:
    return PruneRecipe(sparsity=0.5, **settings)


def test_labels_name_the_groups_that_were_stored_where_the_recipe_leaves_them_open():
    step = {"action": "quantize", "recipe": QuantizeRecipe(bits=4).to_json(), "format": {"bits": 4, "group": 64}}
    made = with_history(run("a"), [step])
    assert labels(made) == [label_of(made)] == ["W4 g64"]


def test_calibrations_are_named_where_labels_are_equal():
    own, c4 = wanda(calibration="traces:/some/where/own.jsonl"), wanda(calibration="c4")
    found = labels(run("a", own), run("b", c4), run("c", wanda(calibration="c4", sequences=1024)), run("d"))
    assert found == [
        f"{FIFTY} (on own.jsonl, 128 sequences)",
        f"{FIFTY} (on c4, 128 sequences)",
        f"{FIFTY} (on c4, 1,024 sequences)",
        "dense",
    ]
    assert labels(run("a", own), run("b", c4)) == [f"{FIFTY} (on own.jsonl)", f"{FIFTY} (on c4)"]
    assert labels(run("a", c4), run("b", PruneRecipe(sparsity=0.4))) == [FIFTY, "Wanda 40\N{NO-BREAK SPACE}%"]


def test_the_source_that_auto_stands_for_is_named():
    auto = run("a", wanda(), calibration={"source": "c4", "sequences": 128})
    assert labels(auto, run("b", wanda(calibration="wikitext2"))) == [f"{FIFTY} (on c4)", f"{FIFTY} (on wikitext2)"]


def test_settings_are_named():
    plain = wanda(calibration="traces:own.jsonl")
    exact = wanda(calibration="c4", calibration_tokens=4096)
    assert labels(run("a", wanda(calibration="c4")), run("b", exact)) == [
        f"{FIFTY} (128 sequences)",
        f"{FIFTY} (4,096 tokens)",
    ]
    recovered = [run(name, plain, RecoverRecipe.like(plain, epochs=epochs)) for name, epochs in (("a", 2), ("b", 4))]
    assert labels(*recovered) == [f"{FIFTY} + recovered (2 epochs)", f"{FIFTY} + recovered (4 epochs)"]


def test_the_id_only_where_nothing_else_differs():
    same = [run("a1", wanda()), run("b2", wanda()), run("c3", wanda(seed=1))]
    assert labels(*same) == [f"{FIFTY} (seed 0, a1000000)", f"{FIFTY} (seed 0, b2000000)", f"{FIFTY} (seed 1)"]
    assert labels(*same[:2]) == [f"{FIFTY} (a1000000)", f"{FIFTY} (b2000000)"]


def test_dtypes_are_named_where_they_differ():
    """Those of the weights, or of the computation where the weights' are equal or unknown; quantised ones have none."""
    half, brain = run("a", dtype="float16", computed="float32"), run("b", dtype="bfloat16", computed="float32")
    assert labels(half, brain) == ["dense, float16", "dense, bfloat16"] and labels(half, half)[0] != "dense, float16"
    assert labels(run("a", computed="float32"), run("b", wanda(), computed="bfloat16")) == [
        "dense, float32",
        f"{FIFTY}, bfloat16",
    ]
    assert labels(half, run("b", wanda(), dtype="float16", computed="float32")) == ["dense", FIFTY]
    fp8 = with_history(run("c", dtype="bfloat16"), [{"action": "quantise", "recipe": {"method": "fp8"}}])
    assert labels(half, fp8) == ["dense", "fp8"]
    assert labels(half, brain, fp8)[2] == "fp8"


@pytest.mark.parametrize(
    ("model", "plan", "expected", "text"),
    [
        ({}, {"control": "forced"}, {}, "Wanda 50\xa0%"),
        (
            {"serving": {"args": {"dtype": "half"}}},
            {"aa_control": True},
            {"serving": "dtype half", "serving_settings": "dtype half", "aa_control": True},
            "Wanda 50\xa0% · dtype half, A/A control",
        ),
        (
            {"serving": {"args": {"dtype": "half"}}, "served_as": "in half"},
            {"control": "native"},
            {"serving": "in half", "serving_settings": "dtype half", "control": "native"},
            "Wanda 50\xa0% · in half, native control",
        ),
        ({"served_as": "as it is"}, {}, {"serving": "as it is", "serving_settings": ""}, "Wanda 50\xa0% · as it is"),
    ],
)
def test_serving_and_control_are_fields_and_no_steps(model, plan, expected, text):
    step = {"action": "prune", "recipe": {"method": "wanda", "sparsity": 0.5}}
    of = identity(Run.of("r", {"name": "m", "manifest": {"history": [step]}, **model}, plan, {}))
    assert of.to_json() == {"run": "r", "model": "m", "recipe": [step], **expected}
    assert of.label == text and Identity.of(of.to_json()) == of


def test_runs_are_called_by_what_is_printed():
    own = run("a", wanda(calibration="traces:/some/own.jsonl", calibration_tokens=4096), dtype="float16")
    c4 = run("b", wanda(calibration="c4"), dtype="bfloat16")
    for text, one in zip(labels(own, c4), (own, c4), strict=True):
        assert is_called(one, text) and not is_called(c4 if one is own else own, text)
    for text in ("wanda 50 % (on own.jsonl)", "Wanda 50 % (4,096 tokens)", "m: Wanda 50 % (a0000000)", "wanda 50 %"):
        assert is_called(own, text), text
    assert not is_called(own, "wanda 50 % (on c4)") and not is_called(own, "wanda 50 % ()")


def test_a_serving_that_all_runs_have_is_in_no_label_and_told_once():
    def served(run_id: str, dtype: str, *steps: dict[str, Any]) -> Run:
        model = {"name": "m", "manifest": {"history": [*steps]}, "serving": {"args": {"dtype": dtype}}}
        return Run.of(run_id * 12, model, {}, {})

    pruned = {"action": "prune", "recipe": {"method": "wanda", "sparsity": 0.5}}
    dense, half, whole = served("a", "half"), served("b", "half", pruned), served("c", "float", pruned)
    assert labels(dense, half) == ["dense", FIFTY]
    assert labels(half) == [f"{FIFTY} · dtype half"] == labels(dense, half, whole)[1:2]
    for text in (FIFTY, "wanda 50 %, dtype half", "m: Wanda 50 %"):
        assert is_called(half, text), text
    assert not is_called(half, "Wanda 50 %, dtype float")


class Channels(Prune):
    """A kind of step that only this test knows."""

    tag = "fewer-channels"

    def label(self, step: Any) -> str:
        return f"{self.method(step)} {step.channels.after} channels"

    def outcome(self, step: Any, brief: bool) -> str:
        return f"kept {step.channels.after} channels{'' if brief else ' of each MLP'}"

    def sentence(self, steps: Any) -> str:
        return f"its MLPs have {steps[-1].channels.after} channels"


def test_labels_pages_and_cards_follow_a_new_kind_of_step(monkeypatch):
    module = ModuleType("channels")
    monkeypatch.setattr(module, "STEP", Channels(), raising=False)
    monkeypatch.setitem(sys.modules, "prunus.steps.channels", module)
    monkeypatch.setattr(prunus.step, "STEPS", (*prunus.step.STEPS, "channels"))
    monkeypatch.setattr("prunus.cards.text.STEPS", prunus.step.STEPS)
    made = run("a", wanda())
    about = {
        "action": "channels",
        "channels": {"before": 64, "after": 48},
        "source": {"name": "m", "checksum": "0"},
        "warnings": [],
    }
    step = made.model.manifest.history[0] | about
    made = with_history(made, [step.data])
    assert label_of(made) == "Wanda 48 channels" and recipe_text(made).endswith("; kept 48 channels")
    styles = run_styles(run("b"), [made, run("c", wanda())], ["ok", "ok"])
    assert [style.line for style in styles] == ["t-base d0", "t-ok d0", "t-ok d1"]
    text = card_text(Card([step], {}))
    assert "kept 48 channels of each MLP" in text and ": its MLPs have 48 channels.\n" in text
    assert "- fewer-channels\n- wanda\n" in text


@pytest.mark.parametrize("action", ["prune", "drop", "experts", "recover", "quantise", "merge", None])
def test_labels_of_steps_that_say_little_are_made(action):
    little = ({}, {"recipe": None}, {"recipe": {"blocks": 1, "spread": {}}, "experts": {"before": {}}, "cost": {}})
    made = with_history(run("a"), [{**step, "action": action} for step in little])
    assert label_of(made).count(" + ") == 2 and recipe_text(made).count("then") == 2


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (5, "it must be an object"),
        ({"action": ["prune"]}, "action: it must be a text"),
        ({"recipe": 3}, "recipe: it must be an object"),
        ({"recipe": {"method": 4}}, "recipe: method: it must be a text"),
        ({"recipe": {"sparsity": "half"}}, "recipe: sparsity: it must be a number"),
        ({"recipe": {"blocks": [1]}}, "recipe: blocks: it must be a whole number"),
        ({"experts": {"before": 1}}, "experts: before: it must be an object"),
        ({"blocks_removed": 7}, "blocks_removed: it must be a list"),
        ({"cost": "much"}, "cost: it must be an object"),
        ({"sparsity": {"a": 2}}, "sparsity: it has a value that is no share"),
        ({"source": "x"}, "source: it must be an object"),
        ({"warnings": [1]}, "warnings: it must be a text"),
    ],
)
def test_a_damaged_step_is_refused_by_its_name(step, says):
    with pytest.raises(ValueError, match=f"in the model of run a0*, manifest: history: {says}"):
        Run.of("a00000000000", {"manifest": {"history": [step]}}, {}, {})
