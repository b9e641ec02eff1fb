"""Commands on a store: import, regrade, runs, compare, card, export, report, view and verify."""

import sys
from pathlib import Path
from typing import Any, get_args

import click

import prunus
from prunus import progress
from prunus.cli.common import (
    ChoiceType,
    check_together,
    command,
    device_option,
    dry_run_option,
    engine_options,
    is_given,
    is_store,
    is_typed,
    json_option,
    margin,
    overwrite_option,
    path,
    several,
    show,
    show_summary,
    show_verdicts,
    store_option,
    stored,
)
from prunus.errors import PrunusError
from prunus.results.budget_map import GATEWAY, TARGETS
from prunus.results.cells import REQUIREMENTS
from prunus.results.frames import Format
from prunus.settings.engines import EngineOptions

UNMET = 3  # exit code
NAMES = "id (or its start), model, or label in tables"
base_option = click.option(
    "--base", metavar="RUN", help=f"Run to compare with: {NAMES}; default: the dense (unpruned) model."
)
margin_option = margin(
    "--margin", "Largest acceptable loss of accuracy (0.02: two points; 5%: 5 % of what the base solves)."
)
stop_margin_option = margin(
    "--stop-margin", "Largest loss of answers that stop by themselves, and change of other endings."
)
folder = click.Path(path_type=Path, file_okay=False)
DIFFERS = 1  # exit code of verify


@command(
    "Evaluate",
    "import",
    "prunus import results.db samples_gsm8k_2026-11-26T18-24-02.644730.jsonl --as my-model",
    "prunus import results.db short.jsonl long.jsonl --budget 512 --budget 2048 --as my-model",
)
@click.argument("words", nargs=-1, required=True, type=path, metavar="[STORE] FILE...")
@store_option
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the run in tables and for compare.")
@click.option("--metric", help="Metric that says what is correct; needed if the log has several.")
@click.option(
    "--threshold", type=float, help="Least score that counts as correct; needed if scores are not all 0 or 1."
)
@click.option(
    "--budget",
    "budgets",
    type=int,
    multiple=True,
    metavar="TOKENS",
    help="Thinking tokens that the run of each FILE allowed; repeatable, in their order.",
)
@json_option
def import_command(words: tuple[Path, ...], store: Path, as_json: bool, **given: Any) -> None:
    """Add a log of another evaluation tool to STORE.

    It is of lm-eval, inspect_ai, lighteval, evalscope, NeMo-Skills or NeMo Evaluator. Several FILEs are logs of one
    model, one for each task or seed. The first argument is STORE if it is one or does not exist yet.
    """
    first, *files = words
    if is_typed("store") or (first.exists() and not is_store(first)) or (not files and not is_store(first)):
        first, files = store, [*words]
    show(prunus.import_(first, files, **given), as_json, show_summary)


@command("Evaluate", "regrade", "prunus regrade results.db")
@stored()
@json_option
def regrade_command(store: Path, as_json: bool) -> None:
    """Grade all stored texts again, with the grader of this version."""
    show(prunus.regrade(store), as_json, show_summary)


@command("Look", "runs", "prunus runs results.db", "prunus runs results.db --remove 3f2a9b1c04de --yes")
@stored()
@click.option("--remove", metavar="RUN", help=f"Remove this run with all its answers: {NAMES}.")
@click.option("--yes", is_flag=True, help="Remove it without asking.")
@click.option("--rename", nargs=2, metavar="RUN NAME", help="Show the model of this run under another name.")
@json_option
def runs_command(store: Path, remove: str | None, yes: bool, rename: tuple[str, str] | None, as_json: bool) -> None:
    """List the runs of STORE, or first remove or rename one.

    Removing cannot be undone. The store keeps the plan and the times of a removed run, which later verdicts count.
    """
    check_together(yes="remove")
    if remove is not None and not yes:
        if not sys.stdin.isatty():
            raise PrunusError("--remove asks before it removes: add --yes where nobody can answer")
        if not click.confirm(f"Remove {remove} with all its answers from {store}?", err=True):
            return
    show(prunus.runs(store, remove, rename), as_json, "runs_table")


