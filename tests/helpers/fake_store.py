"""A made-up store like that of the demo: a dense model, Wanda and Magnitude, and one and two blocks removed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunus.plain_data import content_hash
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe
from prunus.settings.budgets import OFF
from prunus.store.rows import PlannedProblems, ProblemRow, Run, Sample
from prunus.store.store import Store

BUDGETS = (0, 16, 32, 64, 128, 256, 512, 1024)
BLOCKS = 8
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
KINDS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# name: (recipe, accuracy at the largest budget as a share of dense)
VARIANTS: dict[str, tuple[PruneRecipe | DropRecipe | None, float]] = {
    "tiny": (None, 1.0),
    "wanda-20": (PruneRecipe(method="wanda", sparsity=0.2, sequences=128, calibration="tiny"), 0.995),
    "magnitude-20": (PruneRecipe(method="magnitude", sparsity=0.2), 0.985),
    "wanda-50": (PruneRecipe(method="wanda", sparsity=0.5, sequences=128, calibration="tiny"), 0.72),
    "magnitude-50": (PruneRecipe(method="magnitude", sparsity=0.5), 0.45),
    "drop-1": (DropRecipe(blocks="1", calibration="tiny"), 0.5),
    "drop-2": (DropRecipe(blocks="2", calibration="tiny"), 0.05),
}
# Texts that a model, or somebody who shares a store, might write; none may have an effect on the page.
HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script>",
    "</pre></title></style><img src=x onerror='window.pwned=1'><svg onload=window.pwned=1>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.pwned=1&gt;'>",
    "right to left \u202e gnissecorp \u2066 isolate \u200f mark \u2028 line \u2029 paragraph",
    "a NUL \x00 a bell \x07 an escape \x1b[31m a return \r and a next line \x85",
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1} javascript:window.pwned=1",
    "&lt;b&gt; &#60;script&#62; ]]> <![CDATA[ <!-- --> %3Cscript%3E",
    "é 😀 日本語 \u0301\u0301\u0301\u0301 \ufeff end",
)


def manifest(recipe: PruneRecipe | DropRecipe | None) -> dict[str, Any]:
    """The manifest (prunus.json) of a variant."""
    if recipe is None:
        return {"prunus": "0.1.0", "format": 1, "profile": "tiny", "history": []}
    step: dict[str, Any] = {
        "action": "prune" if isinstance(recipe, PruneRecipe) else "drop",
        "recipe": recipe.to_json(),
        "versions": {"prunus": "0.1.0", "torch": "2.6"},
        "source": {"name": "tiny", "checksum": "0" * 64},
        "warnings": [],
    }
    if isinstance(recipe, PruneRecipe):
        step["sparsity"] = {f"model.layers.{b}.{kind}": recipe.sparsity for b in range(BLOCKS) for kind in KINDS}
    else:
        step["blocks_removed"] = list(range(5, 5 + recipe.count(BLOCKS)))
        step["scores"] = [0.5, 0.4, 0.3, 0.2, 0.1, 0.02, 0.03, 0.4]
    return {"prunus": "0.1.0", "format": 1, "profile": "tiny", "history": [step]}


def with_history(run: Run, history: Sequence[Mapping[str, Any]]) -> Run:
    """The run with these steps in its model's manifest."""
    return replace(run, model=run.model | {"manifest": {**run.model.manifest.data, "history": list(history)}})


def run_of(name: str, plan: EvalPlan, number: int = 0, problems: Sequence[ProblemRow] = ()) -> Run:
    """The run of a variant. problems: of its plan; by default that does not tell them, and so it counts as finished."""
    recipe, _ = VARIANTS[name]
    removed = recipe.count(BLOCKS) if isinstance(recipe, DropRecipe) else 0
    model = {
        "name": name,
        "source": name,
        "checksum": f"{number:064x}",
        "manifest": manifest(recipe),
        "parameters": 1_213_440,
        "blocks": BLOCKS - removed,
    }
    resolved = plan.to_json() | {"profile": "tiny", "temperature": 0.0, "top_p": 1.0, "top_k": 0, "answer_tokens": 64}
    versions = {"prunus": "0.1.0", "torch": "2.6.0", "transformers": "5.16.0", "grader": "1"}
    run_id = content_hash({"name": name, "plan": resolved})
    if not problems:
        return Run.of(run_id, model, resolved, versions)
    order: dict[str, list[str]] = {}
    for problem in problems:
        order.setdefault(problem.task, []).append(problem.problem_id)
    resolved["problems"] = content_hash({task: sorted(ids) for task, ids in order.items()}, 16)
    return Run.of(run_id, model, resolved, versions, planned=PlannedProblems(len(problems), order))


def draw_samples(
    name: str, problems: Sequence[ProblemRow], budgets: Sequence[int], draws: int, texts: Sequence[str]
) -> list[Sample]:
    """Draws of problems that are equally difficult for all variants, as real problems roughly are."""
    _, strength = VARIANTS[name]
    samples = []
    for index, problem in enumerate(problems):
        needed = 12 * 2 ** (6.0 * index / len(problems))  # thinking tokens that this problem needs
        for draw in range(draws):
            luck = random.Random(f"{name}|{problem.problem_id}|{draw}").random()
            able = luck < 0.97 * strength
            length = int(needed * (1 if able else 1.6))
            for budget in budgets:
                thinking = min(max(0, budget), length)
                natural = length <= budget or budget == OFF
                correct = (able and natural) or random.Random(f"{problem.problem_id}|{budget}|{draw}").random() < 0.04
                answer = problem.gold if correct else None if luck > 0.985 else str(100 + index)
                extra = texts[(index + draw) % len(texts)] if texts else ""
                samples.append(
                    Sample(
                        problem.task, problem.problem_id, budget, draw, thinking, 5 + index % 4, 3,
                        "natural" if natural else "forced", luck > 0.99, False, answer,
                        "ok" if answer else "no_answer", correct,
                        f"step 1: {index}+1={index + 1}\n{extra}\n", f"{answer} {extra}",
                    )
                )  # fmt: skip
    return samples


def make_store(
    path: Path,
    *,
    names: Sequence[str] = tuple(VARIANTS),
    problems: int = 126,
    budgets: Sequence[int] = BUDGETS,
    draws: int = 1,
    tasks: Sequence[str] = ("tiny",),
    texts: Sequence[str] = HOSTILE,
    rename: dict[str, str] | None = None,
    kinds: Mapping[str, Mapping[str, int]] | None = None,
) -> Path:
    """Write a store and return its path. rename: other display names, such as hostile ones.

    kinds: the bytes that an engine loads, for those of the names that have them.
    """
    plan = EvalPlan(tasks=tuple(tasks), budgets=tuple(budgets), samples=draws)
    rows = [
        ProblemRow(
            task, f"{task}/{('chain', 'hops', 'mult')[i % 3]}-{i % 7 + 1}-{i:03d}", str(i), "exact", (), f"{i:016x}"
        )
        for task in tasks
        for i in range(problems)
    ]
    with Store(path, create=True) as store:
        store.add_problems(rows)
        for number, name in enumerate(names):
            run = run_of(name, plan, number, rows)
            changes = {"bytes": dict(kinds[name])} if kinds and name in kinds else {}
            run = replace(run, model=run.model | {"name": (rename or {}).get(name, name)} | changes)
            store.add_run(run)
            store.add_samples(run.run_id, draw_samples(name, rows, budgets, draws, texts))
    return path
