"""vLLM itself, on a CPU: the rows of hf, every method's checkpoints, weights swapped in a running engine, SmolLM2.

Run by `make test-vllm` in an environment of its own (not collected elsewhere), beside the shared list of
test_backend_contract.py.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from forced_and_native import check_pairs, native_rows
from random_models import make_random_model, tiny_config
from real_llm import ROOT, smollm2
from small_study import write_study
from tiny_chains import MARKERS, TOKENIZER, chains, complete, tiny
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm_server import vllm_serve

import prunus
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends import opened
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.backends.openai import OpenAIBackend
from prunus.evaluation.backends.vllm import VLLMBackend, why_not
from prunus.evaluation.budget import Chain, Draw, Rules, force_budgets
from prunus.evaluation.engine import Backend
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import encode_markers, encode_prompt
from prunus.evaluation.requests import Sampling
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.methods import METHODS
from prunus.recipes import EvalPlan
from prunus.results.budget_map import budget_map, thinking_of
from prunus.settings.cache_size import CacheSize, cache_size
from prunus.settings.engines import ENGINES, EngineOptions
from prunus.settings.serving import Serving
from prunus.store.labels import label_of
from prunus.store.store import Store
from prunus.studies.verify import verify

GREEDY, WARM = Sampling(0.0), Sampling(1.0, 0.95, 20)
EAGER = EngineOptions(args={"enforce_eager": True})


def greedy(backend: Backend, some: Sequence[Chain], budgets: tuple[int, ...] = (0, 8, 40)) -> list[list[Draw]]:
    return force_budgets(backend, some, budgets, Rules(MARKERS, GREEDY))


def test_rows_and_scores_are_those_of_hf():
    some = chains(12, 30)
    expected = greedy(tiny(), some, (0, 16, 64, 200))
    with opened("vllm", tiny_folder(), "cpu", len(TOKENIZER), EAGER) as backend:
        found = greedy(backend, some, (0, 16, 64, 200))
        # More prompt tokens than a step of vLLM takes: on a CPU it cannot sample after a part of a prompt.
        prompts = [[70 + n, *(TOKENIZER.encode("What is the sum of these? 1 2 3. ") * 30)[:299]] for n in range(30)]
        sampled = complete(backend, prompts, [4] * 30, frozenset(), frozenset(), range(30), WARM)
    assert [len(one.ids) for one in sampled] == [4] * 30
    assert found == expected and {draw.ended for draws in found for draw in draws} == {"natural", "forced"}
    for ours, theirs in zip(sum_(found), sum_(expected), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4) and ours.self_certainty is None


def sum_(draws: list[list[Draw]]) -> list[Draw]:
    return [draw for of_chain in draws for draw in of_chain]


@pytest.mark.parametrize("kind", ["weights", "blocks"])
def test_pruned_checkpoints_of_every_method_load_and_answer_as_in_hf(kind, tmp_path):
    """The first is loaded by a new engine, those of the same shape by its loader, from their own folders."""
    few: dict[str, Any] = {"sequences": 4, "seqlen": 64}
    folders = [tmp_path / method for method in (METHODS if kind == "weights" else DEPTH_METHODS)]
    for folder in folders:
        if kind == "weights":
            recipe = prunus.PruneRecipe(method=cast(Any, folder.name), sparsity=0.3, **few)
            prunus.prune("tiny", folder, recipe)
        else:
            more: dict[str, Any] = {"threshold": -1.0} if folder.name == "laco" else {"blocks": "1"}
            prunus.drop("tiny", folder, prunus.DropRecipe(method=cast(Any, folder.name), **few, **more))
    answers = set()
    with opened("vllm", folders[0], "cpu", len(TOKENIZER), EAGER) as backend:
        assert isinstance(backend, VLLMBackend)
        for folder in folders:
            if folder != folders[0]:
                backend.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
                backend.llm.reset_prefix_cache()
            expected = greedy(HFBackend.load(folder, "cpu", len(TOKENIZER)), chains()[:2], (0, 12))
            assert greedy(backend, chains()[:2], (0, 12)) == expected, folder.name
            answers.add(str(expected))
    assert len(answers) > 2, "the checkpoints differ"


def test_a_study_in_one_engine_gives_the_rows_of_hf(tmp_path):
    """Masks, moved weights, blocks without a trace, merged blocks with their norms: all swapped in and out again."""
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 96,
    }  # heads of 32, the least that vLLM has on a CPU
    found = {}
    for backend in ("hf", "vllm"):
        engine = "[engine]\nargs = {enforce_eager = true}\n" if backend == "vllm" else ""
        file = write_study(tmp_path, eval_=f'temperature = 0\nengine = "{backend}"\n{engine}', **sizes)
        prunus.study(file, out=tmp_path / backend)
        with Store(tmp_path / backend / "results.db") as store:
            runs = store.runs()
            assert {run.plan.backend for run in runs} == {backend}
            found[backend] = {
                run.model.name: [
                    (s.problem_id, s.budget, s.ended, s.thinking, s.text) for s in store.samples(run.run_id, texts=True)
                ]
                for run in runs
            }
    assert len(found["hf"]) == 8 and len(set(map(str, found["hf"].values()))) == 8
    assert found["vllm"] == found["hf"]


SERVINGS = """\
[[serving]]
name = "as it is"
[[serving]]
name = "KV fp8"
args = { kv_cache_dtype = "fp8_e5m2" }
[[serving]]
name = "repetition 1.8"
request = { repetition_penalty = 1.8 }
"""


def test_servings_of_a_study_never_share_a_row(tmp_path):
    """The variant is swapped into an engine of each serving."""
    settings = 'temperature = 0\nengine = "vllm"\n[engine]\nargs = { enforce_eager = true, dtype = "bfloat16" }\n'
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 96}
    file = write_study(tmp_path, '[[prune]]\nmethod = "magnitude"\n' + SERVINGS, settings, **sizes)
    done = prunus.study(file, out=tmp_path / "out")
    with Store(done.store) as store:
        runs = {label_of(run): run for run in store.runs()}
        rows = {
            name: tuple((one.thinking, one.text) for one in store.samples(run.run_id, texts=True))
            for name, run in runs.items()
        }
    print(rows)
    assert len(rows) == 6 and {len(of) for of in rows.values()} == {18} and len(set(rows.values())) == 6
    kept = {name: run.model.cache.per_token for name, run in runs.items() if run.model.cache}
    assert kept["dense · as it is"] == 2 * kept["dense · KV fp8"] == kept["dense · repetition 1.8"]


def test_settings_that_only_cost_speed_leave_rows_and_ids_as_they_are(tmp_path):
    plan = EvalPlan(tasks=("tiny",), limit=8, budgets=(0, 40), engine="vllm", temperature=0.0)
    found = []
    for number in (1, 8):
        args = {"enforce_eager": True, "max_num_seqs": number, "enable_chunked_prefill": False}
        run = prunus.evaluate("tiny", plan, tmp_path / f"{number}.db", options=EngineOptions(args=args)).run_id
        with Store(tmp_path / f"{number}.db") as store:
            found.append((run, [(s.budget, s.thinking, s.text) for s in store.samples(run, texts=True)]))
    assert found[0] == found[1] and len(found[0][1]) == 16


def test_with_and_without_the_cache_of_prefixes_are_two_exact_runs(tmp_path):
    """Which have the same rows here, as the line on the base against itself says; the default keeps its cache."""
    off: dict[str, Any] = {"enforce_eager": True, "enable_prefix_caching": False}
    plan = EvalPlan(tasks=("tiny",), limit=8, budgets=(0, 40), engine="vllm", temperature=0.0)
    store = tmp_path / "results.db"
    with pytest.raises(PrunusError, match="every answer reads its chain again; exact = true allows it"):
        prunus.evaluate("tiny", plan, store, options=EngineOptions(args=off))
    usual, cached, not_cached = (
        prunus.evaluate("tiny", plan, store, options=engine)
        for engine in (EAGER, replace(EAGER, exact=True), EngineOptions(args=off, exact=True))
    )
    assert len({usual.run_id, cached.run_id, not_cached.run_id}) == 3
    with Store(store) as opened_store:
        label = label_of(opened_store.find_run(not_cached.run_id))
    assert "exact, enable_prefix_caching False, vllm 0." in label
    with opened("vllm", tiny_folder(), "cpu", len(TOKENIZER), EngineOptions(args=off, exact=True)) as backend:
        assert isinstance(backend, VLLMBackend) and not backend.config.cache_config.enable_prefix_caching
    with opened("vllm", tiny_folder(), "cpu", len(TOKENIZER), replace(EAGER, exact=True)) as backend:
        assert isinstance(backend, VLLMBackend) and backend.config.cache_config.enable_prefix_caching
    compared = prunus.compare(store, cached.run_id, [not_cached.run_id], resamples=100)
    assert [(one.run, one.answers, one.differ) for one in compared.repeats] == [
        (usual.run_id, 16, 0),
        (not_cached.run_id, 16, 0),
    ]
    assert len(compared.others) == 1


def test_variables_need_an_engine_in_a_process_of_its_own(monkeypatch):
    engine = EngineOptions(args=EAGER.args, environment={"VLLM_CPU_INT4_W4A8": "1"})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with (
        pytest.raises(PrunusError, match="environment needs vLLM's engine in a process of its own"),
        opened("vllm", tiny_folder(), "cpu", len(TOKENIZER), engine),
    ):
        pass


def test_the_engine_of_a_serving_has_its_variables_and_this_process_has_them_no_longer(tmp_path):
    """Told by the engine's own process, in a process of ours in which no engine has run."""
    code = """
import os
from prunus.evaluation.backends import opened
from prunus.checkpoint.resolve import tiny_folder
from prunus.settings.engines import ENGINES, EngineOptions

def told(worker):
    import os
    import vllm.envs
    return os.getpid(), os.environ.get("NAME"), bool(vllm.envs.VLLM_CPU_INT4_W4A8)

if __name__ == "__main__":
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    engine = EngineOptions(
        args={"enforce_eager": True}, environment={"NAME": "x", "VLLM_CPU_INT4_W4A8": "0"}
    )
    with opened("vllm", tiny_folder(), "cpu", 361, engine) as backend:
        ((pid, *rest),) = backend.llm.collective_rpc(told)
    print([pid != os.getpid(), *rest, os.environ.get("NAME")])
"""
    (tmp_path / "told.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [sys.executable, tmp_path / "told.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[True, 'x', False, None]"], done.stderr


def test_a_mixture_with_fewer_experts_answers_as_in_hf(tmp_path):
    sizes = {"vocab_size": len(TOKENIZER), "hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 64}
    changes = {"num_hidden_layers": 2, "max_position_embeddings": 512, "use_sliding_window": False}
    make_random_model("qwen3_moe", tmp_path / "model", mlp_only_layers=[], **sizes, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / name, tmp_path / "model" / name)
    prunus.experts(tmp_path / "model", tmp_path / "out", prunus.ExpertsRecipe(method="random", keep=0.5))
    expected = greedy(HFBackend.load(tmp_path / "out", "cpu", len(TOKENIZER)), chains()[:4], (0, 12))
    assert expected != greedy(HFBackend.load(tmp_path / "model", "cpu", len(TOKENIZER)), chains()[:4], (0, 12))
    with opened("vllm", tmp_path / "out", "cpu", len(TOKENIZER), EAGER) as backend:
        assert greedy(backend, chains()[:4], (0, 12)) == expected


def test_nothing_is_left_of_other_weights(tmp_path):
    """Prompts so long that their blocks stay in the prefix cache, which must be forgotten with the weights."""
    prompts = [[*(TOKENIZER.encode("What is the sum of these? 1 2 3. ") * 30)[:300], 70 + n] for n in range(3)]
    silent = list(range(1, 8))

    def run(backend: VLLMBackend) -> list:
        return complete(backend, prompts, [6] * 3, frozenset(), frozenset(), range(3), GREEDY)

    with opened("vllm", tiny_folder(), "cpu", len(TOKENIZER), EAGER) as backend:
        assert isinstance(backend, VLLMBackend)
        dense = run(backend)
        backend.hold(None, silent)
        shallow = run(backend)
        backend.hold(None, [])
        assert run(backend) == dense != shallow
    prunus.drop("tiny", tmp_path / "shallow", prunus.DropRecipe(blocks=",".join(map(str, silent))))
    alone = HFBackend.load(tmp_path / "shallow", "cpu", len(TOKENIZER))
    assert shallow == complete(alone, prompts, [6] * 3, frozenset(), frozenset(), range(3), GREEDY)


def test_smollm2_in_the_engine_and_on_a_server():
    """A real LLM with the markers of s1: the server gives the engine's draws, also sampled ones; greedy those of hf."""
    folder = smollm2()
    tokenizer = load_tokenizer(folder)
    markers = encode_markers(PROFILES["s1"], tokenizer, "strict")
    questions = ["What is 17 + 25?", "Name a prime number above 20.", "How many legs have three spiders?"]
    some = [Chain(encode_prompt(PROFILES["s1"], tokenizer, question), ("t", question, 0), 16) for question in questions]
    how = [(Rules(markers, sampling, seed=3), (0, 6, 20)) for sampling in (GREEDY, WARM)]

    def draws(backend: Backend) -> list[list[list[Draw]]]:
        return [force_budgets(backend, some, budgets, rules) for rules, budgets in how]

    with opened("vllm", folder, "cpu", len(tokenizer), EAGER) as backend:
        offline = draws(backend)
        assert isinstance(backend, VLLMBackend) and backend.context == 8192
    expected = force_budgets(HFBackend.load(folder, "cpu", len(tokenizer)), some, how[0][1], how[0][0])
    assert offline[0] == expected
    with vllm_serve(folder, "--max-model-len", "512", "--served-model-name", "other/name") as url:
        with pytest.raises(PrunusError, match="does not serve 'absent' but other/name; if that is the same model"):
            OpenAIBackend.load(folder, "auto", len(tokenizer), EngineOptions(url=url, served_model="absent"))
        # Whatever it is called there: vLLM tells the folder that it was loaded from.
        with opened("openai", folder, "auto", len(tokenizer), EngineOptions(url=url)) as backend:
            assert isinstance(backend, OpenAIBackend) and backend.name == "other/name"
            assert backend.context == 512 and backend.description.data["token_ids"] == "ids"
            assert draws(backend) == offline
        fields = {"min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.05}
        with opened("openai", folder, "auto", len(tokenizer), EngineOptions(url=url, request=fields)) as backend:
            assert draws(backend) != offline, "it heeds all of them, as the probe found"


def test_what_vllm_refuses_is_one_line(tmp_path):
    for args, message in (
        ({"no_such_argument": 1}, "cannot be started.*no_such_argument"),
        ({"enforce_eager": True, "max_model_len": 60}, "engine's context is 60: lower the budget"),
    ):
        plan = prunus.EvalPlan(tasks=("tiny",), limit=2, budgets=(16,), engine="vllm")
        with pytest.raises(PrunusError, match=message) as error:
            prunus.evaluate("tiny", plan, tmp_path / "results.db", options=EngineOptions(args=args))
        assert "\n" not in str(error.value)
    with pytest.raises(PrunusError, match=r"is not what the installed vLLM .* runs on cpu"):
        VLLMBackend.load(tiny_folder(), "cuda", len(TOKENIZER), EngineOptions())


OPENS = "{%- if add_generation_prompt and opened is not defined %}{{- '<think>\n' }}{%- endif %}"


def thinking_tiny(folder: Path) -> None:
    """The built-in reasoner with a template that opens the thinking."""
    shutil.copytree(tiny_folder(), folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + OPENS)


def test_a_map_of_budgets_is_loaded_and_keeps_what_was_measured(tmp_path):
    """In pairs: the chains are those that were measured, to the last token; the answers but behind line breaks.

    There the measured text is without one that vLLM writes.
    """
    thinking_tiny(tmp_path / "model")
    plan = EvalPlan(tasks=("tiny",), limit=24, budgets=(8, 40, 128, 512))
    measured = prunus.evaluate("tiny", plan, tmp_path / "rows.db").run_id
    with Store(tmp_path / "rows.db") as store:
        run, rows = store.run(measured), store.samples(measured, texts=True)
    levels = {f"of_{budget}": budget for budget in plan.budgets}
    made = budget_map("vllm", measured, "tiny", levels, thinking_of(run))
    assert made.requests == {name: {"thinking_token_budget": budget + 1} for name, budget in levels.items()}
    native = replace(plan, engine="openai", control="native", budgets=tuple(made.budgets.values()))
    with vllm_serve(tmp_path / "model", *(made.options or ())) as url:
        served = prunus.evaluate(
            tmp_path / "model", native, tmp_path / "native.db", options=EngineOptions(url=url)
        ).run_id
    check_pairs(rows, native_rows(tmp_path / "native.db", served), str.strip)


@pytest.mark.parametrize(("closing", "breaks_in"), [([362], False), ([201, 362], True)])
def test_runner_v1_writes_a_longer_closing_into_answers(closing, breaks_in):
    """What EngineFacts.of_closing says of vLLM, by its own state machine: the model ends its thinking with 362."""
    module = importlib.import_module("vllm.v1.sample.thinking_budget_state")
    holder = object.__new__(module.ThinkingBudgetStateHolder)
    holder.think_start_token_ids, holder.think_end_token_ids = [361], closing
    state = holder._init_state_entry([1, 361], 10)
    for token in (5, 6, 7, 362, *range(20, 30)):
        holder._update_think_state(state)
        if state["in_end"]:
            break
        state["output_tok_ids"].append(token)
    assert state["in_end"] == breaks_in and (len(state["output_tok_ids"]) < 12) == breaks_in


def test_vllm_has_every_parser_that_maps_of_budgets_name():
    manager = importlib.import_module("vllm.reasoning").ReasoningParserManager
    assert all(manager.get_reasoning_parser(name) for name in ENGINES["vllm"].parsers.values())


def test_the_native_budget_of_a_server(tmp_path, capsys):
    """Under vLLM's own control a chain is the forced one, cut one token earlier; one that nothing opens is not cut.

    vLLM counts all tokens after the marker that opens the thinking, also the template's line break. This model never
    writes the marker itself.
    """
    thinking_tiny(folder := tmp_path / "model")
    (folder / "closed.toml").write_text('format = 1\nextends = "tiny"\n[template]\nopened = false\n')
    budgets = (0, 8, 40, 400)
    plan = EvalPlan(tasks=("tiny",), limit=8, budgets=budgets, engine="openai", control="native")
    with vllm_serve(folder, "--reasoning-parser", "qwen3") as url:
        engine = EngineOptions(url=url)
        run = prunus.evaluate(folder, plan, tmp_path / "native.db", options=engine).run_id
        assert "warning" not in capsys.readouterr().err
        closed = replace(plan, budgets=(8,), profile=str(folder / "closed.toml"))
        with pytest.raises(PrunusError, match=r"ignores the request field 'thinking_token_budget' \(1\)"):
            prunus.evaluate(folder, closed, tmp_path / "closed.db", options=engine)
    with Store(tmp_path / "native.db") as store:
        rows = {(row.problem_id, row.budget): row for row in store.samples(run, texts=True)}
    plan = EvalPlan(tasks=("tiny",), limit=8, budgets=tuple(max(0, budget - 1) for budget in budgets))
    forced = prunus.evaluate("tiny", plan, tmp_path / "forced.db").run_id
    with Store(tmp_path / "forced.db") as store:
        for row in store.samples(forced, texts=True):
            native = rows[row.problem_id, row.budget + (row.budget > 0)]
            assert (native.thinking, native.thinking_tokens) == (row.thinking, row.thinking_tokens)
            if row.budget == 399:
                assert row.ended == native.ended == "natural" and native.correct == row.correct


def test_a_search_by_bytes_loads_every_rung_in_a_new_engine_and_says_by_which_kernels(tmp_path):
    """Without AVX-512, vLLM cannot multiply 4-bit weights, and a line says so."""
    plan = EvalPlan(tasks=("tiny",), budgets=(256,), limit=30, temperature=0.0, engine="vllm")
    rungs = [prunus.QuantizeRecipe(method="rtn"), prunus.QuantizeRecipe(method="rtn", bits=4, group="32")]
    store, has_4_bits = tmp_path / "rows.db", why_not(4, "cpu") is None
    asked: dict[str, Any] = {"margin": 0.4, "stop_margin": 0.4, "store": store, "options": EAGER}
    if not has_4_bits:
        with pytest.raises(PrunusError, match="vLLM multiplies weights of 4 bits only on CPUs with AVX-512"):
            prunus.find("tiny", tmp_path / "out", plan, rungs[1:], **asked)
        shutil.rmtree(tmp_path / "out.finding")
    rungs = rungs[: 1 + has_4_bits]
    found = prunus.find("tiny", tmp_path / "out", plan, rungs, **asked).to_json()
    names = ["w8a8-rtn", "w4-g32-rtn"][: len(rungs)]
    assert found["found"] == names[-1] and not prunus.verify(tmp_path / "out/certificate.json", store).differences
    with Store(store) as opened:
        runs = {run.model.name.rpartition("/")[2]: run for run in opened.runs()}
    sizes = [runs[name].nbytes for name in ("tiny", *names)]
    assert sizes == sorted(sizes, key=lambda size: -(size or 0))
    cache = runs[names[-1]].model.cache
    assert cache is not None and found["bytes"] == (sizes[-1] or 0) + cache.longest, "weights and the cache of a chain"
    assert "kernels" not in runs["tiny"].environment.data and len(runs["w8a8-rtn"].environment.data["kernels"]) == 1
    assert not any("VLLM_CPU_INT4_W4A8" in (run.environment.flags or {}) for run in runs.values()), "nobody set it"
    if has_4_bits:
        assert runs["w4-g32-rtn"].environment.data["kernels"] == ["CPUWNA16LinearKernel"]


MLA = {"kv_lora_rank": 64, "q_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
CACHES: dict[str, dict[str, Any]] = {
    "qwen3": {"use_sliding_window": False},  # grouped
    "gpt2": {},  # a head of keys and values for each of queries
    "gpt_bigcode": {"multi_query": True, "num_key_value_heads": 1},  # one for all
    "gemma3_text": ALTERNATING,
    "gemma3n_text": {},  # layers that share keys and values
    "gpt_oss": {},
    "deepseek_v3": MLA,
    "minicpm3": {},  # compressed, but kept expanded
    "mamba": {"state_size": 12},
    "mamba2": {"state_size": 32},
    "falcon_h1": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_next": {},
    "zamba2": {},
    "lfm2_moe": {},
}


def test_a_choice_among_forms_is_made_and_verified(tmp_path):
    """Speed tests and rows come from engines in processes of their own, and a script serves what was chosen."""
    (tmp_path / "forms.toml").write_text('[[quantize]]\nbits = 8\nmethod = "rtn"\n')
    plan = EvalPlan(tasks=("tiny",), budgets=(8, 48), limit=48)
    engine = EngineOptions(args={"enforce_eager": True})
    ways = {"engine": "vllm", "options": engine, "forms": tmp_path / "forms.toml", "store": tmp_path / "r.db"}
    choice = prunus.choose("tiny", tmp_path / "out", plan, limits=prunus.Limits(memory="4GB", seconds=60.0), **ways)
    print(choice, *choice.claims, sep="\n")
    assert choice.chosen is not None and choice.chosen.budget == 48, "thinking longer helps this reasoner"
    costs = json.loads((tmp_path / "out" / "choice.json").read_text())["costs"]["forms"].values()
    assert len(costs) == 2 and all(cost["peak"] > cost["weights"] > 0 for cost in costs)
    assert "vllm serve" in (tmp_path / "out" / "serve.sh").read_text()
    assert verify(tmp_path / "out" / "choice.json", tmp_path / "r.db").differences == []


def vllm_caches(folders: Sequence[Path], *options: str) -> dict[str, CacheSize]:
    """What vLLM makes room for, by the names of the folders."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "vllm_caches.py"), *map(str, folders), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stderr[-4000:])
    found = {}
    for line in done.stdout.splitlines():
        if not line.startswith('{"folder"'):
            continue
        told = json.loads(line)
        per_token, windows, constant = 0.0, dict[str, int](), 0
        for kind, tokens, nbytes, window in told["layers"].values():
            if kind == "MambaSpec":
                constant += nbytes
            elif window is not None:
                windows[str(window)] = windows.get(str(window), 0) + nbytes // tokens
            else:
                per_token += nbytes / tokens
        size = CacheSize(keys="", values="", per_token=per_token, windows=windows, constant=constant)
        found[Path(told["folder"]).name] = size
    return found


def test_bytes_of_a_cache_are_those_of_its_own_specifications(tmp_path):
    """Of grouped, shared, windowed and compressed attention, and of states, which its CPU build keeps in float32."""
    for kind, changes in CACHES.items():
        config = tiny_config(kind, **changes)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
        config.save_pretrained(tmp_path / kind)
    folders = [tmp_path / kind for kind in CACHES]
    theirs = vllm_caches(folders)
    for folder in folders:
        ours = cache_size(AutoConfig.from_pretrained(folder), recurrent="f32")
        print(folder.name, theirs.get(folder.name), ours)
        assert ours is not None and theirs[folder.name] == replace(ours, keys="", values="")
    theirs = vllm_caches(folders[:1], "--cache-dtype", "fp8_e5m2")
    ours = cache_size(AutoConfig.from_pretrained(folders[0]), "fp8")
    assert ours is not None and theirs["qwen3"] == replace(ours, keys="", values="")
    serving = Serving.of("vllm", EngineOptions(args={"kv_cache_dtype": "fp8_e5m2"}))
    assert serving.cache_types("bf16") == ("fp8", "fp8")


def test_a_control_repeats_the_run_in_other_batches(tmp_path):
    store, plan = tmp_path / "r.db", EvalPlan(tasks=("tiny",), budgets=(16, 64), limit=8, temperature=0, engine="vllm")
    base = prunus.evaluate("tiny", plan, store, options=EAGER)
    control = prunus.evaluate("tiny", replace(plan, aa_control=True), store, options=EAGER)
    with Store(store) as opened:
        rows = [
            sorted((row.problem_id, row.budget, row.thinking, row.text) for row in opened.samples(run, texts=True))
            for run in (base.run_id, control.run_id)
        ]
    assert base.run_id != control.run_id and rows[0] == rows[1] and len(rows[0]) == 16
    (repeat,) = prunus.compare(store, base.run_id).repeats
    assert repeat.differ == 0
