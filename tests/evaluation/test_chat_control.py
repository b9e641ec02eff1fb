"""Control native: the requests to a chat server, the draws read from its replies, and adherence in the reports."""

import csv
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from babbling import babble
from chat_server import chatting
from chat_templates import CASES, HARMONY
from chat_tokenizer import CHATML, byte_tokenizer
from fake_store import make_store
from scripted_backend import ScriptedBackend
from switched_thinking import SWITCHED
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends import opened, transport
from prunus.evaluation.backends.chat import chat_request, drawn, ignored, read_reply
from prunus.evaluation.budget import Draw
from prunus.evaluation.grading import Grade, Grader
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.control import NativeControl, native_control
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.resolved_plan import ResolvedPlan, resolve_plan
from prunus.manifest import Manifest
from prunus.recipes import EvalPlan
from prunus.results.comparison import compare
from prunus.results.summary import summarise
from prunus.settings.budgets import OFF
from prunus.settings.engines import BACKENDS, BackendEntry, EngineOptions
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.studies.engine import StudyEngine
from prunus.studies.variants import whole_checkpoint

PLAN = EvalPlan(
    tasks=("tiny",), budgets=(0, 8, 16), samples=2, limit=4, engine="openai", control="native", temperature=1.0
)
SEED_TEMPLATE = CHATML + "{{ thinking_budget }}"


def rows_of(server: Any, path: Path, plan: EvalPlan = PLAN) -> tuple[str, list[Any]]:
    run = prunus.evaluate("tiny", plan, path, options=EngineOptions(url=server.url, concurrency=3)).run_id
    with Store(path) as store:
        return run, store.samples(run, texts=True)


def resolved(plan: EvalPlan = PLAN) -> ResolvedPlan:
    return resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, plan)


def draws_of(server: Any, plan: EvalPlan = PLAN) -> tuple[ResolvedPlan, dict[tuple[int, int, int], Draw]]:
    """The draw of every row (problem, draw, budget), without store and grader."""
    work, chains = resolved(plan), [(i, n) for i in range(4) for n in range(2)]
    options = EngineOptions(url=server.url, concurrency=3)
    with opened("openai", tiny_folder(), "cpu", 0, options, "native") as chats:
        lots = [*chats.draws(work, [chains], list, frozenset(), None)]
    return work, {(*chain, draw.budget): draw for lot in lots for chain, draws in lot for draw in draws}


# ----- the plan and the profile


def test_plans_without_native_control_keep_their_hash():
    assert "control" not in EvalPlan(tasks=("tiny",)).to_json()
    assert PLAN.to_json()["control"] == "native" and not PLAN.reuse and EvalPlan.from_json(PLAN.to_json()) == PLAN
    for changes, message in (
        ({"engine": "hf"}, "control native needs the engine openai"),
        ({"wait": 1}, "leave --wait and --closing out"),
        ({"closing": "</think>"}, "leave --wait and --closing out"),
        ({"control": "soft"}, "control 'soft' is not known"),
    ):
        with pytest.raises(PrunusError, match=message):
            replace(PLAN, **changes)


def test_a_backend_is_without_native_control_unless_its_entry_says_so(monkeypatch):
    monkeypatch.setitem(BACKENDS, "hf", BackendEntry("toy:load", 8))
    with pytest.raises(PrunusError, match="control native needs the engine openai"):
        EvalPlan(("tiny",), (16,), engine="hf", control="native")


@pytest.mark.parametrize(
    ("name", "tokens", "template", "fields"),
    [
        ("qwen3", ("<think>", "</think>"), CHATML, {"thinking_token_budget": 8192}),
        ("seed", ("<seed:think>",), SEED_TEMPLATE, {"chat_template_kwargs": {"thinking_budget": 8192}}),
        ("harmony", HARMONY, CASES["gpt-oss"][1], {"reasoning_effort": "medium"}),
    ],
)
def test_a_family_tells_the_budget_in_its_own_way(name, tokens, template, fields):
    control = native_control(PROFILES[name], byte_tokenizer(tokens, template), (OFF, 1024, 8192))
    assert control.fields(8192) == fields and str(control)


