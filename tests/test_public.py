"""The public API as it is: names, parameters, defaults, results, and the fields of records.

A difference breaks scripts of users: keep what they give and read, or say in CHANGELOG.md what is new.
"""

import inspect
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import prunus
from prunus.cli.common import cli
from prunus.plain_data import Listing

ROOT = Path(__file__).parent.parent


def entries(text: str) -> dict[str, str]:
    """{name: line} of a text with a line for each name; an indented line continues the one before."""
    lines = text.strip("\n").replace("\n    ", " ").splitlines()
    return {line.replace(":", "(").partition("(")[0]: line for line in lines}


def signature(function: Any, result: bool = True) -> str:
    """How a function is called, and what it returns."""
    found, named = list[str](), False
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not named:
            found.append("*")
            named = True
        stars = {one.VAR_KEYWORD: "**", one.VAR_POSITIONAL: "*"}.get(one.kind, "")
        default = "" if one.default is one.empty else f"={one.default!r}"
        found.append(f"{stars}{one.name}{'=...' if 'factory' in default else default}")
    returned = f" -> {words(get_type_hints(function)['return'])}" if result else ""
    return f"{function.__name__}({', '.join(found)}){returned}"


def words(hint: Any) -> str:
    """A type as text, without modules."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(words, get_args(hint)))
    if get_args(hint):
        return f"{hint.__origin__.__name__}[{', '.join(map(words, get_args(hint)))}]"
    return "None" if hint is NoneType else hint.__name__


def records(hint: Any) -> Iterator[type]:
    """The classes of records that are in a type, and in their fields."""
    if isinstance(hint, type) and is_dataclass(hint) and hint.__module__.startswith("prunus"):
        yield hint
        for inner in get_type_hints(hint).values():
            yield from records(inner)
    for inner in get_args(hint):
        yield from records(inner)


def public(kind: Any) -> list[str]:
    """The names of the functions, or of the classes, of the API."""
    return sorted(name for name in (*prunus.__all__, "open") if kind(getattr(prunus, name)))


FUNCTIONS = """
allocate(model, recipe, *, save=None, device='auto') -> Allocated
apply_steps(model, out, steps, *, device='auto', offload=False, overwrite=False) -> Made
card(checkpoint, *, store=None, run=None, base=None, base_model=None, margin=0.05, out=None, overwrite=False) ->
    CardMade
choose(models, out, plan=None, *, limits, engine=None, forms=None, settings=None, margin=0.05, alpha=0.05, look=None,
    store='results.db', speeds=None, device='auto', options=None, overwrite=False) -> Chosen
compare(store, base=None, others=None, margin=0.05, resamples=10000, stop_margin=0.05) -> Comparison
demo(out='prunus-demo', quick=False, experts=False) -> Comparison
dequantize(model, out, *, overwrite=False) -> Dequantized
drop(model, out, recipe, *, device='auto', overwrite=False, name=None) -> Dropped
efforts(store, run=None, levels=None, base=None) -> Efforts
evaluate(model, plan, store, *, device='auto', options=None, mixed=False) -> Summary
expert_stats(model, out, *, device='auto', overwrite=False, **options) -> ExpertsMeasured
experts(model, out, recipe=None, *, device='auto', overwrite=False, stats=None, name=None) -> FewerExperts
export(store, out, format='csv', overwrite=False) -> Exported
find(model, out, plan, ladder=None, *, methods=None, settings=None, recovery=None, margin=0.05,
    stop_margin=0.05, alpha=0.05, most_tokens=None, look=None, store='results.db', device='auto', options=None,
    ray=None, gpus_per_task=None, cpus_per_task=1, overwrite=False) -> Found
