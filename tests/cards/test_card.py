"""Model cards: what the Hub reads in them, what they say, what they never say, and whose README they replace."""

import json
import re
import shlex
import shutil
import sqlite3
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from fake_store import HOSTILE, make_store, manifest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from tiny_models import make_model, random_rows

import prunus
from prunus.cards.markdown import public, redacted
from prunus.cards.text import Card, card_text, commands, is_ours, read_metadata, step_text
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import hub_origin
from prunus.cli import cli, main
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.manifest import Manifest, StepRecord
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, RecoverRecipe
from prunus.reporting.sections.sparsity import recipe_text
from prunus.results.comparison import compare
from prunus.results.summary import summarise
from prunus.settings.budgets import OFF
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.store.stored import StoredPlan

SOURCE_CARD = """---
license: other
license_name: made-up
license_link: https://example.org/licence
language: [en, de]
base_model: acme/foundation
tags: [chat]
model-index: [{name: acme, results: []}]
---
# Acme-Reasoner

The best model there is.
"""
NAMES = ("tiny", "wanda-20", "wanda-50")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model in the layout of the Hub's cache, with its card."""
    repository = tmp_path_factory.mktemp("home of alice") / "models--acme--Acme-Reasoner"
    folder = make_model(repository / "snapshots" / "0123abcd", "qwen3", blocks=2)
    (folder / "README.md").write_text(SOURCE_CARD)
    return folder


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    prunus.prune(dense, out, PruneRecipe(method="magnitude", pattern="2:4"))
    return out


