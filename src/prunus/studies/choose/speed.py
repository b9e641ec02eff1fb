"""The speed test: what each form takes on this machine, measured by child processes in turn (`measured_apart`)."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from prunus.checkpoint.device import cpu_info, processor
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.settings.engines import EngineOptions
from prunus.studies.choose.records import Cost, Machine, Timed
from prunus.studies.choose.speed_process import RESULT, SpeedTest, SpeedTestResult

ROUNDS = 3  # of the test, in each of which every form is tested once, so that other load hits all alike
KERNELS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")
TOKENS = 48  # that are timed after the prompt


def machine() -> Machine:
    """This machine."""
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", cpu_info())
    facts = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": " ".join(flag for flag in KERNELS if flags and flag in flags[1].split()) or None,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    return Machine.of(facts)


def speed_test_of_plan(
    work: ResolvedPlan, folder: Path, backend: str, device: str, engine: EngineOptions, chains: Sequence[int]
) -> SpeedTest:
    """The speed test of a form under a plan, with prompts of the task that are nearest to their mean length."""
    prompts = sorted((list(chain.prompt) for chain in work.chains), key=len)
    mean = sum(map(len, prompts)) / len(prompts)
    typical = sorted(prompts, key=lambda prompt: abs(len(prompt) - mean))[: max(chains)]
    markers, how = work.rules.markers, work.rules.sampling
    # llama.cpp ends at any end token of its file; the rest would be asked for anew, and the prompt read twice.
    special = {token for token, added in work.tokenizer.added_tokens_decoder.items() if added.special}
    room = (work.rules.context or 1 << 30) - len(prompts[-1]) - 2 * TOKENS
    return SpeedTest(
        backend=backend,
        folder=str(folder),
        device=device,
        vocabulary=len(work.tokenizer),
        engine=asdict(engine),
        chains=list(chains),
        prompts=typical,
        filler=typical[0][1:] or typical[0],
        depth=max(1, min(work.largest_budget, room)),
        tokens=min(TOKENS, max(2, work.largest_budget)),
        banned=sorted(special | markers.think_stops | markers.answer_stops),
        sampling=[how.temperature, how.top_p, how.top_k],
    )


def measured_apart(test: SpeedTest) -> SpeedTestResult:
    """Run a speed test in a child process. Raises PrunusError where the engine cannot be started."""
    # -P: no module from the current folder
    command = [sys.executable, "-P", "-m", "prunus.studies.choose.speed_process"]
    done = subprocess.run(command, input=json.dumps(test.to_json()), capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith(RESULT)), None)
    if line is None:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])[-500:]
        raise PrunusError(f"the speed test of {test.folder} ended without a result: {last}")
    found = json.loads(line.removeprefix(RESULT))
    if error := found.get("error"):
        raise PrunusError(error)
    return SpeedTestResult.of(found)


def cost_of(rounds: Sequence[SpeedTestResult], weights: int, cache: int) -> Cost:
    """The medians over rounds, and the largest peak. weights, cache: bytes as predicted for the test.

    The slowdown at the depth is the median of each round's own ratio, since the machine may be faster in one round than
    in another; and it is at least 1, since no engine draws a token sooner after more tokens.
    """
    times = []
    for parts in zip(*(round.times for round in rounds), strict=True):
        numbers = [[timing.prompt_seconds, timing.first, timing.last] for timing in parts]
        reads, first = statistics.median(row[0] for row in numbers), statistics.median(row[1] for row in numbers)
        slower = statistics.median(last / first for _, first, last in numbers)
        times.append(
            Timed(
                chains=parts[0].chains,
                prompt_tokens=max(1, round(parts[0].prompt_tokens)),
                prompt_seconds=reads,
                first=first,
                last=first * max(1.0, slower),
                depth=parts[0].depth,
                rounds=numbers,
            )
        )
    peak = max(*(round.peak for round in rounds), rounds[-1].device_bytes)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    loads = [round.load for round in rounds if round.load is not None]
    return Cost(
        times=times, peak=peak, weights=weights, cache=cache, engine=rounds[-1].engine, date=date,
        load=statistics.median(loads) if loads else None,
    )  # fmt: skip
