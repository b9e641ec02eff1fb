"""One command per function of the Python API: parse, call, print. Data goes to stdout, everything else to stderr."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import click

import prunus
from prunus import progress, recipes
from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, TraceRecipe

EXIT_INTERNAL, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130
_verbose = False


def _set_quiet(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    progress.set_quiet(value)


def _set_verbose(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    global _verbose  # noqa: PLW0603  one switch for the process
    _verbose = _verbose or value


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(prunus.__version__, prog_name="prunus")
def cli() -> None:
    """Prune a reasoning LLM, measure accuracy against thinking budget, and say whether it still thinks."""


def command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with the options that all share and an example at the end of its help."""

    def register(function: Callable[..., None]) -> click.Command:
        quiet = click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Errors only."
        )
        verbose = click.option(
            "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Tracebacks of our errors."
        )
        epilog = "\b\nExample:\n  " + example.replace("\n", "\n  ")
        return cli.command(name, epilog=epilog)(quiet(verbose(function)))

    return register


def recipe_option(recipe: type, field: str, help: str, **settings: Any) -> Callable[[Any], Any]:
    """An option named and defaulted as the recipe's field."""
    default = next(f.default for f in fields(recipe) if f.name == field)
    if default is not MISSING:
        settings = {"default": default, "show_default": default is not None} | settings
    return click.option("--" + field.replace("_", "-"), field, help=help, **settings)


def choice(names: Any) -> click.Choice:
    """A choice among the values of a Literal type."""
    return click.Choice(get_args(names))


class IntegerList(click.ParamType):
    """Whole numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 512,1024", param, ctx)


def print_json(data: Any) -> None:
    """The only thing on stdout under --json."""
    click.echo(json.dumps(data, indent=1, ensure_ascii=False))


model_argument = click.argument("model")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...; auto takes a GPU.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
store_argument = click.argument("store", type=click.Path(path_type=Path))
base_option_help = "Run id (or its start) or model name to compare with."
margin_option = click.option(
    "--margin", default=0.02, show_default=True, help="Loss of accuracy that would not matter (0.02: two points)."
)


def allocation_options(function: Callable[..., None]) -> Callable[..., None]:
    """What prune and allocate share: how much each block loses, and the calibration that this is measured with."""
    options = [
        recipe_option(PruneRecipe, "sparsity", "Share of zeros in the Linears in scope, in [0, 1).", type=float),
        recipe_option(PruneRecipe, "scope", "Which Linears of a block.", type=choice(recipes.Scope)),
        recipe_option(
            PruneRecipe,
            "calibration",
            "c4, wikitext2, tiny, traces:FILE, or a .txt/.jsonl file; auto: c4 (tiny: tiny).",
        ),
        recipe_option(PruneRecipe, "samples", "Calibration sequences.", type=int),
        recipe_option(PruneRecipe, "seqlen", "Tokens per calibration sequence.", type=int),
        recipe_option(PruneRecipe, "calibration_tokens", "Instead of samples: exactly so many tokens.", type=int),
        recipe_option(PruneRecipe, "seed", "Seed of the calibration sample.", type=int),
        recipe_option(PruneRecipe, "prompt_weight", "How much a token of a trace's prompt counts.", type=float),
        recipe_option(PruneRecipe, "chain_weight", "How much a token of a trace's chain counts.", type=float),
        recipe_option(PruneRecipe, "dtype", "In which blocks run; auto: the checkpoint's."),
        recipe_option(PruneRecipe, "allocation", "How blocks share the sparsity.", type=choice(recipes.AllocationName)),
        recipe_option(PruneRecipe, "spread", "How far apart they get; default by allocation.", type=float),
        recipe_option(PruneRecipe, "step", "More sparsity from block to block, for atp.", type=float),
        recipe_option(PruneRecipe, "outlier_threshold", "Times the mean score, for owl.", type=float),
        recipe_option(PruneRecipe, "window", "Tails of spectra, for alphapruning.", type=choice(recipes.Window)),
        recipe_option(PruneRecipe, "influence_train", "Sequences for layerif.", type=int),
        recipe_option(PruneRecipe, "influence_validation", "Sequences for layerif's validation loss.", type=int),
        recipe_option(PruneRecipe, "scores", "Evidence FILE of `prunus allocate --save`, or your own scores."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command("prune", "prunus prune tiny out/wanda-20 --method wanda --sparsity 0.2")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(PruneRecipe, "method", "How weights are chosen.", type=choice(recipes.MethodName))
@allocation_options
@recipe_option(PruneRecipe, "pattern", "Instead of a sparsity: N:M keeps N of M consecutive inputs.", metavar="N:M")
@recipe_option(PruneRecipe, "propagation", "What later blocks see of earlier ones.", type=choice(recipes.Propagation))
@recipe_option(PruneRecipe, "rounding", "Exact counts, or those of the authors' code.", type=choice(recipes.Rounding))
@recipe_option(PruneRecipe, "update", "obs: SparseGPT's update of kept weights.", type=choice(recipes.UpdateName))
@click.option("--offload", is_flag=True, help="Keep hidden states on disk instead of in memory.")
@click.option("--stats", type=click.Path(path_type=Path), help="File of `prunus stats`; needs --propagation dense.")
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def prune_command(
    model: str,
    out: Path,
    offload: bool,
    stats: Path | None,
    device: str,
    dry_run: bool,
    overwrite: bool,
    **recipe: Any,
) -> None:
    """Zero weights of MODEL (a folder, a hub id, or `tiny`) and write the result to the folder OUT.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    given = click.get_current_context().get_parameter_source("sparsity")
    if recipe["pattern"] is not None and given is not click.core.ParameterSource.DEFAULT:
        raise PrunusError("--pattern and --sparsity both say how many weights go; give one of them")
    asked = PruneRecipe(**recipe)
    show_summary(
        prunus.prune(
            model,
            out,
            asked,
            device=device,
            offload=offload,
            overwrite=overwrite,
            dry_run=dry_run,
            stats=stats,
        )
    )