@command(
    "Decide",
    "compare",
    "prunus compare results.db",
    "prunus compare results.db --other wanda-20 --details",
    "prunus compare results.db --other wanda-20 --require non-inferior --require stops",
)
@stored()
@base_option
@several("--other", "others", metavar="RUN,...", help="Runs to compare, named like --base; default: all others.")
@margin_option
@stop_margin_option
@click.option("--details", is_flag=True, help="Also print what verdicts rest on, and every budget.")
@several(
    "--require",
    "requirements",
    type=ChoiceType(REQUIREMENTS),
    metavar="|".join(REQUIREMENTS),
    help="Exit code 3 unless each compared run loses less than --margin, or stops as the base does; also both.",
)
@click.option("--summary", type=path, metavar="FILE", help="Add a summary in Markdown to it: $GITHUB_STEP_SUMMARY.")
@click.option("--junit", type=path, metavar="FILE", help="Write each run and --require as a test in JUnit's XML.")
@json_option
def compare_command(
    store: Path,
    base: str | None,
    others: tuple[str, ...],
    details: bool,
    requirements: tuple[str, ...],
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
    **margins: Any,
) -> None:
    """Print paired differences to a base run, each with a verdict."""
    if junit is not None and not requirements:
        raise PrunusError("--junit says which requirements are met: add --require non-inferior,stops")
    comparison = prunus.compare(store, base, others or None, **margins)
    if summary is not None or junit is not None:
        from prunus.reporting import gates  # it takes a while to import

        if summary is not None:
            with summary.open("a", encoding="utf-8") as file:
                file.write(gates.summary(comparison, requirements))
        if junit is not None:
            junit.write_text(gates.junit(comparison, requirements), "utf-8")
    show(comparison, as_json, lambda _: show_verdicts(comparison, details))
    unmet = [line for requirement in requirements for line in comparison.unmet(requirement)]
    for line in unmet:
        progress.say(line)
    if unmet:
        sys.exit(UNMET)


