"""Run the tests whose numbers depend on the processor as several processors would.

    python scripts/processors.py [OPTIONS OF PYTEST, such as -n 2 or -k orderings]

These are the tests marked `real_llm` and those that compare a number with the fixture `below`. Of every number are
printed its lowest and its highest value, its limit and its slack: the distance of the limit from the highest value,
divided by the distance between the two values; then the tests that fail, with the settings. Exit code 1 if a test fails
or a slack is less than ten. On a processor with fewer instructions, some settings are the same.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 10
Pair = tuple[float, float]  # a value and its limit
ONEDNN, TORCH, MKL, THREADS = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS"
# Where oneDNN may use AMX but torch not AVX-512, as on no processor, torch's attention for bfloat16 fails.
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "this processor": {},
    "2 threads": {THREADS: "2"},
    "oneDNN with AVX-512 and bfloat16": {ONEDNN: "AVX512_CORE_BF16"},
    "oneDNN with AVX-512": {ONEDNN: "AVX512_CORE"},
    "oneDNN with AVX2": {ONEDNN: "AVX2"},
    "all with AVX2": {ONEDNN: "AVX2", TORCH: "avx2", MKL: "AVX2"},
    "torch with SSE, oneDNN with AVX2": {ONEDNN: "AVX2", TORCH: "default"},
}


def main() -> int:
    failed: dict[str, list[str]] = defaultdict(list)
    numbers: dict[str, list[Pair]] = defaultdict(list)
    for setting, variables in SETTINGS.items():
        print(f"{setting} ...", file=sys.stderr, flush=True)
        for test, passed, measured in run(variables, sys.argv[1:]):
            if not passed:
                failed[test].append(setting)
            for name, pair in measured.items():
                numbers[f"{test}: {name}"].append(pair)
    print(*table(numbers), sep="\n")
    for test, settings in failed.items():
        print(f"FAILED {test} ({', '.join(settings)})")
    narrow = sum(slack(pairs) < ENOUGH for pairs in numbers.values())
    print(f"{len(numbers)} numbers, {narrow} with a slack of less than {ENOUGH}; {len(failed)} tests failed")
    return int(bool(failed or narrow))


def run(variables: Mapping[str, str], options: Sequence[str]) -> Iterator[tuple[str, bool, dict[str, Pair]]]:
    """Of every test that is not skipped: its name, whether it passed, and its numbers with their limits, by name."""
    files = [file for file in ROOT.glob("tests/**/test_*.py") if re.search("below|real_llm", file.read_text())]
    inherited = {name: value for name, value in os.environ.items() if name not in (ONEDNN, TORCH, MKL)}
    environment = inherited | {THREADS: "1", "TOKENIZERS_PARALLELISM": "false"} | dict(variables)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "real_llm or rounding", f"--junitxml={report}"]
        done = subprocess.run([*command, *files, *options], check=False, cwd=ROOT, env=environment, capture_output=True)
        if done.returncode not in (0, 1):  # negative: it was killed
            raise SystemExit(done.stdout.decode() + done.stderr.decode())
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  pytest has just written it
            if case.find("skipped") is None:
                passed = case.find("failure") is None and case.find("error") is None
                measured = {one.get("name", ""): json.loads(one.get("value", "")) for one in case.iter("property")}
                yield f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}", passed, measured


def slack(pairs: Sequence[Pair]) -> float:
    """Distance of the limit from the highest value, divided by the distance of the highest from the lowest."""
    values, limit = [value for value, _ in pairs], pairs[0][1]
    moved = max(values) - min(values)
    return (limit - max(values)) / moved if moved else inf


def table(numbers: Mapping[str, Sequence[Pair]]) -> list[str]:
    """One line for every number, the least slack first."""
    lines = ["    lowest    highest     limit    slack  number"]
    for name, pairs in sorted(numbers.items(), key=lambda item: slack(item[1])):
        values = [value for value, _ in pairs]
        lines.append(f"{min(values):10.5g} {max(values):10.5g} {pairs[0][1]:9.4g} {slack(pairs):8.1f}  {name}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