@command("stats", "prunus stats tiny tiny.stats.safetensors")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(PruneRecipe, "calibration", "As for prune.")
@recipe_option(PruneRecipe, "samples", "Calibration sequences.", type=int)
@recipe_option(PruneRecipe, "seqlen", "Tokens per calibration sequence.", type=int)
@recipe_option(PruneRecipe, "seed", "Seed of the calibration sample.", type=int)
@recipe_option(PruneRecipe, "dtype", "In which blocks run; auto: the checkpoint's.")
@device_option
@overwrite_option
def stats_command(model: str, out: Path, **options: Any) -> None:
    """Calibrate once: write statistics of MODEL's inputs to the file OUT, for `prunus prune --stats OUT`.

    One pass of the dense model; each variant pruned from the file then only reads, ranks and writes.
    """
    show_summary(prunus.stats(model, out, **options))


@command("allocate", "prunus allocate tiny --allocation owl --sparsity 0.5 --save owl.json")
@model_argument
@allocation_options
@click.option("--save", type=click.Path(path_type=Path), help="Keep what was measured, for --scores.")
@device_option
@json_option
def allocate_command(model: str, save: Path | None, device: str, as_json: bool, **recipe: Any) -> None:
    """How much each block of MODEL would lose, printed and drawn; nothing is pruned."""
    data = prunus.allocate(model, PruneRecipe(**recipe), save=save, device=device)
    if as_json:
        print_json(data)
    else:
        from prunus.reporting.allocation import allocation_table

        progress.out_console.print(allocation_table(data))


@command("drop", "prunus drop tiny out/drop-1 --blocks 1\nprunus drop tiny out/without-4-5 --blocks 4,5")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(DropRecipe, "method", "How blocks are chosen.", type=choice(recipes.DepthMethodName))
@recipe_option(DropRecipe, "blocks", "How many (2; default 1), or which by index from 0 (16,17 or 16,).")
@recipe_option(DropRecipe, "match_sparsity", "Instead: as many as come nearest to this share.", type=float)
@recipe_option(DropRecipe, "merge", "laco: blocks that one merge folds into the one before them.", type=int)
@recipe_option(DropRecipe, "threshold", "laco: cosine to the old hidden states that must be kept.", type=float)
@recipe_option(DropRecipe, "interval", "laco: how many blocks below a merge the next one begins.", type=int)
@recipe_option(DropRecipe, "telescoping", "laco: of the folded blocks, keep only the last.", is_flag=True)
@recipe_option(DropRecipe, "calibration", "As for prune.")
@recipe_option(DropRecipe, "samples", "Calibration sequences.", type=int)
@recipe_option(DropRecipe, "seqlen", "Tokens per calibration sequence.", type=int)
@recipe_option(DropRecipe, "calibration_tokens", "Instead of samples: exactly so many tokens.", type=int)
@recipe_option(DropRecipe, "seed", "Seed of the calibration sample.", type=int)
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def drop_command(model: str, out: Path, device: str, dry_run: bool, overwrite: bool, **recipe: Any) -> None:
    """Remove decoder blocks of MODEL and write the result to the folder OUT."""
    show_summary(
        prunus.drop_blocks(model, out, DropRecipe(**recipe), device=device, overwrite=overwrite, dry_run=dry_run)
    )


def show_summary(summary: dict[str, Any]) -> None:
    """What prune and drop did, a line per fact, on stderr."""
    for key, value in summary.items():
        if isinstance(value, str | int | float | bool):
            progress.say(
                f"{key.replace('_', ' ')}: {value:.4g}"
                if isinstance(value, float)
                else f"{key.replace('_', ' ')}: {value}"
            )
    for warning in summary.get("warnings", ()):
        progress.say(f"warning: {warning}")