gguf(model, out, recipe=None, *, dense=None, stats=None, device='auto', overwrite=False, name=None) -> GgufMade
import_(store, files, name, metric=None, threshold=None, budgets=()) -> Imported
inspect(checkpoint, *, weights=None, tokens=32768) -> ModelFacts | GgufFacts
methods() -> Listing[MethodEntry]
open(store) -> Results
perplexity(model, text, *, seqlen=2048, tokens=None, device='auto') -> Perplexity
plan(model, recipe, out=None, *, device='auto', offload=False, overwrite=False, stats=None, dense=None) -> Planned
plan_choose(models, out, plan=None, *, limits, engine=None, forms=None, settings=None, margin=0.05, alpha=0.05,
    look=None, store='results.db', speeds=None, device='auto', options=None, overwrite=False) -> PlannedChoice
plan_find(model, out, plan, ladder=None, *, methods=None, settings=None, recovery=None, margin=0.05,
    stop_margin=0.05, alpha=0.05, most_tokens=None, look=None, store='results.db', device='auto', options=None,
    ray=None, overwrite=False) -> SearchForecast
plan_refine_efforts(store, run=None, levels=None) -> Listing[FinerBudgets]
plan_study(file, *, out=None, store=None, device='auto') -> StudyPlan
profiles() -> Listing[ProfileEntry]
prune(model, out, recipe, *, device='auto', offload=False, overwrite=False, stats=None, shared=None, name=None)
    -> Pruned
quantize(model, out, recipe=None, *, stats=None, device='auto', offload=False, overwrite=False, name=None) ->
    Quantized
recover(pruned, out, recipe=None, *, dense=None, device='auto', offload=False, overwrite=False, name=None) ->
    Recovered
refine_efforts(store, run=None, levels=None, *, device='auto', options=None) -> Listing[FinerBudgets]
regrade(store) -> Regraded
report(store, out, *, base=None, margin=0.05, stop_margin=0.05, published=False, figures=None, csv=None,
    overwrite=False, name='Prunus report', notes=(), runs=None, links=()) -> Path
report_study(file, *, out=None, store=None) -> StudyResult
runs(store, remove=None, rename=None) -> Listing[StoredRun]
show_profile(name='auto', model=None) -> ShownProfile
stats(model, out, *, hessians=False, device='auto', overwrite=False, **options) -> InputsMeasured
study(file, *, out=None, store=None, device='auto', ray=None, gpus_per_task=None, cpus_per_task=1, mixed=False,
    batches=None) -> StudyResult
tasks() -> Listing[TaskEntry]
traces(model, out, recipe, *, device='auto', options=None, overwrite=False) -> Traces
verify(certificate, store='results.db', *, again=0, seed=None, device='auto') -> Verification
view(store, *, port=0, export=None, overwrite=False) -> None
width(model, out, recipe=None, *, stats=None, device='auto', offload=False, overwrite=False, name=None) -> Narrowed
"""
# Recipes, plans and options: what scripts of users make.
SETTINGS = """
DropRecipe(method='shortgpt', blocks=None, match_sparsity=None, merge=1, threshold=0.45, interval=1, *,
    calibration='auto', sequences=128, seqlen=2048, calibration_tokens=None, seed=0)
EngineOptions(args=..., url=None, serve=None, served_model=None, tokenizer=None, concurrency=None, timeout=1800.0,
    serving=None, request=..., environment=..., exact=False)
EvalPlan(tasks, budgets=(512, 1024, 2048), samples=1, mode='strict', answer_tokens=None, wait=0,
    closing=None, top_p=None, top_k=None, control='forced', reuse=True, aa_control=False, base_samples=None, *,
    profile='auto', temperature=None, prompt='bare', limit=None, seed=0, batch_size=None, engine='hf')
ExpertsRecipe(method='reap', keep=None, drop=None, dtype='auto', *, calibration='auto', sequences=128, seqlen=2048,
    calibration_tokens=None, seed=0)
GgufRecipe(calibration='none', type='f16', like=None, *, sequences=128, seqlen=2048, calibration_tokens=None, seed=0)
Limits(*, memory, seconds, users=1)
PruneRecipe(method='wanda', sparsity=0.2, pattern=None, scope='all', group=None, propagation='pruned', update='none',
    allocation='uniform', step=None, spread=None, outlier_threshold=7.0, influence_train=300, influence_validation=96,
    scores=None, rounding='exact', dtype='auto', *, calibration='auto', sequences=128, seqlen=2048,
    calibration_tokens=None, seed=0)
