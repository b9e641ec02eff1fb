"""Exact token budgets for every source, prompt lengths, and evaluation problems that calibration must not hold."""

import json

import pytest
from tiny_models import make_model, random_rows

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.tasks import load_task
from prunus.evaluation.tasks.tiny import FRESH_SEED, problem_set
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.questions import question_digest
from prunus.recipes import DropRecipe, PruneRecipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Checkpoint(make_model(tmp_path_factory.mktemp("budget") / "m"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sources(tmp_path):
    words = "take 12 steps from here to there and back again, then stop. " * 40
    ids = [row[: 5 + 3 * number] for number, row in enumerate(random_rows(20, 80))]
    (tmp_path / "a.txt").write_text(words)
    return {
        "text file": str(tmp_path / "a.txt"),
        "documents": write(tmp_path / "d.jsonl", [{"text": words}, {"text": words[7:]}]),
        "messages": write(tmp_path / "m.jsonl", [{"messages": [{"role": "user", "content": words}]}] * 3),
        "ids": write(tmp_path / "i.jsonl", [{"token_ids": row} for row in ids]),
        "traces": "traces:" + write(tmp_path / "t.jsonl", [{"token_ids": row, "prompt_tokens": 4} for row in ids]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [PruneRecipe, DropRecipe])
@pytest.mark.parametrize("tokens", [1, 20, 101, 333])
def test_every_source_gives_exactly_the_tokens_asked_for(model, sources, tokens, recipe):
    for name, source in sources.items():
        got = load_calibration(recipe(calibration=source, seqlen=20, sequences=1, calibration_tokens=tokens), model)
        assert got.tokens == tokens, name
        assert all(got.sequences), name


def test_ids_are_taken_in_random_order_and_only_the_last_is_cut(model, sources):
    whole = {tuple(row[: 5 + 3 * number]) for number, row in enumerate(random_rows(20, 80))}

    def chosen(seed):
        recipe = PruneRecipe(calibration=sources["ids"], calibration_tokens=200, seed=seed)
        return load_calibration(recipe, model).sequences

    *full, last = chosen(0)
    assert all(tuple(ids) in whole for ids in full) and len(set(map(tuple, full))) == len(full)
    assert any(list(ids[: len(last)]) == last for ids in whole)
    assert chosen(0) == chosen(0) != chosen(1)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("ids", {"calibration_tokens": 671}, "holds 670 tokens, fewer than --calibration-tokens 671"),
        ("text file", {"seqlen": 20, "calibration_tokens": 10**6}, "tokens, too few for"),
        ("ids", {"calibration_tokens": 0}, "calibration_tokens must be at least 1"),
    ],
)
def test_too_few_tokens_are_refused(model, sources, source, settings, message):
    with pytest.raises(PrunusError, match=message):
        load_calibration(PruneRecipe(calibration=sources[source], **settings), model)


def test_prompt_lengths_are_kept_cut_and_read_back(model, sources, tmp_path):
    got = load_calibration(PruneRecipe(calibration=sources["traces"], calibration_tokens=100, seed=3), model)
    assert got.prompts == [min(4, len(ids)) for ids in got.sequences]
    (tmp_path / "again.jsonl").write_text(got.to_jsonl())
    again = load_calibration(PruneRecipe(calibration=f"traces:{tmp_path / 'again.jsonl'}"), model)
    assert again.sequences == got.sequences and again.prompts == got.prompts
    assert load_calibration(PruneRecipe(calibration=sources["ids"]), model).prompts == []
    assert "prompt_tokens" not in Calibration([[1, 2]], "x", []).to_jsonl()


@pytest.mark.parametrize("prompt", [-1, 3, "2", None, 1.0])
def test_wrong_prompt_lengths_are_refused(model, tmp_path, prompt):
    path = write(tmp_path / "t.jsonl", [{"token_ids": [5, 6], "prompt_tokens": prompt}])
    with pytest.raises(PrunusError, match=r"t.jsonl, line 1: prompt_tokens .* is not between 0 and 2"):
        load_calibration(PruneRecipe(calibration=f"traces:{path}"), model)


def held_out_sources(tmp_path, question):
    tokenizer = load_tokenizer(tiny_folder())
    chat = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n1"
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    filler = "Nothing to see here. " * 30
    (tmp_path / "a.txt").write_text(f"{filler}\n{question}\n{filler}")
    digest = question_digest(question)
    return {
        "text file": str(tmp_path / "a.txt"),
        "text": write(tmp_path / "d.jsonl", [{"text": filler}, {"text": f"{filler}\n\n{question.upper()}"}]),
        "message": write(tmp_path / "m.jsonl", [{"messages": [{"role": "user", "content": question}]}]),
        "ids": write(tmp_path / "i.jsonl", [{"token_ids": ids}]),
        "digest": "traces:" + write(tmp_path / "t.jsonl", [{"token_ids": [5, 6], "problem_digest": digest}]),
    }


@pytest.mark.parametrize("problem", [load_task("tiny", 1)[0], problem_set(FRESH_SEED, 1)[7]])
def test_evaluation_problems_are_refused_in_every_form(model, tmp_path, problem):
    for name, source in held_out_sources(tmp_path, problem.question).items():
        with pytest.raises(PrunusError, match="holds a question of the evaluation set tiny"):
            load_calibration(PruneRecipe(calibration=source, seqlen=20, sequences=1), model)
            pytest.fail(name)


@pytest.mark.slow
def test_other_problems_pass_in_every_form(model, tmp_path):
    for source in held_out_sources(tmp_path, load_task("tiny-train", 1)[0].question).values():
        assert load_calibration(PruneRecipe(calibration=source, seqlen=20, sequences=1), model).sequences


def test_the_refusal_leaves_nothing_behind(model, tmp_path):
    source = held_out_sources(tmp_path, load_task("tiny", 2)[1].question)["ids"]
    with pytest.raises(PrunusError, match="must not be calibrated on what measures it"):
        prunus.prune(model.folder, tmp_path / "out", PruneRecipe(calibration=source))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_the_built_in_calibration_holds_no_evaluation_problem():
    tiny = Checkpoint(tiny_folder())
    got = load_calibration(PruneRecipe(calibration="tiny", sequences=10**6), tiny)
    assert len(got.sequences) == 256


def test_without_a_tokenizer_it_is_said_that_nothing_was_checked(tmp_path, sources):
    folder = make_model(tmp_path / "bare")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    got = load_calibration(PruneRecipe(calibration=sources["ids"], sequences=20), Checkpoint(folder))
    assert "without a tokenizer it cannot be checked" in got.warnings[0]