@command("inspect", "prunus inspect out/wanda-20")
@click.argument("checkpoint")
@json_option
def inspect_command(checkpoint: str, as_json: bool) -> None:
    """Sparsity per block and per Linear kind, N:M patterns, what was done to it, sizes."""
    from prunus.reporting.tables import inspection_tables

    data = prunus.inspect(checkpoint)
    if as_json:
        print_json(data)
    else:
        progress.out_console.print(*inspection_tables(data), sep="\n")


@command("perplexity", "prunus perplexity out/wanda-20 --text heldout.txt")
@model_argument
@click.option("--text", required=True, type=click.Path(path_type=Path), help="A .txt or .jsonl file.")
@click.option("--seqlen", default=2048, show_default=True, help="Tokens per window.")
@click.option("--max-tokens", type=int, help="Stop after so many tokens.")
@device_option
@json_option
def perplexity_command(model: str, text: Path, seqlen: int, max_tokens: int | None, device: str, as_json: bool) -> None:
    """Perplexity of MODEL on a text, in windows that do not overlap."""
    data = prunus.perplexity(model, text, seqlen=seqlen, max_tokens=max_tokens, device=device)
    if as_json:
        print_json(data)
    else:
        click.echo(f"{data['perplexity']:.4f}")


@command("eval", "prunus eval tiny --task tiny --budgets 16,64,256 --store results.db")
@model_argument
@click.option(
    "--task", "tasks", multiple=True, required=True, help="Name (see `prunus tasks`) or FILE.jsonl; repeatable."
)
@recipe_option(EvalPlan, "budgets", "Thinking tokens allowed.", type=IntegerList())
@recipe_option(EvalPlan, "samples", "Draws per problem and budget.", type=int)
@recipe_option(EvalPlan, "profile", "Markers of the model's thinking.", type=choice(recipes.ProfileName))
@recipe_option(EvalPlan, "mode", "Bounded answers, or as in the papers.", type=choice(recipes.Mode))
@recipe_option(EvalPlan, "answer_tokens", "Cap on the answer; default by mode and task.", type=int)
@recipe_option(EvalPlan, "wait", "How often a stop of thinking is refused.", type=int)
@recipe_option(EvalPlan, "temperature", "0 is greedy; default by profile.", type=float)
@recipe_option(EvalPlan, "top_p", "Default by profile.", type=float)
@recipe_option(EvalPlan, "top_k", "0 is off; default by profile.", type=int)
@recipe_option(EvalPlan, "prompt", "Bare problem, or asking for a box.", type=choice(recipes.PromptStyle))
@recipe_option(EvalPlan, "limit", "First so many problems of each task.", type=int)
@recipe_option(EvalPlan, "seed", "Seed of the draws.", type=int)
@recipe_option(EvalPlan, "backend", "Engine.", type=choice(recipes.BackendName))
@recipe_option(EvalPlan, "batch_size", "Rows decoded together.", type=int)
@click.option("--reuse/--no-reuse", default=True, show_default=True, help="Cut one trace for all budgets.")
@click.option("--store", type=click.Path(path_type=Path), default=Path("results.db"), show_default=True)
@device_option
def eval_command(model: str, store: Path, device: str, **plan: Any) -> None:
    """Accuracy of MODEL under thinking budgets, row by row into a store.

    Run it again to go on after an interruption; a finished run does no work.
    """
    run_id = prunus.evaluate(model, EvalPlan(**plan), store, device=device)
    from prunus.reporting.tables import curve_table
    from prunus.results.comparison import summarise
    from prunus.results.store import Store

    with Store(store) as opened:
        progress.out_console.print(curve_table([summarise(opened, run_id)]))


@command("traces", "prunus traces tiny traces.jsonl --task tiny-train --limit 200 --max-tokens 256 --only correct")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, required=True, help="Name or FILE.jsonl; repeatable.")
@recipe_option(TraceRecipe, "samples", "Chains per problem.", type=int)
@recipe_option(TraceRecipe, "max_tokens", "Thinking tokens allowed per chain.", type=int)
@recipe_option(
    TraceRecipe, "only", "Keep all chains, or those with the right answer.", type=choice(recipes.TraceFilter)
)
@recipe_option(TraceRecipe, "min_tokens", "Keep chains with so many thinking tokens.", type=int)
@recipe_option(TraceRecipe, "hardest", "Keep the harder half of the problems.", is_flag=True)
@recipe_option(TraceRecipe, "profile", "Markers of the model's thinking.", type=choice(recipes.ProfileName))
@recipe_option(TraceRecipe, "temperature", "0 is greedy; default by profile.", type=float)
@recipe_option(TraceRecipe, "prompt", "Bare problem, or asking for a box.", type=choice(recipes.PromptStyle))
@recipe_option(TraceRecipe, "limit", "First so many problems of each task.", type=int)
@recipe_option(TraceRecipe, "seed", "Seed of the draws.", type=int)
@recipe_option(TraceRecipe, "batch_size", "Rows decoded together.", type=int)
@device_option
@overwrite_option
def traces_command(model: str, out: Path, device: str, overwrite: bool, **recipe: Any) -> None:
    """MODEL's own chains of thought as token ids in OUT (.jsonl), for `--calibration traces:OUT`.

    Evaluation sets are refused. An interrupted run goes on where it stopped when the same command is given again.
    """
    show_summary(prunus.traces(model, out, TraceRecipe(**recipe), device=device, overwrite=overwrite))