@pytest.mark.parametrize(
    ("name", "budgets", "message"),
    [
        ("plain", (512,), r"profile 'plain' has no native control of the budget"),
        ("s1", (512,), r"profile 's1' has no native control"),
        ("seed", (512,), "template option thinking_budget, which the model's chat template lacks"),
        ("harmony", (1024, 2048), r"budget 2048 is no level .*: .* 1024, 8192, 24576 \(reasoning_effort low \(1024\)"),
    ],
)
def test_a_family_without_a_way_is_refused(name, budgets, message):
    with pytest.raises(PrunusError, match=message):
        native_control(PROFILES[name], byte_tokenizer(()), budgets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("template = 'y'", r"\[native\] takes one of"),
        ("engine = false\nefforts = { low = 'few' }", "must be numbers of tokens"),
        ("engines = true", r"'engines' is not known in \[native\]; did you mean 'engine'"),
    ],
)
def test_a_wrong_table_of_a_profile(tmp_path, text, message):
    (tmp_path / "lab.toml").write_text(f'format = 1\nextends = "think-tags"\n[native]\n{text}\n')
    with pytest.raises(PrunusError, match=message):
        resolve_profile(str(tmp_path / "lab.toml"), byte_tokenizer(()), Manifest())


# ----- requests and replies


@pytest.mark.slow
@pytest.mark.parametrize("says", ["reasoning", "reasoning_content", "inline", "counted", "ids"])
def test_draws_hold_what_the_server_wrote(says):
    """Every draw against what the server wrote for its seed; with ids, also where texts would give other tokens."""
    with chatting(TOKENIZER, says="reasoning" if says == "ids" else says, with_ids=says == "ids") as server:
        work, draws = draws_of(server)
    by_seed = {body["seed"]: written for body, *written in server.written}
    assert len(by_seed) == len(draws) == 4 * 2 * 3 and len({draw.thinking_tokens for draw in draws.values()}) > 3
    for (index, number, budget), draw in draws.items():
        thinking, answer = by_seed[work.rules.seed_of(work.chain(index, number), "native", budget)]
        again = [TOKENIZER.encode(decode(TOKENIZER, ids), add_special_tokens=False) for ids in (thinking, answer)]
        assert draw.answer == (answer if says == "ids" else again[1])
        assert draw.thinking == (thinking if says == "ids" else [] if says == "counted" else again[0])
        assert draw.thinking_tokens == (len(thinking) if says == "counted" else len(draw.thinking))
        assert draw.ended == ("forced" if draw.thinking_tokens >= budget else "natural") and not draw.answer_truncated


@pytest.mark.slow
def test_rows_in_a_store(tmp_path, capsys):
    """Each row is stored as it comes, and a second call asks for the missing ones only."""
    path, options = tmp_path / "results.db", {"with_ids": True, "lengths": (3, 9, 30)}
    with chatting(TOKENIZER, **options) as server:
        run, rows = rows_of(server, path)
        probes = len(server.seen) - 24
        assert len(rows) == 24 and 3 <= probes <= 5, "one request that checks the server, and pairs that test the field"
        with closing(sqlite3.connect(path)) as connection, connection as raw:
            raw.execute("DELETE FROM sample WHERE budget = 8 AND draw = 1")
        server.seen.clear()
        assert rows_of(server, path) == (run, rows) and len(server.seen) == probes + 4
    with Store(path) as store:
        assert store.run(run).environment.data["api"] == "chat completions"
    work, draws = resolved(), {}
    assert work.run_id == run and work.plan.data["native"] == {"parameter": "thinking_token_budget"}
    with chatting(TOKENIZER, **options) as server:
        _, draws = draws_of(server)
    for row in rows:
        index = next(i for i, problem in enumerate(work.problems) if problem.id == row.problem_id)
        draw = draws[index, row.draw, row.budget]
        assert (row.thinking_tokens, row.answer_tokens, row.ended) == (len(draw.thinking), len(draw.answer), draw.ended)
        assert (row.thinking, row.text) == (decode(TOKENIZER, draw.thinking), decode(TOKENIZER, draw.answer))
    assert "control native: the engine's own request field" in capsys.readouterr().err