@pytest.fixture
def copied(pruned, tmp_path):
    """A copy of the pruned model, to write into."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in pruned.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def first_store(tmp_path_factory, dense, pruned):
    """A store whose runs tiny and wanda-50 are those of the dense and the pruned model."""
    path = make_store(tmp_path_factory.mktemp("store") / "one.db", names=NAMES, problems=40, budgets=(16, 64, 256))
    assign(path, "tiny", dense)
    assign(path, "wanda-50", pruned)
    return path


@pytest.fixture
def store(first_store, tmp_path):
    """A copy of it, to change."""
    return shutil.copyfile(first_store, tmp_path / "results.db")


def assign(store: Path, name: str, folder: Path) -> None:
    """Give a run of the store the checksum of a checkpoint."""
    with sqlite3.connect(store) as database:
        for run_id, text in database.execute("SELECT run_id, model FROM run").fetchall():
            model = json.loads(text)
            if model["name"] == name:
                model["checksum"] = Checkpoint(folder).checksum()
                database.execute("UPDATE run SET model = ? WHERE run_id = ?", (json.dumps(model), run_id))


def refused(words: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(PrunusError, match=words) as caught:
        prunus.card(*arguments, **options)
    assert "\n" not in str(caught.value)


def loaded(text: str) -> Any:
    return ModelCard(text, ignore_metadata_errors=False)


def step_of(recipe: Any, **changes: Any) -> dict[str, Any]:
    names = {PruneRecipe: "prune", DropRecipe: "drop", RecoverRecipe: "recover"}
    return {
        "action": names[type(recipe)],
        "recipe": recipe.to_json(),
        "versions": {"prunus": "0.1.0"},
        "source": {"name": "/home/alice/models/Acme-Reasoner", "checksum": "0" * 64},
        "warnings": [],
    } | changes


@pytest.mark.slow
def test_a_pruned_model_has_a_card_of_its_own_with_its_sources_licence(dense, pruned):
    text = (pruned / "README.md").read_text()
    assert is_ours(text) and "The best model there is" not in text
    data = loaded(text).data
    assert (data.license, data.get("license_name"), data.language) == ("other", "made-up", ["en", "de"])
    assert data.get("license_link") == "https://example.org/licence"
    assert data.base_model == "acme/Acme-Reasoner"  # not acme/foundation, from which its source was made
    assert data.get("base_model_relation") is None and data.eval_results is None
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert {"prunus", "pruned", "sparse", "magnitude", "semi-structured-sparsity"} == set(data.tags)
    step = Checkpoint(pruned).manifest.data["history"][0]
    assert (step["source"]["hub"], step["source"]["revision"]) == ("acme/Acme-Reasoner", "0123abcd")
    assert "Not measured yet" in text and str(dense.parents[2]) not in text and "home of alice" not in text
    zeros = sum(int((Checkpoint(pruned).read_weight(i, f"{one.name}.weight") == 0).sum())
                for i in range(2) for one in Checkpoint(pruned).linears(i))  # fmt: skip
    assert re.search(rf"all of these \| 50\.0 \| {zeros:,} \| {2 * zeros:,} \|", text)


def test_a_step_without_settings_of_its_own_says_so():
    step = StepRecord.of({"action": "recover", "recipe": asdict(RecoverRecipe())})
    assert step_text(step).startswith("**recover**: default settings; recipe ")


@pytest.mark.slow
def test_cards_of_later_steps_keep_licence_and_base_and_tell_the_cost(dense, pruned, tmp_path):
    rows = tmp_path / "secret name.jsonl"
    rows.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in random_rows(4, 24)))
    recipe = RecoverRecipe(calibration=str(rows), sequences=4, epochs=1, step_tokens=24)
    prunus.recover(pruned, tmp_path / "recovered", recipe)
    prunus.drop(tmp_path / "recovered", tmp_path / "short", DropRecipe(blocks="1,"))
    text = (tmp_path / "recovered" / "README.md").read_text()
    cost = Checkpoint(tmp_path / "recovered").manifest.data["history"][1]["cost"]
    assert f"trained on {cost['tokens']:,} tokens, repeats counted, in {cost['steps']} steps" in text
    assert prunus.inspect(tmp_path / "recovered", weights=False).history[1].trained_tokens == cost["tokens"]
    run = Run.of("1", {"manifest": Checkpoint(tmp_path / "short").manifest}, {}, {})
    assert f"{cost['tokens']:,} tokens, repeats counted" in recipe_text(run)
    prunus.card(tmp_path / "recovered", out=tmp_path / "card.md")
    assert f"in {cost['steps']} steps" in (tmp_path / "card.md").read_text()
    assert loaded(text).data.get("base_model_relation") == "finetune"
    assert "all of these | 50.0" in text  # zeros are those of pruning
    short = (tmp_path / "short" / "README.md").read_text()
    assert "1 of its decoder blocks is removed" in short and "Sparsity, counted" not in short
    tags = loaded(short).data.tags or []
    assert "depth-pruning" in tags and "shortgpt" not in tags
    for one in (text, short):
        data = loaded(one).data
        assert (data.license, data.base_model) == ("other", "acme/Acme-Reasoner")
        assert str(tmp_path) not in one and is_ours(one)


@pytest.mark.slow
def test_a_card_with_results_says_what_the_store_says(store, dense, copied):
    told = prunus.card(copied, store=store, margin=0.05)
    text = (copied / "README.md").read_text()
    with Store(store) as opened:
        ours, theirs = (opened.find_run(name) for name in ("wanda-50", "tiny"))
        summary = summarise(opened, ours.run_id).to_json()["tasks"]["tiny"]["budgets"]
    (contrast,) = compare(store, theirs.run_id, [ours.run_id], margin=0.05).to_json()["others"]
    assert (told.run, told.base, told.verdict) == (ours.run_id, theirs.run_id, contrast["verdict"])
    card = loaded(text)
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "Acme-Reasoner, Magnitude 2:4" and len(results) == len(summary) == 3
    for result, (budget, cell) in zip(results, summary.items(), strict=True):
        assert (result.task_type, result.dataset_type, result.metric_type) == ("text-generation", "tiny", "accuracy")
        assert result.metric_value == round(cell["accuracy"], 4)
        assert result.metric_args == {
            "thinking_budget": budget, "problems": 40, "draws": 1,
            "low": round(cell["low"], 4), "high": round(cell["high"], 4),
        }  # fmt: skip
        low, high, mean = (f"{100 * cell[key]:.1f}" for key in ("low", "high", "accuracy"))
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {budget} |")]
        assert f"| {mean} ({low} to {high}) |" in row and row.endswith("| 40 × 1 |")
        assert f"{100 * contrast['tasks']['tiny']['budgets'][budget]['difference']:.1f}".replace("-", "−") in row
        assert f"| {100 * (1 - cell['forced']):.1f} | {cell['tokens']['total']['mean']:.0f} |" in row
    assert f"**{contrast['verdict'].capitalize()}**: " in text and "limit 5 points" in text
    shown = "better, loss ruled out, worse, within the limit, worse, not decided"
    assert sorted(re.findall("Possible verdicts: (.*?)\\.", text)[0].split(", ")) == sorted(shown.split(", "))
    assert "non-inferior" not in text.lower() and "cannot tell" not in text
    assert "Every one of these Linears follows the pattern 2:4" in text
    size = sum(tensor.nbytes for tensor in load_file(copied / "model.safetensors").values())
    assert f"An engine loads {show_bytes(size)}." in text
    assert prunus.card(copied, store=store).verdict  # our own card may be replaced
    main(["card", str(copied), "--store", str(store), "--out", str(copied.parent / "by_command.md"), "-q"])
    assert (copied.parent / "by_command.md").read_text() == (copied / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda store, folder: {"store": store.with_name("none.db")}, "the store .* cannot be read"),
        (lambda store, folder: assign(store, "wanda-50", folder.parent / "dense") or {}, "no run of .*wanda-20"),
        (lambda store, folder: assign(store, "wanda-20", folder) or {}, "has 2 runs of .*choose one with --run: "),
        (lambda store, folder: {"run": "wanda-20"}, "is of other weights than"),
        (lambda store, folder: {"base": "nobody"}, "no run of 'nobody'"),
        (lambda store, folder: {"base_model": "/home/alice/m"}, "is not a hub id"),
        (lambda store, folder: {"store": None, "base": "tiny"}, "name the store, too"),
        (lambda store, folder: {"out": folder / "no" / "card.md"}, "the folder of .* does not exist"),
        (lambda store, folder: (folder / "README.md").write_text("mine") and {}, "was not written by prunus"),
        (lambda store, folder: add_line(folder / "README.md"), "or was edited since"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(store, copied, dense, change, words):
    (copied.parent / "dense").symlink_to(dense)
    asked = {"store": store} | change(store, copied)
    before = (copied / "README.md").read_bytes()
    refused(words, copied, **asked)
    assert (copied / "README.md").read_bytes() == before


def add_line(readme: Path) -> dict[str, Any]:
    readme.write_text(readme.read_text().replace("## How it was made", "## Notes\n\nA note.\n\n## How it was made"))
    return {}


@pytest.mark.slow
def test_a_model_that_prunus_did_not_make_has_no_card(dense, tmp_path):
    refused("cards are of pruned models", dense)
    refused("cards are of pruned models", "tiny")
    assert read_metadata(dense / "README.md")["license"] == "other"


@pytest.mark.slow
def test_an_edited_card_is_replaced_only_if_asked(copied, tmp_path):
    add_line(copied / "README.md")
    told = prunus.card(copied, out=tmp_path / "card.md")
    assert told.out == str(tmp_path / "card.md") and told.verdict is None
    assert "A note." in (copied / "README.md").read_text()
    prunus.card(copied, overwrite=True)
    assert is_ours((copied / "README.md").read_text())


@pytest.mark.slow
def test_a_control_of_the_dense_run_is_not_taken_for_a_second_one(store, copied):
    with Store(store) as opened:
        dense = opened.find_run("tiny")
        opened.add_run(replace(dense, run_id="again", plan=dense.plan | {"aa_control": True}))
        opened.add_samples("again", opened.samples(dense.run_id))
    assert prunus.card(copied, store=store).base == dense.run_id


@pytest.mark.slow
def test_without_a_dense_run_there_is_a_curve_but_no_verdict(store, copied):
    with sqlite3.connect(store) as database:
        database.execute(
            "UPDATE run SET plan = json_set(plan, '$.mode', 'legacy') WHERE json_extract(model, '$.name') = 'tiny'"
        )
    told = prunus.card(copied, store=store)
    assert told.verdict is None and "no run of the dense model with this plan" in told.warnings[0]
    text = (copied / "README.md").read_text()
    assert "| 256 |" in text and "Difference" not in text


@pytest.mark.slow
def test_thinking_switched_off_is_a_budget_by_name(tmp_path, dense, copied):
    store = make_store(tmp_path / "off.db", names=NAMES, problems=12, budgets=(OFF, 16, 64))
    assign(store, "tiny", dense)
    assign(store, "wanda-50", copied)
    prunus.card(copied, store=store)
    text = (copied / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| off |")]
    assert "–" not in row  # with the dense model's accuracy and the difference
    assert loaded(text).data.eval_results[0].metric_args["thinking_budget"] == "off"
    assert "--budgets off,16,64" in text


def test_hostile_names_and_paths_do_nothing(tmp_path):
    for number, bad in enumerate(
        [*HOSTILE, "a | b\n# head\n---\nx: y", "`code` ``` [l](javascript:1) ![i](//x)", "$$x$$"]
    ):
        first = step_of(PruneRecipe(calibration=f"traces:/home/alice/{bad}.jsonl"))
        first["source"] = {"name": f"/home/alice/{bad}", "checksum": "0" * 64, "hub": bad}
        first["warnings"] = [f"{bad} in /home/alice/{bad}/rows.jsonl"]
        first["versions"] = {"prunus": bad}
        first["calibration"] = {"source": f"/home/alice/{bad}", "sequences": 1, "tokens": 2, "sha256": bad}
        source = tmp_path / f"{number}.md"
        source.write_bytes(f"---\n{json.dumps({'license': bad, 'language': [bad], 'base_model': bad})}\n---\n".encode())
        text = card_text(Card([StepRecord.of(first)], read_metadata(source)))
        card = loaded(text)
        assert card.data.base_model is None and is_ours(text)
        tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
        inline = [child for token in tokens for child in token.children or []]
        assert [token.content.strip() for token in tokens if token.type == "html_block"] == [text.splitlines()[-1]]
        kinds = {"text", "text_special", "strong_open", "strong_close", "code_inline"}
        assert {token.type for token in inline} <= kinds
        code = {token.content for token in inline if token.type == "code_inline"}
        assert code == {"prunus eval", "prunus card --store"}
        assert len([token for token in tokens if token.type == "heading_open"]) == 4
        assert not any("$$" in token.content for token in tokens if token.type == "inline")
        assert "alice" not in text


def test_only_the_last_part_of_a_path_is_shown():
    assert public("traces:/home/alice/own.jsonl") == "traces:own.jsonl"
    assert public("C:\\Users\\alice\\m") == "m" and public("c4") == "c4" and public("/x/y/") == "y"
    assert (
        redacted("read /home/alice/my model/a.txt: and/or 3/4", ["/home/alice/my model"])
        == "read my model/a.txt: and/or 3/4"
    )
    assert redacted("(see ~/x/y.json, C:\\a\\b and ../up/z)") == "(see y.json, b and z)"


def test_a_readme_without_metadata_gives_none(tmp_path):
    for text in ("", "# Title\n", "---\n: [broken\n---\n", "---\n- a\n---\n", "---\nlicense: {a: 1}\n---\n", "--- x"):
        (tmp_path / "README.md").write_text(text)
        assert read_metadata(tmp_path / "README.md") == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_metadata(tmp_path / "README.md") == read_metadata(tmp_path / "none.md") == {}


def test_the_origin_of_a_folder_in_the_hubs_cache():
    assert hub_origin(Path("/c/hub/models--a--b-c/snapshots/12ab")) == {"hub": "a/b-c", "revision": "12ab"}
    assert hub_origin(Path("/c/hub/models--gpt2/snapshots/12ab"))["hub"] == "gpt2"
    assert hub_origin(Path("/c/models--a--b/12ab")) == hub_origin(Path("/data/snapshots/x")) == {}


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The name of a command and what click makes of its words."""
    context = cli.commands[words[1]].make_context(words[1], words[2:])
    return words[1], context.params


