"""Commands that read a store: runs, compare, card, export, report and verify."""

import sys
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress
from prunus.cli.common import choice, command, json_option, overwrite_option, print_json, show_summary, store_argument
from prunus.results.frames import Format

base_option_help = "Run to compare with: its id (or the start of it), model name, or label in the tables."
margin_option = click.option(
    "--margin",
    default="0.02",
    show_default=True,
    metavar="SHARE|N%",
    help="Largest acceptable loss of accuracy (0.02: two points; 5%: 5 % of what the base solves).",
)
stop_margin_option = click.option(
    "--stop-margin",
    default="0.05",
    show_default=True,
    metavar="SHARE|N%",
    help="Largest acceptable loss of chains that end by themselves, and change of the other endings.",
)
folder = click.Path(path_type=Path, file_okay=False)
DIFFERS = 1  # exit code of verify


@command("runs", "prunus runs results.db\nprunus runs results.db --remove 3f2a9b1c04de")
@store_argument
@click.option(
    "--remove",
    metavar="RUN",
    help="Remove this run with all its answers: its id (or the start of it), model name, or label.",
)
@json_option
def runs_command(store: Path, remove: str | None, as_json: bool) -> None:
    """List the runs of STORE: id, model, what was done to it, plan in short, and number of stored answers.

    With --remove, first remove one; there is no way back. A run that is being evaluated is not removed.
    """
    found = prunus.runs(store, remove)
    if as_json:
        print_json(found)
    else:
        from prunus.reporting.terminal import runs_table

        progress.out_console.print(runs_table(found))


@command("compare", "prunus compare results.db --base tiny --other wanda-20")
@store_argument
@click.option("--base", required=True, help=base_option_help)
@click.option(
    "--other", "others", multiple=True, help="Run to compare, named like --base; repeatable; default: all others."
)
@margin_option
@stop_margin_option
@json_option
def compare_command(
    store: Path, base: str, others: tuple[str, ...], margin: str, stop_margin: str, as_json: bool
) -> None:
    """Print paired differences to a base run, each with a verdict: better, worse, non-inferior, cannot tell."""
    data = prunus.compare(store, base, others or None, margin=margin, stop_margin=stop_margin)
    if as_json:
        print_json(data)
    else:
        from prunus.reporting.terminal import verdict_table
        from prunus.results.cells import Comparison

        progress.out_console.print(verdict_table(Comparison.of(data)))


@command("card", "prunus card out/wanda-50 --store results.db --base-model Qwen/Qwen3-0.6B")
@click.argument("checkpoint")
@click.option("--store", type=click.Path(path_type=Path), help="Store with a run of CHECKPOINT; default: no results.")
@click.option("--run", metavar="RUN", help="Which run of CHECKPOINT, where the store has several.")
@click.option("--base", metavar="RUN", help=base_option_help + " Default: the dense model, with the same plan.")
@click.option("--base-model", metavar="ORG/NAME", help="Hub id of the dense model, if prunus.json does not have it.")
@margin_option
@click.option("--out", type=click.Path(path_type=Path), help="File, or folder for README.md; default: CHECKPOINT.")
@click.option("--overwrite", is_flag=True, help="Replace a README.md that prunus did not write, or that was edited.")
def card_command(checkpoint: str, **options: Any) -> None:
    """Write the model card of CHECKPOINT, README.md, with the Hub's metadata.

    It has the steps that made the model, its zeros, its accuracy at each budget, its verdict against the dense model,
    and the commands that repeat them. Paths of this machine are cut to their last part.
    """
    show_summary(prunus.card(checkpoint, **options))


@command("export", "prunus export results.db frames --format parquet")
@store_argument
@click.argument("out", type=folder)
@click.option("--format", type=choice(Format), default="csv", show_default=True)
@overwrite_option
def export_command(store: Path, out: Path, format: Format, overwrite: bool) -> None:
    """Write the runs, draws and curves of STORE as files to the folder OUT (needs the extra frames)."""
    show_summary(prunus.export(store, out, format, overwrite))


@command("report", "prunus report results.db report.html")
@store_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", help=base_option_help + " Default: the unpruned model.")
@margin_option
@stop_margin_option
@click.option("--published", is_flag=True, help="Show published accuracies of the same models and tasks.")
@click.option(
    "--figures", type=folder, metavar="DIR", help="Also write every chart as .svg and .pdf (needs the extra figures)."
)
@click.option("--csv", type=folder, metavar="DIR", help="Also write every table as .csv and .tex (booktabs).")
@overwrite_option
def report_command(
    store: Path,
    out: Path,
    base: str | None,
    margin: str,
    stop_margin: str,
    published: bool,
    figures: Path | None,
    csv: Path | None,
    overwrite: bool,
) -> None:
    """Write a self-contained page: verdicts, curves, token counts, what was pruned, answers that changed."""
    page = prunus.report(
        store,
        out,
        base=base,
        margin=margin,
        stop_margin=stop_margin,
        published=published,
        figures=figures,
        csv=csv,
        overwrite=overwrite,
    )
    for folder, what in ((figures, "figures"), (csv, "tables")):
        if folder is not None:
            progress.say(f"wrote {what} into {folder}")
    progress.say(f"wrote {page}")


@command("verify", "prunus verify out/found/certificate.json --store results.db")
@click.argument("certificate", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), default=Path("results.db"), show_default=True)
@json_option
def verify_command(certificate: Path, store: Path, as_json: bool) -> None:
    """Compute the claims of CERTIFICATE, which `prunus find` wrote, again from the rows of the store.

    Prints a line per claim that holds, and one per other search on the same model and tasks in the store. Exit code 1:
    something is not as the certificate says; it prints what.
    """
    found = prunus.verify(certificate, store)
    if as_json:
        print_json(found)
    else:
        for claim in found["claims"]:
            click.echo(f"holds: {claim}")
        if not found["claims"] and not found["differences"]:
            click.echo("holds: no rung was certified, so nothing is claimed")
        for line in found["differences"]:
            click.echo(f"differs: {line}")
    for note in [*found["searches"], *found["notes"]]:
        progress.say(note)
    if found["differences"]:
        sys.exit(DIFFERS)