def test_what_the_server_is_asked():
    with chatting(TOKENIZER, owner="vllm") as server:
        work, _ = draws_of(server)
    body = next(one for one in server.seen if one["thinking_token_budget"] == 16)
    assert body["messages"] == [{"role": "user", "content": body["messages"][0]["content"]}]
    assert body["messages"][0]["content"] in {problem.question for problem in work.problems}
    expected = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stream": False}
    assert expected.items() <= body.items()
    assert body["max_tokens"] == 16 + work.rules.markers.longest - len(work.rules.markers.start) + 64 + 1
    with chatting(TOKENIZER, owner="other") as server:
        draws_of(server)
    assert {"max_completion_tokens", "seed", "thinking_token_budget"} <= set(server.seen[0])
    assert not {"top_k", "max_tokens", "min_p"} & set(server.seen[0]) and server.seen[0]["seed"] < 2**31


@pytest.mark.parametrize("owner", ["vllm", "other"])
def test_conversations_have_the_fields_of_every_request(owner):
    asked = {"repetition_penalty": 1.05, "min_p": 0.05}
    with (
        chatting(TOKENIZER, owner=owner) as server,
        opened("openai", tiny_folder(), "cpu", 0, EngineOptions(url=server.url, request=asked), "native") as chats,
    ):
        assert asked.items() <= chat_request(resolved(), chats, (0, 0, 16)).items()


@pytest.mark.slow
def test_off_beside_native_budgets():
    """It needs an option of the template; a block cannot be told in messages."""
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.chat_template = SWITCHED
    plan = replace(PLAN, budgets=(OFF, 16), profile="qwen3")
    work = resolve_plan(ModelFolder(tiny_folder()), tokenizer, plan)
    with (
        chatting(TOKENIZER) as server,
        opened("openai", tiny_folder(), "cpu", 0, EngineOptions(url=server.url), control="native") as chats,
    ):
        off, on = (chat_request(work, chats, (0, 0, budget)) for budget in (OFF, 16))
    assert (off["chat_template_kwargs"], on["chat_template_kwargs"]) == (
        {"enable_thinking": False},
        {"enable_thinking": True},
    )
    assert "thinking_token_budget" not in off and on["thinking_token_budget"] == 16
    assert off["seed"] != on["seed"] and off["max_tokens"] == 1024 + 1
    tokenizer.chat_template = CHATML
    with pytest.raises(PrunusError, match="appends an empty block, which a chat request cannot hold"):
        resolve_plan(ModelFolder(tiny_folder()), tokenizer, plan)


def test_a_budget_that_the_model_is_only_told_does_not_bound_its_tokens(tmp_path):
    text = 'format = 1\nextends = "tiny"\n[native]\nengine = false\nefforts = { low = 16, high = 64 }\n'
    (tmp_path / "lab.toml").write_text(text)
    plan = replace(PLAN, budgets=(16, 64), profile=str(tmp_path / "lab.toml"))
    with chatting(TOKENIZER, context=700, with_ids=True) as server:
        _, draws = draws_of(server, plan)
    asked = {(body["reasoning_effort"], body["max_tokens"] > 450) for body in server.seen}
    assert asked == {("low", True), ("high", True)} and {draw.ended for draw in draws.values()} == {"natural"}
    assert max(draw.thinking_tokens for (_, _, budget), draw in draws.items() if budget == 16) == 30


def test_a_long_answer_is_cut_as_under_its_cap():
    work = resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, replace(PLAN, answer_tokens=2))
    message = {"reasoning": "1", "content": "1+2=3"}
    reply = read_reply({"choices": [{"message": message, "finish_reason": "stop"}]})
    draw = drawn(work, (0, 0, 16), reply)
    assert (draw.answer, draw.answer_truncated) == (TOKENIZER.encode("1+2=3")[:2], True)
    assert not drawn(work, (0, 0, 16), reply._replace(answer="1")).answer_truncated
    assert drawn(work, (0, 0, 16), reply._replace(answer="1", truncated=True)).answer_truncated


# ----- engines that do something else


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keeps": False, "lengths": (300,)}, "seems to ignore the budget (the engine's own request field)"),
        ({"lengths": (0,)}, "no reply has any thinking"),
        ({}, ""),
        ({"lengths": (3,)}, ""),
    ],
)
def test_an_engine_that_ignores_the_budget(settings, message):
    with chatting(TOKENIZER, with_ids=True, **settings) as server:
        work, draws = draws_of(server, replace(PLAN, answer_tokens=300))
    found = ignored(work, list(draws.values()))
    assert message in found if message and found else found is None


