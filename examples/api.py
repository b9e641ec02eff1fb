"""Prune the built-in model at two sparsities, recover one, evaluate all, and compare them with the dense model.

    python examples/api.py

It takes a minute, and writes to the folder `api-example`. A type checker in strict mode accepts it.
"""

from pathlib import Path

import prunus

FOLDER = Path("api-example")
PLAN = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 64, 256), limit=50)


def variants() -> list[str]:
    """The models to compare: the dense one, and what is made of it."""
    made = [str(FOLDER / "wanda-20"), str(FOLDER / "wanda-50"), str(FOLDER / "recovered")]
    for out, sparsity in zip(made, (0.2, 0.5), strict=False):
        pruned = prunus.prune("tiny", out, prunus.PruneRecipe(sparsity=sparsity), overwrite=True)
        print(f"{pruned.out}: {pruned.sparsity:.1%} of {pruned.linears} Linears are zero")
    recovered = prunus.recover(made[1], made[2], overwrite=True)
    print(f"held-out error {recovered.error_before:.3g} -> {recovered.error_after:.3g}")
    return ["tiny", *made]


def main() -> None:
    """Make the variants, evaluate them, and print what the store says."""
    planned = prunus.plan("tiny", prunus.PruneRecipe())
    print(f"pruning writes {planned.disk}")
    models, store = variants(), FOLDER / "results.db"
    for model in models:
        prunus.evaluate(model, PLAN, store)
        facts = prunus.inspect(model)
        print(f"{model}: {facts.parameters:,} parameters, {len(facts.history)} steps")
    print(prunus.compare(store, base="tiny"))


if __name__ == "__main__":
    main()