@command("regrade", "prunus regrade results.db")
@store_argument
def regrade_command(store: Path) -> None:
    """Grade all stored texts again with this version's grader; nothing is generated."""
    for key, value in prunus.regrade(store).items():
        progress.say(f"{key}: {value}")


@command("compare", "prunus compare results.db --base tiny --other wanda-20")
@store_argument
@click.option("--base", required=True, help=base_option_help)
@click.option("--other", "others", multiple=True, help="Runs to compare; default: all others.")
@margin_option
@json_option
def compare_command(store: Path, base: str, others: tuple[str, ...], margin: float, as_json: bool) -> None:
    """Paired differences to a base run, and one word for each: better, worse, non-inferior, cannot tell."""
    data = prunus.compare(store, base, others or None, margin=margin)
    if as_json:
        print_json(data)
    else:
        from prunus.reporting.tables import verdict_table

        progress.out_console.print(verdict_table(data))


@command("report", "prunus report results.db report.html")
@store_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", help=base_option_help + " Default: the unpruned model.")
@margin_option
@overwrite_option
def report_command(store: Path, out: Path, base: str | None, margin: float, overwrite: bool) -> None:
    """One self-contained page: curves, differences, verdicts, tokens, what was pruned, texts that changed."""
    progress.say(f"wrote {prunus.report(store, out, base=base, margin=margin, overwrite=overwrite)}")


@command("demo", "prunus demo --out prunus-demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("prunus-demo"), show_default=True)
@click.option("--quick", is_flag=True, help="A fifth of the problems: a minute, wider intervals.")
def demo_command(out: Path, quick: bool) -> None:
    """The whole job on the built-in reasoner: prune, drop, evaluate, compare, report."""
    prunus.demo(out, quick=quick)


@command("tasks", "prunus tasks")
@json_option
def tasks_command(as_json: bool) -> None:
    """The built-in problem sets."""
    from prunus.evaluation.tasks import TASKS

    show_catalogue(
        [{"name": t.name, "source": t.source, "description": t.description} for t in TASKS.values()], as_json
    )


@command("methods", "prunus methods")
@json_option
def methods_command(as_json: bool) -> None:
    """The pruning methods, allocations and depth methods."""
    from prunus.pruning.allocation import ALLOCATIONS
    from prunus.pruning.depth import DEPTH_METHODS
    from prunus.pruning.methods import METHODS

    needs = {name: method.needs for table in (METHODS, ALLOCATIONS) for name, method in table.items()}
    needs |= {name: "hidden states" if method.needs_data else "nothing" for name, method in DEPTH_METHODS.items()}
    rows = [
        {"name": name, "source": method.source, "description": method.description, "needs": needs[name]}
        for table in (METHODS, ALLOCATIONS, DEPTH_METHODS)
        for name, method in table.items()
    ]
    show_catalogue(rows, as_json)


def show_catalogue(rows: list[dict[str, str]], as_json: bool) -> None:
    """Names with source and one line each."""
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
        click.echo(f"{row['name']:<{width}}  {row['description']} ({row['source']}{needs})")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit codes 0 done, 1 an error of ours, 2 wrong input or environment, 130 interrupted."""
    try:
        cli.main(arguments, prog_name="prunus", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; finished work is kept, the same command goes on from there", EXIT_INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_INPUT)
    except click.ClickException as error:
        fail(error.format_message(), EXIT_INPUT)
    except PrunusError as error:
        fail(str(error), EXIT_INPUT)
    except BrokenPipeError:
        # The reader of our output is gone (`prunus tasks | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            fail(f"the disk is full ({error.filename}); free some space and give the same command again", EXIT_INPUT)
        if _verbose:
            traceback.print_exc()
        fail(f"{type(error).__name__}: {error} (an error of ours; -v shows the traceback)", EXIT_INTERNAL)


def fail(message: str, code: int) -> None:
    """One line on stderr, then out."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