FIELDS = {
    "vllm": "thinking_token_budget",
    "sglang": "custom_params.thinking_budget",
    "llamacpp": "thinking_budget_tokens",
    "other": "thinking_token_budget",
}


@pytest.mark.slow
@pytest.mark.parametrize("owner", FIELDS)
def test_every_engine_gets_the_field_by_which_it_ends_the_thinking(tmp_path, owner):
    """Its chains keep the budget; the engine that ignores the field is refused by the field's name."""
    with chatting(TOKENIZER, with_ids=True, owner=owner, budget=FIELDS[owner], lengths=(30, 300)) as server:
        _, rows = rows_of(server, tmp_path / "results.db")
    assert {row.thinking_tokens for row in rows if row.budget == 8} == {8}
    with (
        chatting(TOKENIZER, with_ids=True, owner=owner, budget="budget", lengths=(3, 30)) as server,
        pytest.raises(PrunusError, match=rf"ignores the request field '{FIELDS[owner]}' \(0\)"),
    ):
        rows_of(server, tmp_path / "ignored.db")
    assert not (tmp_path / "ignored.db").exists()


@pytest.mark.slow
def test_a_server_that_ignores_only_the_budget_0_takes_others(tmp_path):
    """As llama.cpp does."""
    asked = {"with_ids": True, "owner": "llamacpp", "budget": FIELDS["llamacpp"], "least": 1, "lengths": (30,)}
    with chatting(TOKENIZER, **asked) as server, pytest.raises(PrunusError, match=r"leave budget 0 out, or"):
        rows_of(server, tmp_path / "results.db")
    with chatting(TOKENIZER, **asked) as server:
        _, rows = rows_of(server, tmp_path / "results.db", replace(PLAN, budgets=(8, 16)))
    assert {(row.budget, row.thinking_tokens) for row in rows} == {(8, 8), (16, 16)}


@pytest.mark.slow
def test_a_server_that_thinks_little_or_in_secret_is_not_refused(tmp_path):
    for number, settings in enumerate(({"lengths": (3,)}, {"lengths": (0,)}, {"says": "content"})):
        with chatting(TOKENIZER, keeps=False, **settings) as server:
            _, rows = rows_of(server, tmp_path / f"{number}.db")
        assert {row.budget for row in rows} == set(PLAN.budgets)


def test_a_warning_names_the_share_that_thought_far_longer(tmp_path):
    with chatting(TOKENIZER, with_ids=True, keeps=False, lengths=(300,)) as server:
        work, draws = draws_of(server, replace(PLAN, answer_tokens=300))
    assert "16 of 16 chains that reached it thought far longer, " in str(ignored(work, list(draws.values())))


def test_a_few_tokens_beyond_the_budget_are_the_engines_closing():
    work = resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, PLAN)
    reply = read_reply({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]})
    draws = [drawn(work, (0, 0, 16), reply._replace(thinking="1" * 40)) for _ in range(4)]
    assert {draw.thinking_tokens for draw in draws} == {40} and ignored(work, draws) is None
    assert ignored(work, [replace(draw, thinking=[30] * 57) for draw in draws]) is not None


def test_half_of_a_surrogate_pair_in_a_reply_is_a_question_mark():
    """No tokenizer and no store takes it."""
    message = {"reasoning": "so \ud83d", "content": "4\udcff"}
    reply = read_reply({"choices": [{"message": message, "finish_reason": "length"}]})
    assert (reply.thinking, reply.answer) == ("so ?", "4?")


def test_a_server_that_refuses_the_budget_leaves_nothing_behind(tmp_path):
    with chatting(TOKENIZER, refuses="thinking_token_budget") as server, pytest.raises(PrunusError) as caught:
        rows_of(server, tmp_path / "results.db")
    assert "answers 400: thinking_token_budget is set but reasoning_config is not configured" in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "results.db").exists() and len(server.seen) == 1


