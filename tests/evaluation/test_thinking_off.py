"""Budget `off`: how thinking is switched off, what is sampled, and where the rows appear."""

import copy
import csv
import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from babbling import babble
from chains_by_hand import CHAINS, GREEDY, MARKERS, answer_by_hand, noise
from chat_templates import CASES, CHAT, GEMMA, GRANITE, HARMONY, QWEN, STOP, USER, ending
from chat_tokenizer import CHATML, byte_tokenizer
from fake_store import make_store
from scripted_backend import ScriptedBackend
from switched_thinking import EMPTY, SWITCHED
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation import pipeline
from prunus.evaluation import run as loop
from prunus.evaluation.budget import Draw, Rules, force_budgets, force_budgets_as_completed
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.catalogue import show_profile
from prunus.evaluation.profiles.control import switch_off
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.resolved_plan import problem_row, resolve_plan
from prunus.manifest import Manifest
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.reporting.report_data import ReportData
from prunus.reporting.sections.budgets import accuracy_against_budget
from prunus.results.summary import summarise
from prunus.settings.budgets import OFF, budget_of
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.studies.file import read_study

PLAN = EvalPlan(tasks=("tiny",), budgets=(OFF, 0, 16), limit=5, samples=2, batch_size=4, temperature=1.0)
# ----- the value


def test_off_has_a_name_and_a_number():
    assert (str(OFF), f"{OFF:>5}", repr([OFF]), int(OFF)) == ("off", "  off", "[off]", -1)
    assert sorted([512, 0, OFF]) == [OFF, 0, 512]
    assert copy.deepcopy(OFF) is OFF is pickle.loads(pickle.dumps(OFF)) is prunus.OFF  # noqa: S301  our own
    assert [budget_of(value) for value in ("off", -1, -1.0, "64", 0)] == [OFF, OFF, OFF, 64, 0]


def test_a_plan_stores_off_by_its_name_and_refuses_its_number():
    plan = EvalPlan(tasks=("tiny",), budgets=("off", 0, 512))  # pyright: ignore[reportArgumentType]
    assert plan.budgets == (OFF, 0, 512) and plan.to_json()["budgets"] == ["off", 0, 512]
    assert EvalPlan.from_json(plan.to_json()) == plan
    assert EvalPlan(tasks=("tiny",), budgets=(0, 512)).to_json()["budgets"] == [0, 512]
    for budgets, message in (
        ((-1, 0), "budget -1 is negative"),
        ((0, OFF), "off must come first"),
        ((OFF, OFF), "off must come first"),
        (("of", 0), "must be a list, each a whole number or off"),
    ):
        with pytest.raises(PrunusError, match=message):
            EvalPlan(tasks=("tiny",), budgets=budgets)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PrunusError, match="'chain_tokens' must be a whole number"):
        TraceRecipe(tasks=("tiny-train",), chain_tokens="off")  # pyright: ignore[reportArgumentType]


# ----- the switch

