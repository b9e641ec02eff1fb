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
@click.option(
    "--masks-only", is_flag=True, help="Store only the masks, one bit per weight; unpacking needs the dense model."
)
@click.option("--int8", is_flag=True, help="Round the kept weights of Linears to 8 bits, which is lossy.")
@click.option("--source", help="For --masks-only: the dense model; default: the one that CHECKPOINT was pruned from.")
@overwrite_option
def pack_command(checkpoint: str, out: Path, **options: Any) -> None:
    """Write the pruned CHECKPOINT to the folder OUT as one bit per weight and the values that are not zero.

    `prunus unpack` restores the dense checkpoint, which other programs need, bit by bit.
    """
    show_summary(prunus.pack(checkpoint, out, **options))


@command("unpack", "prunus unpack out/wanda-50-packed out/wanda-50")
@click.argument("packed")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--source", help="For masks only: the dense model; default: the one named in PACKED.")
@click.option("--lossy", is_flag=True, help="Allow PACKED to have values rounded to 8 bits (--int8).")
@overwrite_option
def unpack_command(packed: str, out: Path, **options: Any) -> None:
    """Write a PACKED checkpoint to the folder OUT as plain dense safetensors, which any program reads."""
    show_summary(prunus.unpack(packed, out, **options))


@command("dequantize", "prunus dequantize openai/gpt-oss-20b gpt-oss-bf16")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@overwrite_option
def dequantize_command(model: str, out: Path, **options: Any) -> None:
    """Write MODEL, a checkpoint in FP8 or MXFP4, in bfloat16 to the folder OUT.

    Only a study needs this: prune, drop and the other commands read quantised models directly. The weights equal those
    that transformers dequantises. OUT takes two to four times the disk space of MODEL. An interrupted run resumes when
    the same command is given again.
    """
    show_summary(prunus.dequantize(model, out, **options))