def test_the_command(tmp_path, capsys):
    with chatting(TOKENIZER, with_ids=True) as server:
        words = ["eval", "tiny", "--task", "tiny", "--limit", "4", "--budgets", "8,16", "--engine", "openai"]
        main([*words, "--url", server.url, "--control", "native", "--store", str(tmp_path / "results.db")])
    printed = capsys.readouterr().out
    assert "dense, native control" in printed and "thinking tokens over the budget in % (median)" in printed


STUDY = """\
models = ["tiny"]
[eval]
tasks = ["tiny"]
limit = 4
budgets = [0, 8, 16]
samples = 2
temperature = 1.0
engine = "openai"
control = ["forced", "native"]
[engine]
url = "{url}"
"""


@pytest.mark.slow
def test_a_study_has_cells_of_both_controls(tmp_path):
    """The rows of each are those of `prunus eval`; the second run asks for nothing."""
    with chatting(TOKENIZER, with_ids=True, backend=ScriptedBackend(babble)) as server:
        file = tmp_path / "study.toml"
        file.write_text(STUDY.format(url=server.url))
        done = prunus.study(file, out=tmp_path / "out").to_json()
        asked = len(server.seen)
        prunus.study(file, out=tmp_path / "out")
        assert len(server.seen) == asked and asked >= 4 * 2 * 3
        run, rows = rows_of(server, tmp_path / "native.db")
        forced, of_forced = rows_of(server, tmp_path / "forced.db", replace(PLAN, control="forced", reuse=True))
    with Store(done["store"]) as store:
        assert store.samples(run, texts=True) == rows and store.samples(forced, texts=True) == of_forced
        assert {one.run_id for one in store.runs()} == {run, forced}
        assert store.run(run).environment.data["api"] == "chat completions"
    assert len(rows) == len(of_forced) == 24 and done["cells"] == 2
    with pytest.raises(PrunusError, match="control native asks one server from here; leave --ray out"):
        prunus.study(file, out=tmp_path / "out", ray="auto")


@pytest.mark.slow
def test_find_decides_under_native_control_where_the_engine_ends_the_thinking(tmp_path, monkeypatch):
    """The server's chains are short but those of the second rung, which all reach their budget."""
    with chatting(TOKENIZER, with_ids=True, backend=ScriptedBackend(babble)) as server:

        @contextmanager
        def served(self: StudyEngine, model: Any, variant: Any, as_gguf: bool) -> Iterator[Path]:
            server.lengths = (30,) if variant.name == "magnitude-20" else (3, 9)
            yield whole_checkpoint(self.grid, model, variant, self.folder, self.device)

        reached = EngineOptions(url=server.url, served_model="tiny")
        monkeypatch.setattr(StudyEngine, "served", served)
        monkeypatch.setattr("prunus.studies.engine.running_server", lambda *_: nullcontext(reached))
        # Every model solves everything: with nothing to lose, nothing would be certified.
        monkeypatch.setattr(Grader, "grade", lambda _, items: [Grade("1", True, "ok") for _ in items])
        plan = replace(PLAN, limit=60, samples=1, budgets=(8, 16))
        rules: dict[str, Any] = {"margin": 0.3, "stop_margin": 0.2, "methods": ["magnitude"]}
        engine, out, store = EngineOptions(serve="vllm {model} {port}"), tmp_path / "out", tmp_path / "results.db"
        found = prunus.find("tiny", out, plan, "0.1:0.3:0.1", store=store, options=engine, **rules).to_json()
        asked = len(server.seen)
        assert prunus.find("tiny", tmp_path / "again", plan, "0.1:0.3:0.1", store=store, options=engine, **rules)
    assert len(server.seen) == asked
    assert [rung["word"] for rung in found["ladders"]["magnitude"]] == ["certified", "refused"]
    assert found["found"] == "magnitude-10" and prunus.verify(out / "certificate.json", store).differences == []
    rung = json.loads((out / "certificate.json").read_text())["shown"]["ladders"][0]["rungs"][1]
    assert rung["failed"] == ["ends"]
    with Store(store) as opened:
        rows = opened.samples(rung["run"])
    assert {row.ended for row in rows} == {"forced"} and len(rows) == 2 * rung["looked"]
    assert rung["tokens"] == sum(row.thinking_tokens + row.answer_tokens for row in rows), "no budget shares a chain"


