"""The profile of base models: its prompt byte by byte, how chains end in it, and which models get it."""

import re
import shutil
from typing import Any

import pytest
from chat_tokenizer import CHATML, byte_tokenizer
from scripted_backend import ScriptedBackend
from tiny_models import make_model

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.budget import Chain, Rules, answer_text, force_budgets
from prunus.evaluation.grading import Grader
from prunus.evaluation.profiles import PROFILES, read_profile
from prunus.evaluation.profiles.catalogue import show_profile
from prunus.evaluation.profiles.control import switch_off
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt, ends_of_turn
from prunus.evaluation.requests import Sampling
from prunus.evaluation.tasks import Problem
from prunus.manifest import Manifest
from prunus.questions import held_out_in
from prunus.recipes import EvalPlan
from prunus.store.store import Store

BASE = PROFILES["base"]
BYTES = byte_tokenizer(["<eos>", "<bos>"], template=None)
EOS: Any = BYTES.convert_tokens_to_ids("<eos>")
PLAN = EvalPlan(tasks=("tiny",), budgets=(0, 16, 32), limit=3, answer_tokens=16)


def test_the_prompt_is_the_examples_and_then_the_problem():
    prompt = decode(BYTES, encode_prompt(BASE, BYTES, "What is {x} + 1?"))
    assert prompt.startswith("Problem: A baker") and prompt.endswith("\n\nProblem: What is {x} + 1?\nSolution:")
    assert prompt.count("\nSolution:") == prompt.count("The answer is ") + 1 == 5
    assert "{problem}" not in prompt


def test_a_tokenizer_that_begins_texts_with_a_token_begins_the_prompt_with_it():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(["<bos>", "<eos>"], template=None)
    tokenizer.bos_token = "<bos>"
    begin: Any = tokenizer.bos_token_id
    assert encode_prompt(BASE, tokenizer, "1+1?")[0] != begin
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A <eos>", special_tokens=[
        ("<bos>", begin), ("<eos>", tokenizer.convert_tokens_to_ids("<eos>"))])  # fmt: skip
    ids = encode_prompt(BASE, tokenizer, "1+1?")
    assert ids[0] == begin and ids.count(begin) == 1 and decode(tokenizer, ids[-9:]) == "Solution:"


def test_the_examples_are_right_by_our_own_grader_and_of_no_evaluation_set():
    examples = re.findall(r"Problem: (.*?)\nSolution: (.*?)\n\n", BASE.prompt, re.DOTALL)
    golds = [("19", "integer", ()), ("C", "choice", tuple("1234")), (r"\frac{1}{3}", "math", ()), ("36", "integer", ())]
    assert [6 * 8 - 29, 36 % 36, 2 / 3 / 2, 15 * 120 / 50] == [19, 0, 1 / 3, 36]
    problems = [Problem(str(n), "t", "q", gold, kind, choices) for n, (gold, kind, choices) in enumerate(golds)]
    with Grader() as grader:
        grades = grader.grade([(one, text) for one, (_, text) in zip(problems, examples, strict=True)])
    assert [(grade.correct, grade.status) for grade in grades] == [(True, "ok")] * 4
    assert not any(held_out_in(text) for text, _ in examples)


def drawn(written: str, budgets, after_closing: str = " 7.\n\nProblem: other", end: bool = False):
    """The draws of one chain that writes this text, and after a forced closing another."""
    prompt = encode_prompt(BASE, BYTES, "3+4?")
    markers = encode_markers(BASE, BYTES, "strict").ending_at({EOS})

    def replay(ids, _seed):
        begun = decode(BYTES, list(ids))[len(decode(BYTES, prompt)) :]
        text = after_closing if begun.endswith("The answer is") else written
        return [*BYTES.encode(text), *([EOS] if end else []), *BYTES.encode("." * 200)]

    (draws,) = force_budgets(
        ScriptedBackend(replay), [Chain(prompt, ("t", "p", 0), 40)], budgets, Rules(markers, Sampling(0.0))
    )
    return draws


