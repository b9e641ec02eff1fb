"""`prunus choose` on the built-in reasoner, with a speed test that is made up, and what it refuses."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.small_choice import costs_of, declared_of

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import processor
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.tasks import load_task
from prunus.formats import FORMATS
from prunus.plain_data import canonical_json
from prunus.settings.engines import ENGINES
from prunus.step import steps_name
from prunus.store.stored import Environment
from prunus.studies.choose import command
from prunus.studies.choose.files import linked
from prunus.studies.choose.forms import ChoiceRequest, entries_of
from prunus.studies.choose.limits import memory_of
from prunus.studies.choose.records import Choice, ChoiceResult
from prunus.studies.choose.speed import cost_of, machine
from prunus.studies.choose.speed_process import SpeedTest, SpeedTestResult, Timing, measured
from prunus.studies.verify import verify

PLAN = prunus.EvalPlan(tasks=("tiny",), budgets=(8, 24), limit=24)
FORMS = '[[quantize]]\nbits = 8\nmethod = "rtn"\n'


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("500 MB", 5e8), ("2GiB", 2 << 30), ("1.5gb", 1.5e9), (1000, 1000), ("7", 7)]
)
def test_memory_is_read_with_its_unit(text, size):
    assert memory_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "4 XB", "nan", "1e30GB"])
def test_other_amounts_of_memory_are_refused(text):
    with pytest.raises(PrunusError, match="no amount of memory"):
        memory_of(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "ways", "says"),
    [
        ([], {}, "name at least one MODEL"),
        (["tiny", "tiny"], {}, "named twice"),
        (["tiny"], {"engine": "ollama"}, "engine 'ollama'"),
        (["tiny"], {"alpha": 1.0}, "alpha"),
        (["tiny"], {"margin": "5%"}, "in points"),
    ],
)
def test_limits_that_make_no_sense_are_refused(tmp_path, models, ways, says):
    given = {"limits": prunus.Limits(memory="1GB", seconds=9.0), "store": tmp_path / "r.db"} | ways
    with pytest.raises(PrunusError, match=says):
        prunus.choose(models, tmp_path / "out", PLAN, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": float("inf")}, "'seconds' must be a number"),
        ({"users": 0}, "users must be at least 1"),
        ({"memory": None}, "'memory' must be"),
        ({"memory": "much"}, "no amount of memory"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(given, says):
    with pytest.raises(PrunusError, match=says):
        prunus.Limits(**{"memory": "1GB", "seconds": 9.0} | given)


def test_without_a_plan_the_store_needs_rows(tmp_path):
    with pytest.raises(PrunusError, match="no rows to choose by"):
        prunus.choose(
            "tiny", tmp_path / "out", limits=prunus.Limits(memory="1GB", seconds=9.0), store=tmp_path / "r.db"
        )


@pytest.mark.parametrize(
    ("program", "name"),
    [("hf", "width-obs-75"), ("vllm", "width-obs-75-w8a8"), ("llama.cpp", "width-obs-75-w4-g32-gguf-q4_0")],
)
def test_the_last_form_is_narrower_in_the_fewest_bits_of_the_engine(monkeypatch, program, name):
    monkeypatch.setattr(
        "prunus.evaluation.backends.vllm.why_not", lambda bits, _: "no 4 bits here" if bits == 4 else None
    )
    asked = ChoiceRequest(ENGINES[program], prunus.EngineOptions(), None, {}, "cpu")
    forms = [steps_name(one.steps) for one in entries_of(asked, Checkpoint(tiny_folder()))]
    assert forms[-1] == name
    assert sum("width" in one for one in forms) == 1


def test_q4_0_is_by_gptq_where_there_are_texts_to_calibrate_on():
    asked = ChoiceRequest(ENGINES["llama.cpp"], prunus.EngineOptions(), None, {}, "cpu")
    names = [steps_name(form.steps) for form in entries_of(asked, Checkpoint(tiny_folder()))]
    assert "w4-g32-gguf-q4_0" in names and "gguf-q4_0" not in names


def test_without_calibration_the_narrower_form_is_left_out_with_a_line(tmp_path, capsys):
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    manifest = json.loads((model / "prunus.json").read_text())
    (model / "prunus.json").write_text(json.dumps({key: manifest[key] for key in manifest if key != "profile"}))
    forms = entries_of(ChoiceRequest(ENGINES["llama.cpp"], prunus.EngineOptions(), None, {}, "cpu"), Checkpoint(model))
    assert forms and not any("width" in steps_name(one.steps) for one in forms)
    said = capsys.readouterr().err
    assert "of model is left out: give --calibration" in said
    assert steps_name(forms[-1].steps) == "gguf-q4_0"
    assert "w4-g32-gguf-q4_0 of model is rounded to nearest instead: give --calibration" in said


def test_weights_of_a_form_are_linked_and_other_files_can_be_edited_alone(tmp_path):
    (tmp_path / "blob").write_text("weights")
    for name, shared in (("model.safetensors", True), ("model.gguf", True), ("config.json", False)):
        (tmp_path / name).symlink_to("blob")
        made = Path(linked(str(tmp_path / name), str(tmp_path / f"made-{name}")))
        assert made.read_text() == "weights" and not made.is_symlink()
        assert made.samefile(tmp_path / "blob") == shared


def test_no_folder_but_a_result_is_replaced(tmp_path):
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    (tmp_path / "forms.toml").write_text(FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for out, says in (("mine", "is not a checkpoint"), ("model", "overlaps the model's own folder")):
        with pytest.raises(PrunusError, match=says):
            prunus.choose(model, tmp_path / out, PLAN, overwrite=True, **ways)
    assert (tmp_path / "mine" / "thesis.txt").exists() and (tmp_path / "model" / "config.json").exists()


@pytest.mark.slow
def test_a_speed_has_its_machine_engine_threads_and_kernels():
    tiny = tiny_folder()
    trial = SpeedTest(
        backend="hf", folder=str(tiny), device="cpu", vocabulary=300, engine={}, chains=[1, 2], prompts=[[4, 5, 6]],
        filler=[5], depth=4, tokens=2, banned=[], sampling=[0.0, 1.0, 0],
    )  # fmt: skip
    found = measured(trial)
    assert [one.chains for one in found.times] == [1, 2] and found.peak > 1e8
    known = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": "cpu", "cpu": processor()}
    assert found.engine.data.items() >= known.items()
    assert found.engine.data["kernels"] == torch.backends.cpu.get_cpu_capability()
    assert found.load == 0.0  # as the tests say
    assert cost_of([replace(found, load=load) for load in (9.0, 1.0, 2.0)], 1, 1).load == 2.0
    assert (machine().processor, machine().cores) == (processor(), os.cpu_count())


def made_up(trial):
    """What a speed test of a machine would say on which the quantised form is twice as fast."""
    first = 0.01 if "w8a8" in trial.folder else 0.02
    times = [
        Timing(chains=n, prompt_tokens=50, prompt_seconds=0.1, first=first, last=first, depth=24) for n in trial.chains
    ]
    return SpeedTestResult(times=times, peak=300_000_000, engine=Environment.of({"engine": "pretend"}))


REFUSED = {
    "device": ("", {"device": "tpu"}, "device 'tpu' cannot be used here"),
    "order": (
        "[[chain]]\nsteps = [{ quantize = { bits = 8 } }, { prune = { sparsity = 0.3 } }]\n", {},
        "nothing comes after quantize",
    ),
    "GGUF": ("[[gguf]]\ntype = 'q8_0'\n", {}, "only llama.cpp reads GGUF files"),
    "vLLM": ("", {"engine": "vllm"}, "needs vLLM"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses_and_neither_leaves_anything(tmp_path, monkeypatch, what):
    monkeypatch.setattr("prunus.evaluation.backends.vllm.find_spec", lambda _: None)
    text, more, says = REFUSED[what]
    (tmp_path / "forms.toml").write_text(text or FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
        **more,
    }
    for function in (prunus.plan_choose, prunus.choose):
        with pytest.raises(PrunusError, match=says):
            function("tiny", tmp_path / "out", PLAN, **ways)
    assert [file.name for file in tmp_path.iterdir()] == ["forms.toml"]


@pytest.mark.slow
def test_an_engine_that_cannot_be_started_leaves_no_folder(tmp_path, monkeypatch):
    def failing(_):
        raise PrunusError("no engine")

    monkeypatch.setattr(command, "measured_apart", failing)
    (tmp_path / "forms.toml").write_text(FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
    }
    with pytest.raises(PrunusError, match="no engine"):
        prunus.choose("tiny", tmp_path / "out", PLAN, **ways)
    assert not (tmp_path / "out.choosing").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda: prunus.choose("tiny", "/", PLAN, limits=prunus.Limits(memory="1GB", seconds=9.0)),
        lambda: prunus.find("tiny", "/", PLAN),
        lambda: prunus.plan("tiny", [prunus.PruneRecipe(), prunus.RecoverRecipe()], "/"),
        lambda: prunus.plan("tiny", prunus.WidthRecipe(), "/"),
    ],
)
def test_the_root_is_no_folder_to_write(call):
    with pytest.raises(PrunusError, match=r"root of all folders|overlaps"):
        call()


def speeds_of(tmp_path, declared, stated):
    """The costs that a choice with `stated` takes from the choice.json of `declared`."""
    costs = replace(costs_of(declared), machine=machine())
    shown = ChoiceResult(
        chosen=None, choices=[], low=0.0, high=1.0, excess=1.0, rounds=0, stopped=False, claims=[], notes=[], tokens=0,
        full_tokens=0,
    )  # fmt: skip
    data = Choice(
        format=FORMATS["choice"], version="1", date="", declared=declared, costs=costs, shown=shown, rows={},
        looks=None, content="",
    )  # fmt: skip
    (tmp_path / "choice.json").write_text(canonical_json(data.to_json()))
    return command.stated_costs(tmp_path / "choice.json", stated)


def test_speeds_of_other_numbers_of_chains_or_another_plan_are_refused(tmp_path):
    one = declared_of()
    assert speeds_of(tmp_path, one, one).forms.keys() == {form.run for form in one.forms}
    for users in (2, 3):  # of which the file has one chain at once
        with pytest.raises(PrunusError, match=f"no speeds of {users} chains at once"):
            speeds_of(tmp_path, one, replace(one, users=users))
    with pytest.raises(PrunusError, match="no speed of any of these forms by this plan"):
        speeds_of(tmp_path, one, declared_of(samples=2))


DAMAGED = ["[]", "5", "{", '{"a": 5}', '{"a": {"times": [], "peak": -7, "engine": {}}}', '{"a": {"times": NaN}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_of_speed_tests_is_named(tmp_path, text):
    (tmp_path / "tests.json").write_text(text)
    with pytest.raises(PrunusError, match=r"tests\.json is damaged"):
        command.read_tests(tmp_path / "tests.json")
    (tmp_path / "tests.json").write_text(json.dumps({"a": made_up(Chains(folder="x", chains=[1])).to_json()}))
    assert command.read_tests(tmp_path / "tests.json")["a"].times[0].chains == 1


class Chains(NamedTuple):
    """Of a trial what a made-up test needs."""

    folder: str
    chains: list[int]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "first"), [(24, 6), (40, 10), (200, 32)])
def test_a_plan_says_how_many_problems_only_decide_what_fits(tmp_path, limit, first):
    """Found by a stranger: of 40 problems 32 decided what fits, which left 8 to the choice, and nothing said so."""
    plan = replace(PLAN, limit=limit)
    planned = prunus.plan_choose("tiny", tmp_path / "out", plan, limits=prunus.Limits(memory="1GB", seconds=9.0))
    assert f"{first} of {limit} problems decide what fits; {limit - first} are left to the choice" in planned.lines


@pytest.mark.thorough
@pytest.mark.slow
def test_the_built_in_reasoner_end_to_end(tmp_path, monkeypatch):
    tests = []
    monkeypatch.setattr(command, "measured_apart", lambda trial: (tests.append(trial.folder), made_up(trial))[1])
    (tmp_path / "forms.toml").write_text(FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
        "look": 6,
    }
    planned = prunus.plan_choose("tiny", tmp_path / "out", PLAN, **ways)
    assert (planned.forms, planned.choices, planned.problems, planned.tests) == (2, 4, 24, 6)
    assert not (tmp_path / "out").exists()
    chosen = prunus.choose("tiny", tmp_path / "out", PLAN, **ways)
    assert len(tests) == 6  # three rounds, in turn
    assert tests[0] == tests[2] != tests[1]
    assert chosen.chosen is not None
    assert chosen.chosen.budget == 24
    out = tmp_path / "out"
    assert {"serve.sh", "choice.json", "choice.html", "config.json"} <= {file.name for file in out.iterdir()}
    assert not (tmp_path / "out.choosing").exists()
    assert verify(out, tmp_path / "r.db").differences == []
    with pytest.raises(PrunusError, match="exists"):
        prunus.choose("tiny", out, PLAN, **ways)

    # From the rows alone, with the speeds of before: nothing is tested or sampled, and other limits are tried.
    faster = ways | {"limits": prunus.Limits(memory="1GB", seconds=0.5), "speeds": out / "choice.json"}
    count = json.dumps(sorted(map(str, tests)))
    again = prunus.choose("tiny", tmp_path / "fast", **faster)
    assert json.dumps(sorted(map(str, tests))) == count
    assert {row.state for row in again.choices} >= {"too slow"}


@pytest.mark.slow
def test_a_form_for_which_there_is_no_memory_is_neither_made_nor_tested(tmp_path, monkeypatch):
    tests = []
    monkeypatch.setattr(command, "measured_apart", lambda trial: (tests.append(trial.folder), made_up(trial))[1])
    (tmp_path / "forms.toml").write_text("[[width]]\nkeep = 0.5\nfit = false\nmethod = 'magnitude'\n")
    ways = {
        "limits": prunus.Limits(memory=300_100_000, seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
    }
    chosen = prunus.choose("tiny", tmp_path / "out", PLAN, **ways)
    assert len(tests) == 3  # of the narrower form, whose test says what the engine itself takes
    assert len(set(tests)) == 1
    assert {row.form for row in chosen.choices if row.form == "dense"} == set()


@pytest.mark.thorough
@pytest.mark.slow
def test_an_interrupted_speed_test_goes_on(tmp_path, monkeypatch):
    tests = []

    def interrupted(trial):
        if len(tests) == 2:
            raise KeyboardInterrupt
        return (tests.append(trial.folder), made_up(trial))[1]

    (tmp_path / "forms.toml").write_text(FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=9.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
    }
    monkeypatch.setattr(command, "measured_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.choose("tiny", tmp_path / "out", PLAN, **ways)
    monkeypatch.setattr(command, "measured_apart", lambda trial: (tests.append(trial.folder), made_up(trial))[1])
    assert prunus.choose("tiny", tmp_path / "out", PLAN, **ways).chosen is not None
    assert len(tests) == 6  # three rounds of two forms, each once


@pytest.mark.slow
def test_the_model_as_it_is_can_be_chosen(tmp_path, monkeypatch):
    def slow_in_8_bits(trial):
        first = 1.0 if "w8a8" in trial.folder else 0.01
        pace = Timing(chains=1, prompt_tokens=50, prompt_seconds=0.1, first=first, last=first, depth=24)
        return SpeedTestResult(times=[pace], peak=300_000_000, engine=Environment.of({"engine": "pretend"}))

    monkeypatch.setattr(command, "measured_apart", slow_in_8_bits)
    (tmp_path / "forms.toml").write_text(FORMS)
    ways = {
        "limits": prunus.Limits(memory="1GB", seconds=5.0),
        "store": tmp_path / "r.db",
        "forms": tmp_path / "forms.toml",
    }
    chosen = prunus.choose("tiny", tmp_path / "out", PLAN, **ways).chosen
    assert chosen is not None and chosen.form == "dense"
    weights = (folder / "model.safetensors" for folder in (tmp_path / "out", tiny_folder()))
    assert len({file.read_bytes() for file in weights}) == 1
    assert verify(tmp_path / "out" / "choice.json", tmp_path / "r.db").differences == []


@pytest.mark.thorough
@pytest.mark.slow
def test_rows_of_a_file_of_problems_are_enough_when_it_is_gone(tmp_path, monkeypatch):
    """Its name is that of a set of the hub, which need not be fetched either."""
    monkeypatch.setattr(command, "measured_apart", made_up)
    lines = [{"id": one.id, "problem": one.question, "answer": one.answer} for one in load_task("tiny", 8)]
    lines += [
        {"id": f"pick/{n}", "problem": f"Which is {n}?", "answer": "B", "choices": ["none", f"{n}"]} for n in (1, 2)
    ]
    lines.append(lines[0] | {"id": "again", "group": "one"})
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = prunus.EvalPlan(tasks=(str(file),), budgets=(8, 24), profile="tiny")
    ways = {"limits": prunus.Limits(memory="1GB", seconds=9.0), "store": tmp_path / "r.db", "look": 4}
    (tmp_path / "forms.toml").write_text(FORMS)
    chosen = prunus.choose("tiny", tmp_path / "out", plan, forms=tmp_path / "forms.toml", **ways)
    file.unlink()
    again = prunus.choose("tiny", tmp_path / "again", forms=tmp_path / "forms.toml", **ways)
    assert [(one.name, one.accuracy) for one in again.choices] == [(one.name, one.accuracy) for one in chosen.choices]
    second = "; this is choice 2 over these rows, and the errors of all add up to 10 %"
    assert again.claims == [chosen.claims[0] + second, *chosen.claims[1:]]