def test_find_refuses_control_that_does_not_end_the_thinking(tmp_path, monkeypatch):
    told = NativeControl(template="thinking_budget")
    monkeypatch.setattr("prunus.evaluation.resolved_plan.native_control", lambda *_: told)
    with pytest.raises(PrunusError, match="does not end the thinking there, so no row says whether a chain ended by"):
        prunus.find("tiny", tmp_path / "out", PLAN, "0.1", options=EngineOptions(serve="vllm {model} {port}"))


@pytest.mark.slow
def test_a_server_with_fewer_places_than_the_window_refuses_and_nothing_is_lost(tmp_path, monkeypatch):
    """By default as many requests at once as the server takes."""
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.001)
    with chatting(TOKENIZER, with_ids=True, limit=3, seconds=0.01) as server:
        run = prunus.evaluate("tiny", PLAN, tmp_path / "full.db", options=EngineOptions(url=server.url)).run_id
    assert server.refused > 0 and server.most_together == 3
    with chatting(TOKENIZER, with_ids=True) as server:
        again, rows = rows_of(server, tmp_path / "results.db")
    with Store(tmp_path / "full.db") as store:
        assert again == run and store.samples(run, texts=True) == rows


# ----- results


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A forced run and a native one of the same model, whose chains go beyond their budgets."""
    path = make_store(
        tmp_path_factory.mktemp("native") / "results.db", names=("tiny",), problems=12, budgets=(0, 16, 64)
    )
    with Store(path) as opened:
        run = opened.find_run("tiny")
        rows = [replace(s, thinking_tokens=s.thinking_tokens * 2) for s in opened.samples(run.run_id, texts=True)]
        plan = run.plan | {"control": "native", "reuse": False, "native": {"parameter": "thinking_token_budget"}}
        opened.add_run(Run.of("e" * 12, run.model, plan, run.environment))
        opened.add_samples("e" * 12, rows)
    return path


def test_adherence_is_what_was_used_over_what_was_asked(store):
    with Store(store) as opened:
        rows = [row for row in opened.samples("e" * 12) if row.budget == 16]
        cells = summarise(opened, "e" * 12).to_json()["tasks"]["tiny"]["budgets"]
        forced = summarise(opened, opened.runs()[0].run_id).to_json()
    used = [row.thinking_tokens / 16 for row in rows]
    assert cells[16]["adherence"] == {"used": median(used), "over": sum(one > 1 for one in used) / len(used)}
    assert cells[16]["adherence"]["over"] > 0 and cells[0]["adherence"] is None
    assert forced["tasks"]["tiny"]["budgets"][64]["adherence"]["over"] == 0
    frame: Any = prunus.open(store).curve("e" * 12)
    row = frame[frame["budget"] == "16"].iloc[0]
    assert (row["used_per_budget"], row["over_budget_share"]) == tuple(cells[16]["adherence"].values())
    assert set(prunus.open(store).runs()["control"]) == {"forced", "native"}


def test_native_and_forced_runs_are_not_compared_unnoticed(store):
    with Store(store) as opened:
        first = opened.runs()[0].run_id
    with pytest.raises(PrunusError, match=r"is left out: control is native, not forced; name it to compare"):
        compare(store, first, resamples=200)
    entry = compare(store, first, ["e" * 12], resamples=200).to_json()["others"][0]
    assert entry["warnings"] == [
        "plans differ, so the difference is not the model's alone: control is native, not forced"
    ]


def test_the_page_names_the_control_and_shows_adherence(store, tmp_path):
    page = prunus.report(store, tmp_path / "native.html", base="e" * 12, csv=tmp_path / "tables").read_text("utf-8")
    assert "The engine or the model keeps the budget (native control)" in page
    assert "dense, native control" in page and "thought beyond" in page
    table = list(csv.DictReader((tmp_path / "tables" / "tokens-tiny.csv").read_text().splitlines()))
    assert [row["budget"] for row in table] == ["0", "16", "64"] and float(table[1]["over"]) > 0
    prunus.report(store, tmp_path / "forced.html", csv=tmp_path / "forced")  # the forced run is the base by default
    assert "used_per_budget" not in (tmp_path / "forced" / "tokens-tiny.csv").read_text()
