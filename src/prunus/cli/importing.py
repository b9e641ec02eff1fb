"""The command that imports logs of other evaluation tools."""

from pathlib import Path

import click

import prunus
from prunus.cli.common import command, show_summary, store_argument


@command("import", "prunus import results.db samples_gsm8k_2026-11-26T18-24-02.644730.jsonl --as my-model")
@store_argument
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the run in tables and for compare.")
@click.option("--metric", help="Metric that says whether an output is correct; needed if the log has several.")
@click.option(
    "--threshold", type=float, help="Least score that counts as correct; needed if there are others than 0 and 1."
)
def import_command(
    store: Path, files: tuple[Path, ...], name: str, metric: str | None, threshold: float | None
) -> None:
    """Add a log of lm-eval, inspect_ai, lighteval or evalscope to STORE as a run without thinking budget ("as run").

    Several FILEs are logs of one model, such as one for each task.
    """
    show_summary(prunus.import_rows(store, files, name, metric, threshold))