QuantizeRecipe(bits=8, activations=None, group=None, method='gptq', dtype='auto', recover=False, *, calibration='auto',
    sequences=128, seqlen=2048, calibration_tokens=None, seed=0)
RecoverRecipe(calibration='auto', seed=0, epochs=4, rate=0.01, step_tokens=512, target='dense', *, sequences=128,
    seqlen=2048, calibration_tokens=None)
TraceRecipe(tasks, samples=1, chain_tokens=None, answer_tokens=None, only='all', min_tokens=0, *, profile='auto',
    temperature=None, prompt='bare', limit=None, seed=0, batch_size=None, engine='hf')
WidthRecipe(method='obs', keep=None, intermediate_size=None, multiple=None, of=None, target='dense', fit=True,
    damping=None, tensor_parallel=None, *, calibration='auto', sequences=128, seqlen=2048, calibration_tokens=None,
    seed=0)
"""
# {record: its fields}
RECORDS = """
Adherence: used over
Allocated: allocation sparsity scope score blocks evidence warnings
AreaOverTokens: start end value se
AsGood: largest estimate low high
AsRight: base_budget above below never longer_low longer_high
AtEqualTokens: sequential difference se low high p q
Base: run model recipe dtypes bytes cache parameters serving serving_settings control aa_control unfinished
BeforeAfter: data before after
BlockShare: sparsity zeros weights block
BlockSparsity: block sparsity parts scores
BudgetCell: n problems samples base_samples accuracy se low high pass_at maj_at best_of tokens tokens_per_correct
    repetition looping forced leaked no_answer malformed failed adherence truncated reopened band_low band_high
CacheOfChain: keys values per_token windows constant tokens
CacheSize: keys values per_token windows constant
CardMade: out run base verdict warnings
Cell: n problems samples base_samples accuracy base_accuracy difference se low high p_flip p_better p_worse p
    lower_bound lower_bound_adjusted upper_bound_adjusted p_margin mde settle band_low band_high unfinished
    p_better_adjusted p_worse_adjusted p_margin_adjusted p_adjusted q
Chains: budget chains chain_budget method n problems samples sequential parallel tokens_sequential tokens_parallel used
    difference se low high p q
ChoiceRow: model form budget votes run bytes seconds p95 accuracy low high problems state better_by
Chosen: out chosen choices low high excess claims notes
Comparison: base others looks margin stop_margin repeats recipes method warnings
Contradiction: budget difference verdict
Curve: problems groups started samples budgets auc slope gain auc_tokens scaling performance control control_total
    monotonicity parallel
Dense: blocks matrix why
Dequantized: out seconds warnings quantisation blocks
Dropped: out seconds warnings method removed blocks blocks_removed scores
Efforts: runs base method
Ending: n problems samples base_samples difference se low high p share base_share gain bound p_margin p_better p_worse
    gain_low gain_high unfinished p_better_adjusted p_worse_adjusted p_margin_adjusted p_adjusted verdict
Entry: run model recipe dtypes bytes cache parameters serving serving_settings control aa_control tasks margin
    warnings macro noise_in_common primary low high of_set nothing_to_lose adaptive stopping as_good unfinished
    grown within_margin verdict scaling whole_curve contradicted_at stops still_stops relies_on_cutting
