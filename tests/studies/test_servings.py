"""Studies of variants x servings: the grid, its ids and labels, what is refused, and how a stopped one goes on."""

import json
import re
import sys
from pathlib import Path

import pytest
from small_study import SHORT, write_study

import prunus
from prunus.errors import PrunusError
from prunus.recipes import EvalPlan
from prunus.recipes.drawing import Control
from prunus.settings.engines import EngineOptions
from prunus.store.labels import identity, label_of, unique_labels
from prunus.store.store import Store
from prunus.studies.cells import variant_names
from prunus.studies.engine import StudyEngine
from prunus.studies.file import read_entries, read_study

TABLES = """
[[serving]]
name = "as it is"
[[serving]]
name = "repetition 1.5"
request = { repetition_penalty = 1.5 }
"""
RECIPES = """
[[prune]]
method = "magnitude"
sparsity = 0.5
[[drop]]
blocks = 1
servings = ["as it is"]
"""
CELLS = [
    ("dense", "as it is"),
    ("magnitude-50", "as it is"),
    ("shortgpt-1", "as it is"),
    ("dense", "repetition 1.5"),
    ("magnitude-50", "repetition 1.5"),
]
SCRIPT = Path(__file__).parents[1] / "helpers" / "serve_words.py"
A = '[[serving]]\nname = "a"\n'
COMMAND = f"{sys.executable} {SCRIPT} {{model}} {{port}}"


def labels(store: Path) -> dict[str, int]:
    with Store(store) as opened:
        runs = opened.runs()
        return dict(
            zip(unique_labels(map(identity, runs)), (len(opened.samples(run.run_id)) for run in runs), strict=True)
        )


@pytest.mark.slow
def test_the_grid_is_variants_times_servings_and_the_base_has_the_rows_of_eval(tmp_path, monkeypatch):
    file = write_study(tmp_path, RECIPES + TABLES)
    plan = EvalPlan(
        tasks=("tiny",), limit=6, budgets=(0, 8, 20), answer_tokens=8, batch_size=2, profile="tiny", samples=1
    )
    store = tmp_path / "out" / "results.db"
    store.parent.mkdir()
    plain = prunus.evaluate(tmp_path / "model", plan, store).run_id
    planned = prunus.plan_study(file, out=tmp_path / "out")
    assert [cell.variant for cell in planned.cells] == [f"{variant} · {serving}" for variant, serving in CELLS]
    assert planned.totals.cells == 5 and planned.totals.done == 18, "the dense model's rows are those of eval"
    with monkeypatch.context() as stopped:
        held = StudyEngine.hold

        def hold(self, model, variant, serving, control: Control = "forced"):
            if (variant.name, serving) == ("magnitude-50", 1):
                raise KeyboardInterrupt
            return held(self, model, variant, serving, control)

        stopped.setattr(StudyEngine, "hold", hold)
        with pytest.raises(KeyboardInterrupt):
            prunus.study(file, out=tmp_path / "out")
    before = labels(store)
    assert before["dense · repetition 1.5"] == 18 and len(before) == 4
    loads = list[tuple[str, int]]()
    monkeypatch.setattr(StudyEngine, "load", _noted(StudyEngine.load, loads))
    done = prunus.study(file, out=tmp_path / "out")
    assert loads == [("magnitude-50", 1)], "nothing else was left to compute"
    magnitude = "Magnitude 50\N{NO-BREAK SPACE}%"
    names = ["dense", magnitude, f"{identity_of(store, 'shortgpt')}"]
    assert labels(store) == {
        f"{names[0]} · as it is": 18,
        f"{names[1]} · as it is": 18,
        f"{names[2]} · as it is": 18,
        f"{names[0]} · repetition 1.5": 18,
        f"{names[1]} · repetition 1.5": 18,
    }
    (contrast,) = done.comparisons
    assert contrast.base == plain and contrast.comparison is not None and len(contrast.comparison.others) == 4
    with Store(store) as opened:
        texts = {label_of(run): [one.text for one in opened.samples(run.run_id, texts=True)] for run in opened.runs()}
        heavy = opened.find_run("dense, repetition 1.5")
        assert heavy.model.serving.to_json() == {"request": {"repetition_penalty": 1.5}}
    assert texts["dense · as it is"] != texts["dense · repetition 1.5"]
    same = EngineOptions(request={"repetition_penalty": 1.5})
    with Store(store) as opened:
        count = len(opened.runs())
    again = prunus.evaluate(tmp_path / "model", plan, store, options=same)
    assert again.run_id == heavy.run_id, "a name is no part of the id of what Prunus starts itself"
    with Store(store) as opened:
        assert len(opened.runs()) == count
    compared = prunus.compare(store, base="dense · repetition 1.5")
    assert compared.base.run == heavy.run_id and len(compared.others) == 4, "any serving can be the base"