R1 = CASES["R1-Distill"][1]
GLM = (
    USER
    + "{{ '<|user|>\n' + m['content'] + ('/nothink' if enable_thinking is false else '') }}"
    + STOP
    + "{{ '<|assistant|>' + ('\n<think></think>' if enable_thinking is false else '') }}"
)
MODEL_SETTINGS = CHATML + "{% if reasoning_effort %}{{ '{' + reasoning_effort + '}' }}{% endif %}"
TURN_ = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
# name: markers that are tokens, template, profile, prompt with the thinking switched off, how
SWITCHES = {
    "Qwen3": (QWEN, SWITCHED, "qwen3", TURN_ + EMPTY, {"template": {"enable_thinking": False}}),
    "Thinking-2507": (QWEN, ending("+ '<think>\n'"), "qwen3", TURN_ + EMPTY, {"block": EMPTY}),
    "an ignored option": (QWEN, ending("+ '<think>\n'", "enable_thinking"), "qwen3", TURN_ + EMPTY, {"block": EMPTY}),
    "R1-Distill": (QWEN[:2], R1, "think-tags", "<User>2+2?<Assistant>" + EMPTY, {"block": EMPTY}),
    "OLMo-3-Think": (CHAT, ending("+ '<think>'"), "think-tags", TURN_ + EMPTY, {"block": EMPTY}),
    "EXAONE-Deep": (
        CHAT, ending("+ '<thought>\n'"), "think-tags", TURN_ + "<thought>\n\n</thought>\n\n",
        {"block": "<thought>\n\n</thought>\n\n"},
    ),
    "GLM-4.5": (
        ("<|user|>",), GLM, "think-tags", "<|user|>\n2+2?/nothink<|assistant|>\n<think></think>",
        {"template": {"enable_thinking": False}},
    ),
    "Gemma 4": (
        ("<|channel>", "<channel|>", "<turn|>"), GEMMA, "gemma-channel",
        "<|turn>user\n2+2?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
        {"template": {"enable_thinking": False}},
    ),
    "Granite 3.2": ((), GRANITE, "granite", "2+2?", {"template": {"thinking": False}}),
    "Magistral": (
        ("[THINK]", "[/THINK]", *CHAT), MODEL_SETTINGS, "brackets", TURN_ + "{none}",
        {"template": {"reasoning_effort": "none"}},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SWITCHES)
def test_the_prompt_of_a_family_with_the_thinking_switched_off(case):
    tokens, template, name, prompt, how = SWITCHES[case]
    tokenizer = byte_tokenizer(tokens, template)
    profile = resolve_profile("auto", tokenizer, Manifest())
    switch = switch_off(profile, tokenizer)
    assert (profile.name, switch.render(tokenizer, ["2+2?"]), switch.describe()) == (name, [prompt], how)
    assert tokenizer.decode(switch.encode(tokenizer, prompt)) == prompt


@pytest.mark.parametrize(
    ("tokens", "template", "name", "message"),
    [
        (CHAT, CHATML, "plain", r"'plain' cannot switch the thinking off \(budget off\): the profile names neither"),
        (HARMONY, CASES["gpt-oss"][1], "harmony", r"names neither a template option nor an empty block .*\[off\]"),
        (("[THINK]", "[/THINK]"), CHATML, "brackets", "chat template has no option reasoning_effort"),
        (
            ("<|channel>", "<channel|>"),
            CHATML + "{# enable_thinking #}",
            "gemma-channel",
            "still thinks with enable",
        ),
    ],
)
def test_what_cannot_be_switched_off_is_refused(tokens, template, name, message):
    tokenizer = byte_tokenizer(tokens, template)
    with pytest.raises(PrunusError, match=message):
        switch_off(resolve_profile(name, tokenizer, Manifest()), tokenizer)


def test_a_profile_of_ones_own_names_its_switch(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text('format = 1\nextends = "think-tags"\n[off]\nblock = "<think>skip</think>"\n')
    tokenizer = byte_tokenizer(QWEN, R1)
    switch = switch_off(resolve_profile(str(path), tokenizer, Manifest()), tokenizer)
    assert switch.render(tokenizer, ["2+2?"]) == ["<User>2+2?<Assistant><think>skip</think>"]
    path.write_text('format = 1\nextends = "think-tags"\n[think]\nstart = "<plan>"\nstops = ["</plan>"]\n')
    with pytest.raises(
        PrunusError, match=r"'lab' cannot switch .* chat template has no option enable_thinking or thinking"
    ):
        switch_off(
            resolve_profile(str(path), tokenizer, Manifest()), tokenizer
        )  # the empty block of the base is not its own
    for text, message in (
        ("blocks = ''", r"line 4: 'blocks' is not known in \[off\]; did you mean 'block'"),
        ("block = '<think>'", "does not end the thinking"),
        ("template = { tools = 1 }", r"'tools' of \[off\] is set by prunus"),
    ):
        path.write_text(f'format = 1\nextends = "think-tags"\n[off]\n{text}\n')
        with pytest.raises(PrunusError, match=message):
            resolve_profile(str(path), tokenizer, Manifest())


def test_the_stored_strings_of_a_profile_do_not_name_its_switch():
    assert all("off_template" not in one.strings() and "off_block" not in one.strings() for one in PROFILES.values())


@pytest.mark.slow
def test_prunus_profiles_shows_the_prompt_of_off(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(f'format = 1\nextends = "tiny"\n[off]\ntemplate = {{}}\nblock = {json.dumps(EMPTY)}\n')
    found = show_profile(str(path), "tiny").to_json()
    text, ids = found["off_prompt"]
    assert text == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n" + EMPTY
    assert ids == TOKENIZER.encode(text) and found["off"] == {"block": EMPTY}
    assert show_profile("auto", "tiny").to_json()["off"] == {"template": {"enable_thinking": False}}
    assert "'plain' cannot switch the thinking off" in show_profile("plain", "tiny").to_json()["off_prompt"]
    assert show_profile("qwen3").off == {"template": {"enable_thinking": False}, "block": EMPTY}


# ----- what is sampled


def by_hand(chain, rules: Rules) -> Draw:
    """The answer to the prompt without thinking, one id after the other."""
    cap = min(chain.answer_tokens, (rules.context or 10**9) - len(chain.off))
    answer, stopped = answer_by_hand(chain.off, rules.seed_of(chain, "off"), cap, rules.context)
    return Draw(OFF, [], (), answer, rules.off_appended, "natural", not stopped, False, cap)


@pytest.mark.parametrize(("wait", "reuse", "context"), [(0, True, None), (0, False, 9), (2, False, None)])
def test_off_is_a_request_of_its_own(wait, reuse, context):
    rules = Rules(MARKERS, GREEDY, wait, seed=3, context=context, off_appended=2)
    budgets = [OFF, 0, 2] if context is None else [OFF, 0]
    chains = [chain._replace(off=[5, chain.prompt[1], 6, 6, 6]) for chain in CHAINS]
    found = force_budgets(ScriptedBackend(noise), chains, budgets, rules, reuse)
    without = force_budgets(ScriptedBackend(noise), CHAINS, budgets[1:], rules, reuse)
    assert found == [[by_hand(chain, rules), *draws] for chain, draws in zip(chains, without, strict=True)]
    assert {draws[0].answer_truncated for draws in found} == {True, False}
    assert force_budgets(ScriptedBackend(noise), chains, [OFF], rules, reuse) == [draws[:1] for draws in found]
    streamed = dict(force_budgets_as_completed(ScriptedBackend(noise), chains, budgets, rules, reuse))
    assert [streamed[number] for number in range(len(chains))] == found


@pytest.fixture(scope="module")
def switched():
    """The tiny reasoner's tokenizer with a chat template that has the switch."""
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.chat_template = SWITCHED
    return tokenizer


@pytest.mark.slow
def test_rows_of_off_in_a_store(tmp_path, switched, capsys):
    """Every row against a completion that is made here; a second call resumes, and numbers keep their rows."""
    plan = EvalPlan.from_json(PLAN.to_json() | {"profile": "qwen3", "answer_tokens": 20})
    folder = ModelFolder(tiny_folder())
    work = resolve_plan(folder, switched, plan)
    assert "budget off: template enable_thinking=False" in capsys.readouterr().err
    assert work.plan.data["budgets"] == ["off", 0, 16] and work.plan.data["off"] == {
        "template": {"enable_thinking": False}
    }
    numbers = resolve_plan(folder, switched, EvalPlan.from_json(plan.to_json() | {"budgets": [0, 16]}))
    assert "off" not in numbers.plan.data and not any(chain.off for chain in numbers.chains)
    with Store(tmp_path / "results.db", create=True) as store:
        store.add_problems(map(problem_row, work.problems))
        for one in (work, numbers):
            store.add_run(Run.of(one.run_id, {"name": "tiny", "manifest": {}}, one.plan, {}))
            pipeline.fill(store, one, ScriptedBackend(babble), loop.missing_batches(store, one))
            assert not loop.missing_batches(store, one)
        rows = store.samples(work.run_id, texts=True)
        others = {(s.problem_id, s.budget, s.draw): s for s in store.samples(numbers.run_id, texts=True)}
    assert {(s.problem_id, s.budget, s.draw): s for s in rows if s.budget != OFF} == others
    off = [sample for sample in rows if sample.budget == OFF]
    assert len(off) == 5 * 2 and {str(sample.budget) for sample in off} == {"off"}
    seen = set()
    for sample in off:
        problem = next(one for one in work.problems if one.id == sample.problem_id)
        text = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n{EMPTY}"
        chain = work.chain(work.problems.index(problem), sample.draw)
        assert chain.off == switched.encode(text)
        answer: list[int] = []
        for token in babble(chain.off, work.rules.seed_of(chain, "off")):
            if token in work.rules.markers.answer_stops or len(answer) == 20:
                break
            answer += [] if token in work.rules.markers.answer_banned else [token]
        seen.add(tuple(answer))
        assert (sample.text, sample.answer_tokens) == (switched.decode(answer), len(answer))
        assert (sample.thinking, sample.thinking_tokens, sample.forced_tokens, sample.ended) == ("", 0, 0, "natural")
    assert len(seen) > 5, "draws have seeds of their own"
    with sqlite3.connect(tmp_path / "results.db") as raw:
        assert raw.execute("SELECT DISTINCT budget FROM sample ORDER BY budget").fetchall() == [(-1,), (0,), (16,)]


def test_tokens_of_off_are_counted_apart():
    """Its natural end is not that of the chain, whose answer several budgets share."""
    draws = [
        Draw(OFF, [], (), [1] * 7, 0, "natural", False, False, 9),
        Draw(4, [1] * 4, (), [1], 1, "forced", False, False, 9),
        Draw(8, [1] * 6, (), [1, 2], 1, "natural", False, False, 9),
        Draw(16, [1] * 6, (), [1, 2], 1, "natural", False, False, 9),
    ]
    assert loop.sampled_tokens([draws]) == 6 + 7 + 1 + 2


@pytest.mark.slow
def test_a_prompt_without_thinking_that_does_not_fit(switched):
    plan = EvalPlan(tasks=("tiny",), budgets=(OFF,), limit=2, profile="qwen3", answer_tokens=100_000)
    with pytest.raises(PrunusError, match="lower the budget or --answer-tokens"):
        resolve_plan(ModelFolder(tiny_folder()), switched, plan)


# ----- results


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    """The same rows with and without those of budget off."""
    folder = tmp_path_factory.mktemp("off")
    with_off, without = folder / "with.db", folder / "without.db"
    for path, budgets in ((with_off, (OFF, 0, 64, 256)), (without, (0, 64, 256))):
        make_store(path, names=("tiny", "wanda-50"), problems=24, budgets=budgets, draws=4)
    return with_off, without


@pytest.mark.slow
def test_no_number_of_the_curve_includes_off(stores):
    found, expected = [], []
    for path, into in zip(stores, (found, expected), strict=True):
        with Store(path) as store:
            curve = summarise(store, store.find_run("wanda-50").run_id).to_json()["tasks"]["tiny"]
        other = prunus.compare(path, "tiny", resamples=200).to_json()["others"][0]
        cells = other["tasks"]["tiny"]
        into += [{key: value for key, value in curve.items() if key != "budgets"}, cells["slope"]]
        into += [other["verdict"], other["whole_curve"], other["contradicted_at"]]
        into += [{key: value for key, value in cells["auc"].items() if key != "q"}, curve["budgets"][64]]
        changed = ("q", "p_adjusted", "p_margin_adjusted", "mde", "settle")  # by the number of budgets that are tested
        into += [{key: value for key, value in cells["budgets"][64].items() if key not in changed}]
    assert found == expected


@pytest.mark.slow
def test_off_has_its_own_cell(stores):
    with Store(stores[0]) as store:
        run = store.find_run("wanda-50").run_id
        rows = [sample for sample in store.samples(run) if sample.budget == OFF]
        cell = summarise(store, run).to_json()["tasks"]["tiny"]["budgets"][OFF]
    assert cell["accuracy"] == pytest.approx(sum(row.correct for row in rows) / len(rows))
    assert cell["tokens"]["thinking"]["mean"] == 0 and cell["leaked"] == cell["forced"] == 0
    difference = prunus.compare(stores[0], "tiny", resamples=200).to_json()["others"][0]["tasks"]["tiny"]["budgets"][
        OFF
    ]
    assert difference["accuracy"] == pytest.approx(cell["accuracy"])


@pytest.mark.slow
def test_off_is_shown_by_its_name_everywhere(stores, tmp_path, capsys):
    results: Any = prunus.open(stores[0])  # the stubs of pandas make a union of many types of every column
    for frame in (results.samples(), results.curve(), results.compare("tiny")):
        off = frame[frame["budget"] == "off"]
        assert len(off) and off["budget_tokens"].isna().all()
        assert (frame[frame["budget"] == "64"]["budget_tokens"] == 64).all()
    assert set(results.runs()["budgets_tokens"]) == {"off, 0, 64, 256"}
    prunus.export(stores[0], tmp_path / "frames")
    written = (tmp_path / "frames" / "curve.csv").read_text().splitlines()
    assert "off" in {row["budget"] for row in csv.DictReader(written)}
    main(["compare", str(stores[0]), "--base", "tiny", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert list(data["others"][0]["tasks"]["tiny"]["budgets"]) == ["off", "0", "64", "256"]
    main(["compare", str(stores[0]), "--details"])
    printed = capsys.readouterr().out
    assert " off " in printed and "-1 " not in printed.replace("(-1", "")
    page = prunus.report(stores[0], tmp_path / "report.html", csv=tmp_path / "tables").read_text("utf-8")
    assert "Budget off: the thinking is switched off" in page
    assert "Budget 0 and off is not averaged." in page
    assert '"off":{' in page and '"-1":' not in page and "budget -1" not in page.lower()
    table = csv.DictReader((tmp_path / "tables" / "numbers-tiny.csv").read_text().splitlines())
    assert {row["budget"] for row in table} == {"off", "0", "64", "256"}


@pytest.mark.slow
def test_budgets_beside_the_curve_are_not_drawn(stores):
    with Store(stores[0]) as store:
        picture = accuracy_against_budget(ReportData.read(store), "tiny")
    assert picture is not None
    svg = picture.html()
    assert svg.count('class="mark"') == svg.count('class="line"') * 2, "off and 0 are no part of what decides"
    lines = [part for part in svg.split("<path ") if part.startswith('class="line"')]
    assert lines and all(part.count("L") == 1 for part in lines), "two points: 64 and 256"


@pytest.mark.slow
def test_runs_with_and_without_off_are_compared_where_both_have_rows(stores, tmp_path):
    path = tmp_path / "both.db"
    path.write_bytes(stores[0].read_bytes())
    with Store(path) as store:
        run = store.find_run("wanda-50")
        store.add_run(Run.of("f" * 12, run.model, run.plan | {"budgets": [0, 64, 256]}, run.environment))
        rows = [sample for sample in store.samples(run.run_id, texts=True) if sample.budget != OFF]
        store.add_samples("f" * 12, rows)
    entry = prunus.compare(path, "tiny", ["f" * 12], resamples=200).to_json()["others"][0]
    assert "not both runs have budgets off: left out" in entry["warnings"]
    assert list(entry["tasks"]["tiny"]["budgets"]) == [0, 64, 256]


@pytest.mark.slow
def test_a_study_and_the_command_take_off(tmp_path, capsys):
    text = 'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = {}\n'
    (tmp_path / "study.toml").write_text(text.replace("{}", '["off", 0, 512]'))
    assert read_study(tmp_path / "study.toml").plans[0].budgets == (OFF, 0, 512)
    (tmp_path / "study.toml").write_text(text.replace("{}", "[-1, 0]"))
    with pytest.raises(PrunusError, match="line 2: budget -1 is negative"):
        read_study(tmp_path / "study.toml")
    with pytest.raises(SystemExit) as ended:
        words = ["eval", "tiny", "--task", "tiny", "--budgets", "off,0", "--profile", "plain"]
        main([*words, "--store", str(tmp_path / "results.db")])
    assert ended.value.code == 2 and not (tmp_path / "results.db").exists()
    said = capsys.readouterr().err
    assert "profile 'plain' cannot switch the thinking off (budget off)" in said and said.count("\n") == 1