def test_a_chain_ends_at_the_next_problem_and_is_its_own_answer():
    chain = " 3 + 4 = 7. The answer is 7.\n"
    size = len(chain)
    found = drawn(chain + "\nProblem: What is 8? Solution: The answer is 8.", (0, 5, size - 1, size, 100))
    assert [draw.ended for draw in found] == ["forced", "forced", "forced", "natural", "natural"]
    assert decode(BYTES, found[3].thinking) == decode(BYTES, found[4].thinking) == chain
    assert [answer_text(BASE, BYTES, draw).strip() for draw in found] == [
        *3 * ["The answer is 7."], *2 * ["3 + 4 = 7. The answer is 7."]
    ]  # fmt: skip
    assert decode(BYTES, list(found[1].closing)) == "\nThe answer is"
    assert not any(draw.answer_truncated for draw in found)
    natural, forced = found[4], found[1]
    with Grader() as grader:
        problem = Problem("p", "t", "3+4?", "7", "integer", ())
        grades = grader.grade([(problem, answer_text(BASE, BYTES, draw)) for draw in (natural, forced)])
    assert [(grade.correct, grade.status) for grade in grades] == [(True, "ok")] * 2


def test_a_chain_that_ends_the_text_ends_too():
    (draw,) = drawn(" It is 7. The answer is 7.", (100,), end=True)
    assert draw.ended == "natural" and decode(BYTES, draw.thinking) == " It is 7. The answer is 7."


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [True, False])
def test_a_model_without_a_template_gets_it_and_is_evaluated(tiny, tmp_path, capsys):
    model = tmp_path / "model"
    if tiny:
        shutil.copytree(tiny_folder(), model)
        (model / "prunus.json").unlink()  # names the profile tiny
    else:
        make_model(model, "llama", max_position_embeddings=2048)
    (model / "chat_template.jinja").unlink()
    run_id = prunus.evaluate(model, PLAN, tmp_path / "s.db").run_id
    said = capsys.readouterr().err
    assert "profile base: the tokenizer has no chat template, as those of base models" in said
    assert "temperature 0.6" in said
    assert ("may be one that thinks" in said) is True  # its tokenizer has <think>
    with Store(tmp_path / "s.db") as store:
        assert len(store.keys(run_id)) == 3 * 3
        assert store.run(run_id).plan.strings.data["prompt"] == BASE.prompt
        assert all(row.forced_tokens > 0 for row in store.samples(run_id) if row.budget == 0)


def test_auto_says_what_takes_effect(capsys):
    resolve_profile("auto", BYTES, Manifest(), given={"temperature": 0.0, "top_p": None, "top_k": None})
    assert "; temperature 0 (greedy)\n" in capsys.readouterr().err
    resolve_profile("auto", BYTES, Manifest(), given={"temperature": 0.25, "top_p": None, "top_k": 7})
    said = capsys.readouterr().err
    assert "; temperature 0.25, top_p 0.95, top_k 7\n" in said and "may be one that thinks" not in said


def test_other_profiles_need_a_template_and_base_needs_none(tmp_path):
    for name, manifest in (("plain", Manifest()), ("auto", Manifest(profile="plain"))):
        with pytest.raises(PrunusError, match=r"no chat template: .*for a base model, use --profile base"):
            resolve_profile(name, BYTES, manifest)
    assert resolve_profile("base", byte_tokenizer([], CHATML), Manifest()) == BASE
    with pytest.raises(PrunusError, match="cannot switch the thinking off"):
        switch_off(BASE, BYTES)
    assert ends_of_turn(BASE, BYTES, tmp_path) == frozenset()  # the next problem ends a text, too
    assert show_profile("base").settings["prompt"] == BASE.prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[prompt]\ntext = "Q:"', r"needs \{problem\} once"),
        ('[prompt]\ntext = "{problem} {problem}"', r"needs \{problem\} once"),
        ('[think]\nstart = "<think>"', "`start` of .think. must be empty"),
        ('[template]\nsystem = "Hi"', "and .template., too"),
        ('[off]\ntemplate = { think = false }', "answer_in_chain|no .off."),
        ('[think]\nmatch = "auto"', r"answer_in_chain needs"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(text, message, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('format = 1\nextends = "base"\n' + text)
    with pytest.raises(PrunusError, match=message):
        read_profile(path)


def test_a_file_may_have_examples_of_its_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('format = 1\nextends = "base"\n[prompt]\ntext = "Q: {problem}\\nA:"')
    own = resolve_profile(str(path), BYTES, Manifest())
    assert decode(BYTES, encode_prompt(own, BYTES, "1+1?")) == "Q: 1+1?\nA:" and own.think_stops == BASE.think_stops