class LevelsType(click.ParamType):
    """Levels as `NAME=MARGIN,...`: {name: margin}."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """The levels; fails with one line for anything else."""
        parts = [part.partition("=") for part in str(value).split(",")]
        if not all(name.strip() and margin.strip() for name, _, margin in parts):
            self.fail(f"'{value}' is no list of NAME=MARGIN, such as high=0.02,medium=0.05,low=10%", param, ctx)
        return {name.strip(): margin.strip() for name, _, margin in parts}


@command(
    "Decide",
    "efforts",
    "prunus efforts results.db",
    "prunus efforts results.db --levels high=0.02,medium=0.05,low=0.1 --json",
    "prunus efforts results.db --refine --dry-run",
    "prunus efforts results.db --run wanda-20 --for vllm",
)
@stored()
@click.option("--run", metavar="RUN", help=f"Only this run, besides the base: {NAMES}.")
@base_option
@click.option(
    "--levels",
    type=LevelsType(),
    metavar="NAME=MARGIN,...",
    help="Levels and the losses that they may not reach (0.02: two points; 5%: 5 % of what the model solves);"
    " default: high=0.02,medium=0.05,low=0.1.",
)
@click.option(
    "--for",
    "target",
    type=ChoiceType(TARGETS),
    help="Print the budgets of one run as JSON for an engine, gateways (openai: by reasoning_effort), or as numbers.",
)
@click.option(
    "--refine",
    is_flag=True,
    help="First answer the stored chains at budgets in steps of 2^(1/4), from the largest down, as far as levels go.",
)
@dry_run_option
@device_option
@engine_options()
@json_option
def efforts_command(
    store: Path,
    as_json: bool,
    target: str | None,
    refine: bool,
    dry_run: bool,
    device: str,
    options: EngineOptions,
    run: str | None,
    levels: dict[str, str] | None,
    base: str | None,
) -> None:
    """Print how much thinking is enough for each margin of loss.

    That is the smallest budget that loses less, of runs of several budgets. For a variant it also says with which
    budgets it is as right as the base.
    """
    check_together(dry_run="refine", device="refine")
    if dry_run:
        prunus.plan_refine_efforts(store, run, levels)
        return
    if refine:
        prunus.refine_efforts(store, run, levels, device=device, options=options)
    found = prunus.efforts(store, run, levels, base)
    if target is None:
        show(found, as_json, "effort_tables")
        return
    made = found.for_target(target, None if run is None else found.runs[-1])
    show(made.budgets if target == GATEWAY else made, True, "")
    for note in made.notes:
        progress.say(note)


@command("Show", "card", "prunus card out/wanda-20 --store results.db --base-model Qwen/Qwen3-0.6B")
@click.argument("checkpoint")
@click.option("--store", type=path, help="Results, with a run of CHECKPOINT; default: none.")
@click.option("--run", metavar="RUN", help="Which run of CHECKPOINT, if there are several.")
@base_option
@click.option("--base-model", metavar="ORG/NAME", help="Hub id of the dense model, if prunus.json does not have it.")
@margin_option
@click.option("--out", type=path, help="File, or folder for README.md; default: CHECKPOINT.")
@click.option("--overwrite", is_flag=True, help="Replace a README.md that you wrote or edited.")
@json_option
def card_command(checkpoint: str, as_json: bool, **options: Any) -> None:
    """Write the model card of CHECKPOINT, for the Hub.

    README.md has the Hub's metadata, the steps, the zeros, with --store accuracy and verdict, and the commands that
    repeat them. Local paths are cut to their last part.
    """
    check_together(margin="store")
    show(prunus.card(checkpoint, **options), as_json, show_summary)


@command("Show", "export", "prunus export results.db frames --format parquet")
@stored(folder)
@click.option(
    "--format", type=ChoiceType(get_args(Format)), default="csv", show_default=True, help="Needs the extra `frames`."
)
@overwrite_option
@json_option
def export_command(store: Path, out: Path, format: Format, overwrite: bool, as_json: bool) -> None:
    """Write runs, draws and curves of STORE as files to OUT."""
    show(prunus.export(store, out, format, overwrite), as_json, show_summary)


@command("Show", "report", "prunus report results.db report.html")
@stored(path, "report.html")
@base_option
@margin_option
@stop_margin_option
@click.option("--published", is_flag=True, help="Show published accuracies of the same models and tasks.")
@click.option(
    "--figures", type=folder, metavar="DIR", help="Also write every chart as .svg and .pdf (needs the extra figures)."
)
@click.option("--csv", type=folder, metavar="DIR", help="Also write every table as .csv and .tex (booktabs).")
@overwrite_option
@json_option
def report_command(store: Path, out: Path, figures: Path | None, csv: Path | None, as_json: bool, **given: Any) -> None:
    """Write a self-contained page: verdicts, curves, costs, changes."""
    page = prunus.report(store, out, figures=figures, csv=csv, **given)
    for folder, what in ((figures, "figures"), (csv, "tables")):
        if folder is not None:
            progress.say(f"wrote {what} into {folder}")
    named = {"page": page, "figures": figures, "csv": csv}
    made = {name: str(place) for name, place in named.items() if place is not None}
    show(made, as_json, lambda _: progress.say(f"wrote {page}"))


@command("Show", "view", "prunus view results.db", "prunus view results.db --export chains")
@stored()
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port; default: a free one.")
@click.option(
    "--export",
    type=folder,
    metavar="DIR",
    help="Write files instead, of at most 40 problems.",
)
@overwrite_option
def view_command(store: Path, **given: Any) -> None:
    """Read the chains of STORE side by side, on a local page.

    Needs the extra view. The page is at the address that is printed, for this machine only, until Ctrl-C.
    """
    check_together(overwrite="export")
    if is_given("export") and is_given("port"):
        raise PrunusError("--export writes files and serves nothing: leave out --port")
    prunus.view(store, **given)


@command("Decide", "verify", "prunus verify out/found --store results.db")
@click.argument("certificate", type=path)
@store_option
@click.option(
    "--again",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Draw N random chains of the dense model and of the checkpoint anew.",
)
@click.option("--seed", type=int, help="Of the choice of these chains; default: a new one.")
@device_option
@json_option
def verify_command(certificate: Path, store: Path, as_json: bool, **again: Any) -> None:
    """Recheck a CERTIFICATE of `prunus find`, or a choice.json.

    It may be the folder of one. Its claims are computed from the rows of the store, which are compared with their
    texts. It prints a line for each claim, other search, other run and removed run. Exit code 1: something differs; it
    prints what.
    """
    check_together(seed="again")
    verification = prunus.verify(certificate, store, **again)
    show(verification.to_json(), as_json, lambda _: progress.put("\n".join(verification.lines)))
    for note in [*verification.searches, *verification.notes, verification.unseen]:
        progress.say(note)
    if verification.differences:
        sys.exit(DIFFERS)