def made(kind: type, values: dict[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


RECIPES = [
    PruneRecipe(method="alps", sparsity=0.6, calibration="tiny", propagation="true_sequential"),
    PruneRecipe(pattern="2:4", calibration_tokens=64, method="wanda"),
    PruneRecipe(
        allocation="owl",
        spread=0.1,
        scope="mlp",
        group="row",
        method="magnitude",
        rounding="reference",
        dtype="float32",
    ),
    DropRecipe(method="laco", blocks="2", merge=2),
    DropRecipe(blocks="3,4", seed=5),
    RecoverRecipe(calibration="tiny", step_tokens=256, rate=0.02, target="own"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.hash)
def test_commands_make_the_same_recipe_again(recipe):
    (line,) = commands([StepRecord.of(step_of(recipe))], "tiny", None)
    name, values = parsed(shlex.split(line))
    assert name == {"PruneRecipe": "prune", "DropRecipe": "drop", "RecoverRecipe": "recover"}[type(recipe).__name__]
    if values.get("pattern"):
        values.pop("sparsity")
    assert made(type(recipe), values) == recipe


def test_the_command_of_an_evaluation_makes_the_same_plan_again():
    plan = EvalPlan(
        ("tiny", "gsm8k"), (16, 64), samples=3, temperature=0.6, top_p=0.9, limit=8, closing="</t/h>", reuse=False
    )
    steps = [StepRecord.of(step_of(recipe)) for recipe in (PruneRecipe(), RecoverRecipe(), DropRecipe())]
    lines = commands(steps, "acme/Reasoner", StoredPlan.of(plan.to_json()))
    assert [shlex.split(line)[1:4] for line in lines[:3]] == [
        ["prune", "acme/Reasoner", "step-1"], ["recover", "step-1", "step-2"], ["drop", "step-2", "result"],
    ]  # fmt: skip
    for line, model in zip(lines[3:5], ("acme/Reasoner", "result"), strict=True):
        _, values = parsed(shlex.split(line))
        assert made(EvalPlan, values) == plan and values["model"] == model
    assert parsed(shlex.split(lines[5]))[1]["base"] == "acme/Reasoner"


def test_a_recovery_of_a_model_that_another_program_pruned_names_the_dense_one():
    dense = {"name": "acme/Dense", "checksum": "1" * 64, "hub": "acme/Dense"}
    step = StepRecord.of(step_of(RecoverRecipe(), dense=dense))
    (line,) = commands([step], "pruned-elsewhere", None)
    assert shlex.split(line) == ["prunus", "recover", "pruned-elsewhere", "result", "--dense", "acme/Dense"]
    assert loaded(card_text(Card([step], {}))).data.base_model == "acme/Dense"


def test_a_card_needs_nothing_but_the_manifest():
    history = Manifest.of(manifest(PruneRecipe(method="wanda", sparsity=0.2))).history
    text = card_text(Card(history, {}))
    assert "# tiny, Wanda 20 %" in text.replace("\u00a0", " ") and loaded(text).data.base_model is None
    assert loaded(card_text(Card(history, {}, base_model="a/b"))).data.base_model == "a/b"