Environment: data prunus grader protocol device dtype address flags
Estimate: value se low high
Exchange: base problems levels as_right
ExpertCounts: data before after
ExpertsMeasured: out size sequences tokens warnings experts
Exported: rows
FewerExperts: out seconds warnings method experts blocks parameters experts_removed scores tokens difference
FinerBudgets: run model budgets tokens of_run answered
Forecast: rounds fewer available smallest draws base_draws
Found: out model found removed bytes ladders tokens dense_tokens full_grid_tokens claims
GgufFacts: file family stored parameters weight_bytes types history
GgufMade: out seconds warnings type architecture tensors exact size before
Imported: run tool metric tasks problems rows ungraded has
InputGroup: blocks linears part shapes
InputsMeasured: out size sequences tokens warnings inputs hessians
InterimAnalysis: limit samples base_samples runs started complete
KindShare: sparsity zeros weights kind part
Level: name margin budget accuracy cut unanswered tokens saved below note
LinearFacts: sparsity zeros weights linear block kind experts part shape patterns
Looks: comparisons others removed bases
Made: out seconds warnings
Margin: size relative
MethodEntry: kind name source description needs
ModelFacts: folder family language_model model_class transformers dtype stored parameters weight_bytes bytes cache
    memory_tokens memory_bytes history refused structure uses weights
Monotonicity: steps rises falls
Narrowed: out seconds warnings method channels blocks parameters removed error difference
Needed: effect draws problems note
OfSet: size lower_bound within_margin
Part: budgets auc slope stopping
Performance: value budget
Perplexity: perplexity nll tokens windows seqlen
PlanContrast: model plan base comparison not_started started others controls
Planned: would_write warnings then recovery_calibration recovery_memory
PlannedCell: model variant plan run problems answers done tokens tokens_expected
PlannedChoice: forms choices problems left_out to_make tokens tests lines
PlannedDrop: would_write warnings then recovery_calibration recovery_memory disk calibration blocks would_remove
PlannedExperts: would_write warnings then recovery_calibration recovery_memory disk calibration experts blocks
PlannedGguf: would_write warnings then recovery_calibration recovery_memory type architecture tensors exact size before
PlannedPrune: would_write warnings then recovery_calibration recovery_memory disk calibration method blocks linears
    weights zeros influences
PlannedQuantize: would_write warnings then recovery_calibration recovery_memory disk calibration method format blocks
    linears size before
PlannedRecover: would_write warnings then recovery_calibration recovery_memory disk calibration dense blocks streams
PlannedVariant: model variant made bytes
PlannedWidth: would_write warnings then recovery_calibration recovery_memory disk calibration channels blocks parameters
    removed
ProfileEntry: name description
ProfileStrings: data thinking_start think_stops answer_in_chain forced_break forced_closing strip
ProfileUnderModel: prompt think_stops stops_are_text end_of_turn natural_closing forced_closing off off_prompt
Pruned: out seconds warnings method blocks linears sparsity linear_sparsity
Quantized: out seconds warnings method format blocks linears size before error_before error_after
RecipeVerdict: seeds runs n samples base_accuracy difference se se_seeds se_problems freedom low high p_better p_worse
    p_margin verdict label each needed
Recovered: out seconds warnings blocks recovered tokens trained_tokens error_before error_after errors
Regraded: runs graded changed kept
Repeated: run how difference low high n samples answers differ grades
RunEfforts: run model recipe dtypes bytes cache parameters serving serving_settings control aa_control problems
    samples budgets solves levels unfinished thinking exchange warnings
RungWord: name run word why problems tokens bytes
SampledTasks: data tasks sizes
SearchForecast: problems rungs forecasts chain_tokens measured expected rung_tokens grid_tokens impossible warning lines
    ladder
SearchState: model plan name out state page found removed claims lines stops
ShownProfile: profile settings off native under
Slope: n problems samples base_samples accuracy base_accuracy difference se low high p_flip p_better p_worse p retention
    retention_low retention_high p_kept p_lost unfinished p_kept_adjusted p_lost_adjusted word
SourceModel: data name checksum hub
StepFacts: action recipe blocks_removed source warnings experts channels format bytes trained_tokens
StepRecord: data action recipe source dense versions warnings sparsity blocks_removed experts channels parameters
    bytes format calibration cost
Stopping: tokens_ratio per_correct base_per_correct budget endings
StoredFormat: data bits group
StoredPlan: data tasks budgets samples mode profile strings temperature top_p top_k seed limit limit_of problems
    answer_tokens context prompt wait closing control native reuse aa_control backend batch_size tool metric lm_eval