def identity_of(store: Path, start: str) -> str:
    """The label without its serving of the run whose model's name has this in it."""
    with Store(store) as opened:
        (run,) = [run for run in opened.runs() if start in str(run.model.name)]
        return label_of(run).partition(" · ")[0]


def _noted(original, loads):
    def load(self, model, variant, control):
        loads.append((variant.name, self.serving))
        return original(self, model, variant, control)

    return load


@pytest.mark.thorough
@pytest.mark.slow
def test_a_server_is_started_for_every_variant_and_serving_with_its_environment(tmp_path):
    """The checkpoint is written once for both; the flag and the variable count, and are told by the label."""
    log = tmp_path / "log"
    tables = f"""
[engine]
serve = "{COMMAND} {log}"
[[serving]]
name = "plain"
[[serving]]
name = "flag"
serve = "{COMMAND} {log} --kv-cache-dtype fp8"
[[serving]]
name = "variable"
environment = {{ SERVE_WORDS = "7" }}
"""
    file = write_study(
        tmp_path, '[[prune]]\nsparsity = 0.5\nmethod = "magnitude"\n' + tables, f'{SHORT}\nengine = "openai"'
    )
    done = prunus.study(file, out=tmp_path / "out")
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[2:] for line in lines] == [["-", "-"], ["--kv-cache-dtype", "fp8", "-"], ["-", "7"]] * 2
    assert len({line[1] for line in lines}) == 2 and len(lines) == 6
    with Store(done.store) as opened:
        found = {label_of(run): run.model.serving.to_json() for run in opened.runs()}
    assert set(found) == {
        f"{made} · {name}"
        for made in ("dense", "Magnitude 50\N{NO-BREAK SPACE}%")
        for name in ("plain", "flag", "variable")
    }
    words = found["dense · plain"].get("words", [])
    assert found["dense · flag"]["words"] == sorted([*words, "--kv-cache-dtype fp8"])
    assert found["dense · variable"]["environment"] == {"SERVE_WORDS": "7"}
    (contrast,) = done.comparisons
    assert contrast.comparison is not None
    assert "SERVE_WORDS=7" in json.dumps(contrast.comparison.to_json()), "what a name stands for is told"
    assert "\nflag: served with --kv-cache-dtype fp8" in repr(contrast.comparison)
    page = Path(done.report).read_text()
    assert "<legend>Serving</legend>" in page and "Magnitude 50\N{NO-BREAK SPACE}% · flag" in page
    frame = prunus.open(done.store).runs()
    assert sorted(frame["serving"]) == sorted(["plain", "flag", "variable"] * 2)
    told = dict(zip(frame["serving"], frame["serving_settings"], strict=True))
    assert told["variable"].endswith("SERVE_WORDS=7") and "--kv-cache-dtype fp8" in told["flag"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[[serving]]\nname = "a"\nspeed = 1\n', 11, "unknown key 'speed' in [[serving]]"),
        ("[[serving]]\nrequest = {}\n", 9, "a serving needs a name"),
        ('[[serving]]\nname = "a"\n[[serving]]\nname = "a"\n', 12, "two servings are called 'a'"),
        (A + 'serve = "vllm serve {model} --port {port}"\n', 9, "a: serve is for the engine llama.cpp, openai, not"),
        (A + "request = { frequency_penalty = 1 }\n", 9, "a: the engine hf does not take the request field 'freq"),
        (A + 'environment = { A = "1" }\n', 9, "a: environment is for the engine vllm, llama.cpp, openai, not for hf"),
        ('[serving]\nname = "a"\n', 9, "write [[serving]] with double brackets"),
        ('[[serving]]\nname = "a"\n[[drop]]\nservings = ["b"]\n', 11, "'b' is no serving: there are a"),
        ('[[drop]]\nservings = ["b"]\n', 9, "'b' is no serving: there is no [[serving]] table"),
        ('[[serving]]\nname = "a"\n[[drop]]\nservings = []\n', 12, "'servings' is an empty list"),
        ('[[serving]]\nname = "a"\nserving = "b"\n', 11, "unknown key 'serving' in [[serving]]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_servings_is_named_with_its_line(tmp_path, text, line, message):
    file = tmp_path / "file.toml"
    file.write_text('models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = [16]\n\n\n\n\n' + text)
    with pytest.raises(PrunusError) as error:
        read_study(file)
    assert str(error.value).startswith(f"{file}, line {line}: {message}"), str(error.value)
    assert "\n" not in str(error.value)


def test_servings_that_come_to_the_same_and_a_base_without_the_first_are_refused(tmp_path):
    two = '[[serving]]\nname = "a"\n[[serving]]\nname = "b"\nrequest = {}\n'
    with pytest.raises(PrunusError, match="'a' and 'b' differ in nothing that can change what is sampled"):
        prunus.plan_study(write_study(tmp_path, two))
    restricted = TABLES + '[[drop]]\nblocks = 1\nservings = ["repetition 1.5"]\n[report]\nbase = "shortgpt-1"\n'
    with pytest.raises(PrunusError, match="base 'shortgpt-1' lacks the first serving, 'as it is'"):
        prunus.plan_study(write_study(tmp_path, restricted))


def test_exact_servings_that_differ_in_what_only_costs_speed_are_two_runs(tmp_path):
    command = "llama-server -m {{gguf}} --port {{port}} -np {}"
    tables = "".join(f'[[serving]]\nname = "{slots}"\nserve = "{command.format(slots)}"\n' for slots in (1, 2))
    file = tmp_path / "file.toml"
    head = 'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = [16]\nengine = "openai"\n[engine]\n'
    file.write_text(head + tables)
    with pytest.raises(PrunusError, match="leave one out, or say exact = true in both"):
        prunus.plan_study(file)
    usual = "".join(tables.partition('[[serving]]\nname = "2"')[:1])
    file.write_text(head + usual)
    (alone,) = prunus.plan_study(file).cells
    file.write_text(head + "exact = true\n" + tables)
    one, two = prunus.plan_study(file).cells
    assert len({alone.run, one.run, two.run}) == 3


def test_what_a_table_leaves_out_is_that_of_engine(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text(
        'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nengine = "vllm"\n[engine]\nargs = { max_num_seqs = 8 }\n'
        'request = { min_p = 0.1 }\n[[serving]]\nname = "a"\n[[serving]]\nname = "b"\n'
        'args = { kv_cache_dtype = "fp8" }\nrequest = { presence_penalty = 1 }\nenvironment = { A = "1" }\n'
    )
    first, other = read_study(file).servings
    assert (first.name, first.engine) == ("a", EngineOptions(args={"max_num_seqs": 8}, request={"min_p": 0.1}))
    assert other.engine == EngineOptions(
        args={"max_num_seqs": 8, "kv_cache_dtype": "fp8"},
        request={"min_p": 0.1, "presence_penalty": 1.0},
        environment={"A": "1"},
    )


def test_the_name_of_a_server_that_runs_is_part_of_the_id_since_it_does_not_tell_its_settings(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text(
        'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = [16]\nengine = "openai"\n[[serving]]\nname = "a"\n'
        'url = "http://localhost:1"\n[[serving]]\nname = "b"\nurl = "http://localhost:2"\n'
    )
    assert [one.engine.serving for one in read_study(file).servings] == ["a", "b"]
    assert len({cell.run for cell in prunus.plan_study(file).cells}) == 2


def test_the_files_of_the_page_are_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    study, ladder = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "study.toml").write_text(study)
    found = read_study(tmp_path / "study.toml")
    assert [one.name for one in found.servings] == ["KV f16", "KV q4_0", "repeat 1.1"]
    assert [variant_names(found.entries), found.entries[0].servings] == [["w4-g32-gguf-q4_0"], ("KV f16", "KV q4_0")]
    assert found.servings[2].engine.serve == found.servings[0].engine.serve
    (tmp_path / "ladder.toml").write_text(ladder)
    names = [(len(one.steps), one.ends_in and one.ends_in.name) for one in read_entries(tmp_path / "ladder.toml")]
    assert names == [(0, "KV q8_0"), (1, "KV q8_0")]
