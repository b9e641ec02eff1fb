"""Commands between dense, packed and quantised checkpoints."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus.cli.common import command, overwrite_option, show_summary


@command(
    "pack",
    "prunus pack out/wanda-50 out/wanda-50-packed\nprunus pack out/wanda-50 out/wanda-50-masks --masks-only",
)
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--masks-only", is_flag=True, help="One bit per weight; needs the dense model again to unpack.")
@click.option("--int8", is_flag=True, help="Round kept weights of Linears to 8 bits: lossy.")
@click.option("--source", help="For --masks-only: the dense model; default: the one it was pruned from.")
@overwrite_option
def pack_command(checkpoint: str, out: Path, **options: Any) -> None:
    """Write the pruned CHECKPOINT to the folder OUT with a bit for each weight and only those that are not zero.

    Every weight comes back bit by bit. Other programs read only dense checkpoints: `prunus unpack` makes them again.
    """
    show_summary(prunus.pack(checkpoint, out, **options))


@command("unpack", "prunus unpack out/wanda-50-packed out/wanda-50")
@click.argument("packed")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--source", help="For masks alone: the dense model; default: the one they name.")
@click.option("--lossy", is_flag=True, help="Unpack values rounded to 8 bits too.")
@overwrite_option
def unpack_command(packed: str, out: Path, **options: Any) -> None:
    """Write a PACKED checkpoint to the folder OUT as plain dense safetensors, which any program reads."""
    show_summary(prunus.unpack(packed, out, **options))


@command("dequantize", "prunus dequantize openai/gpt-oss-20b gpt-oss-bf16")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@overwrite_option
def dequantize_command(model: str, out: Path, **options: Any) -> None:
    """Write MODEL, an original in FP8 or MXFP4, in bfloat16 to the folder OUT.

    Needed for a study only: prune, drop and the like read such a model as it is. The numbers are those that
    transformers makes of them. Takes two to four times the disk of the original; when stopped, the same command goes
    on.
    """
    show_summary(prunus.dequantize(model, out, **options))
