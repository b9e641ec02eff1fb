"""Write a quantised checkpoint (FP8, MXFP4) as a plain one in bfloat16, block by block."""

import time
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.manifest import versions
from prunus.checkpoint.quantised import DEQUANTISED
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import Partial, check_target, disk_needed
from prunus.errors import PrunusError
from prunus.progress import Steps


def dequantize(model: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a bfloat16 copy of a model in FP8 or MXFP4 (folder or hub id) to the folder out; returns a summary.

    The summary has out, from (the quantisation method), blocks, seconds and warnings. The weights are those of
    transformers' from_pretrained with `dequantize`; they take two to four times the disk space of the original.
    Commands such as prune and drop read quantised models directly; this is for those that cannot, such as study.
    Unfinished work is kept in out.partial, where the same call resumes it. Raises PrunusError, and leaves nothing
    behind, if the model is not in FP8 or MXFP4, or out cannot be written.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), Path(out)
    if source.quantised is None:
        raise PrunusError(f"{source.folder} is not in {' or '.join(DEQUANTISED)}; there is nothing to dequantize")
    check_target(source.folder, target, overwrite)
    work = {"action": "dequantize", "source": source.fingerprint()}
    with Partial(source, target, work, source.blocks, disk_needed(source.nbytes), overwrite) as partial:
        with Steps("dequantizing", total=source.blocks, unit="blocks", done=len(partial.records)) as steps:
            for index in range(source.blocks):
                if not partial.has(index):
                    partial.write_block(index, source.block_tensors(index), {})
                    steps.advance()
        step = {
            "action": "dequantize",
            "recipe": {"method": source.quantised},
            "versions": versions(),
            "source": source.provenance(model),
            "warnings": [],
        }
        partial.finish(None, step)
    return {
        "out": str(target),
        "from": source.quantised,
        "blocks": source.blocks,
        "seconds": time.monotonic() - started,
        "warnings": source.reading_notes,
    }