StoredRecipe: data method sparsity pattern scope allocation update group blocks keep drop networks fit target damping
    bits recover type seed imported_as calibration_tokens
StoredRun: run model label plan rows adaptive
Structure: number_of_blocks scope prunable of_parameters groups left_dense
StudyPlan: name out store cells variants totals margins advice gated unknown searches
StudyResult: name out store report cells unreported comparisons searches
Summary: run model recipe dtypes bytes cache parameters serving serving_settings control aa_control plan versions
    tasks unfinished
TaskEntry: name source description
Thinking: start stop closing line_break native control
TokenUse: thinking answer forced total
Tokens: mean p95
Totals: cells complete answers done tokens disk
Traces: out chains drawn correct tokens seconds
TrainingCost: data tokens steps
TypeFacts: type bytes
Unfinished: complete planned base mixed
Use: use possible note
UsedCalibration: data source sequences tokens sha256
Value: value se
Verification: claims differences searches notes unseen
WeightFacts: sparsity patterns nonzero prunable_bytes kinds blocks linears
"""
RESULTS = {
    one.__name__: one
    for name in public(inspect.isfunction)
    for one in records(get_type_hints(getattr(prunus, name))["return"])
} | {
    one.__name__: one
    for name in prunus.__all__
    if name.startswith("Planned")
    for one in records(getattr(prunus, name))
}  # fmt: skip


def test_the_lists_here_are_complete():
    assert [*entries(FUNCTIONS)] == public(inspect.isfunction)
    assert sorted([*entries(SETTINGS)]) == [name for name in public(is_dataclass) if name not in RESULTS]
    assert [*entries(RECORDS)] == sorted(RESULTS)


@pytest.mark.parametrize("name", entries(FUNCTIONS))
def test_functions_take_and_return_what_scripts_of_users_rely_on(name: str):
    assert signature(getattr(prunus, name)) == entries(FUNCTIONS)[name], (
        f"calls of prunus.{name} in users' scripts would fail, do something else, or return something else"
    )


@pytest.mark.parametrize("name", entries(SETTINGS))
def test_recipes_have_the_settings_and_defaults_of_scripts_of_users(name: str):
    assert signature(getattr(prunus, name), result=False) == entries(SETTINGS)[name], (
        f"users' scripts that make a prunus.{name} would fail, or do something else"
    )


@pytest.mark.parametrize("name", entries(RECORDS))
def test_records_have_what_scripts_of_users_read(name: str):
    assert f"{name}: {' '.join(one.name for one in fields(RESULTS[name]))}" == entries(RECORDS)[name], (
        f"scripts of users read these attributes of {name}, and the keys that --json prints are theirs"
    )


@pytest.mark.parametrize("name", entries(FUNCTIONS))
def test_functions_return_records(name: str):
    """Attributes, which an editor completes and a type checker finds; a path, or nothing."""
    hint = get_type_hints(getattr(prunus, name))["return"]
    kinds = [one for part in [hint, *get_args(hint)] for one in [get_origin(part) or part] if isinstance(one, type)]
    plain = [kind for kind in kinds if issubclass(kind, dict | tuple) or kind in (object, list)]
    assert kinds and plain == []


def _says(text: str, name: str, alone: bool = False) -> bool:
    heads = [line.partition(": ")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return any(name in ([head] if alone else head.split(", ")) for head in heads)


@pytest.mark.parametrize("name", entries(RECORDS))
def test_every_field_of_a_record_is_described(name: str):
    described = "\n".join(base.__doc__ or "" for base in RESULTS[name].__mro__ if base.__module__.startswith("prunus"))
    assert [one.name for one in fields(RESULTS[name]) if not _says(described, one.name)] == []


@pytest.mark.parametrize("name", entries(FUNCTIONS))
def test_every_parameter_has_a_line_of_its_own(name: str):
    function = getattr(prunus, name)
    text = function.__doc__ or ""
    assert [one for one in inspect.signature(function).parameters if not _says(text, one, alone=True)] == []


@pytest.mark.parametrize("name", entries(SETTINGS))
def test_help_of_a_recipe_says_every_setting_with_its_default(name: str):
    cls = getattr(prunus, name)
    lines = {line.strip().partition(": ")[0]: line for line in cls.__doc__.splitlines()}
    for one in fields(cls):
        if one.default is not MISSING or one.default_factory is not MISSING:
            assert (
                "default" in lines[one.name]
                or f"Default: {one.default!r}." in lines[one.name]
                or one.name in ("args", "request", "environment")
            )


def test_help_of_pruning_says_units():
    assert "sparsity: Share of zeros in the Linears in scope, in [0, 1). Default: 0.2." in (
        prunus.PruneRecipe.__doc__ or ""
    )


def test_all_is_what_the_stub_has_and_every_name_can_be_imported():
    stub = Path(prunus.__file__).with_suffix(".pyi").read_text("utf-8").split()
    named = {name for word, name in pairwise(stub) if word == "as"}
    assert {*prunus.__all__} == named - {"__version__", "open"} and len(named) > 90
    assert [name for name in named if not hasattr(prunus, name)] == []


def test_functions_have_the_names_of_the_commands_where_they_are_defined():
    assert [name for name in public(inspect.isfunction) if getattr(prunus, name).__name__ != name] == []
    both = {"profiles": "show_profile", "eval": "evaluate", "import": "import_"}  # commands whose functions differ
    assert {both.get(name, name) for name in cli.commands} - {*public(inspect.isfunction)} == set()


def test_eval_is_evaluate():
    assert prunus.eval is prunus.evaluate


def test_a_record_is_shown_as_its_command_prints_it():
    made = prunus.Pruned(
        out="o", seconds=1.23456, warnings=["w"], method="wanda", blocks=8, linears=56, sparsity=0.2, linear_sparsity={}
    )
    shown = ["Pruned", "out: o", "method: wanda", "blocks: 8", "linears: 56", "sparsity: 0.2", "seconds: 1.235"]
    assert repr(made) == "\n  ".join([*shown, "warning: w"])
    assert [*made.to_json()] == [
        "out",
        "method",
        "blocks",
        "linears",
        "sparsity",
        "linear_sparsity",
        "seconds",
        "warnings",
    ]


def test_lists_are_shown_as_tables():
    shown = repr(prunus.tasks()).splitlines()
    assert shown[0].split() == ["name", "source", "description"] and len(shown) == len(prunus.tasks()) + 1
    assert len({line.index(one.source) for line, one in zip(shown[1:], prunus.tasks(), strict=True)}) == 1
    run = prunus.StoredRun(run="1", model=None, label="a\x1b", plan="p", rows=5, adaptive=False)
    table = [line.split() for line in repr(Listing([run])).splitlines()]
    assert table == [["run", "label", "plan", "rows", "adaptive"], ["1", "a␛", "p", "5", "False"]]
    assert repr(Listing([])) == ""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.thorough
@pytest.mark.slow
def test_a_strict_type_checker_accepts_a_script_of_a_user(installed: Path, tmp_path: Path):
    """Of the installed package, which tells the checker by py.typed that its types count."""
    assert (installed / "prunus/py.typed").exists()
    for script in (ROOT / "examples").glob("*.py"):
        (tmp_path / script.name).write_text(script.read_text())
    (installed / "prunus/only_here.py").write_text("HERE: int = 1\n")  # so that it is this copy which is read
    (tmp_path / "copy.py").write_text("from prunus.only_here import HERE\n\nprint(HERE)\n")
    (tmp_path / "bad.py").write_text("import prunus\nprunus.inspect('tiny').no_such_fact\n")
    settings = {"include": ["."], "typeCheckingMode": "strict", "extraPaths": [str(installed)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    found = json.loads(subprocess.run(checker, check=False, capture_output=True, text=True).stdout)
    assert found["summary"]["filesAnalyzed"] == 3
    wrong = {(Path(one["file"]).name, one["message"]) for one in found["generalDiagnostics"]}
    assert {name for name, _ in wrong} == {"bad.py"}, wrong
