"""Files of a choice: choice.json, the page, the form, and the command that serves it."""

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.disk import replace_folder, write_text
from prunus.errors import PrunusError, unreadable
from prunus.formats import FORMATS, check_format
from prunus.machine_load import SPINS
from prunus.manifest import read_manifest
from prunus.plain_data import canonical_json, parse_json
from prunus.progress import say
from prunus.pruning.job import renew_card
from prunus.results.certificate import MEANINGLESS, content_of
from prunus.settings.engines import BACKENDS
from prunus.store.characters import one_line
from prunus.studies.choose.forms import ChoiceRequest, OpenedForm
from prunus.studies.choose.limits import LIMITS
from prunus.studies.choose.page import page
from prunus.studies.choose.records import (
    FILE,
    PAGE,
    SCRIPT,
    Choice,
    ChoiceHistory,
    ChoiceResult,
    Costs,
    Declared,
    Timed,
)
from prunus.studies.choose.rows import FormRows
from prunus.version import __version__

if TYPE_CHECKING:
    from prunus.studies.choose.speed_process import Timing  # it imports torch

WEIGHTS = (".safetensors", ".gguf")
LONGEST, MOST = 200, 1 << 60  # characters of a reason in a message; of any number in a choice.json


def read_choice(file: Path) -> Choice:
    """The choice that a choice.json has. Raises PrunusError if it is none."""
    try:
        return checked_choice(parse_json(file.read_text("utf-8")), str(file))
    except OSError as error:
        raise unreadable(str(file), error) from error
    except ValueError as error:
        raise PrunusError(f"{file} is no choice.json") from error


def checked_choice(data: Any, where: str) -> Choice:
    """The choice that plain data describe. where: they come from, for messages. Raises PrunusError if they are none."""
    try:
        check_format("choice", where, data["format"], "`prunus choose` with the same --store makes a new one")
        choice = Choice.of(data)
        check_sense(choice)
        return choice
    except MEANINGLESS as error:
        raise PrunusError(
            f"{where} is no choice.json that prunus has written: {one_line(str(error), LONGEST)}"
        ) from error


def check_sense(choice: Choice) -> None:
    """Raise ValueError for numbers out of range, forms that are named twice, or values of an undeclared form."""
    declared, costs = choice.declared, choice.costs
    check_numbers(choice.to_json())
    runs = [form.run for form in declared.forms]
    least = {"users": 1, "look": 1, "pilot": 1, "seed": 0, "answer": 0}
    wrong = [name for name, number in least.items() if getattr(declared, name) < number]
    wrong += [name for name in ("alpha", "margin") if not 0 < getattr(declared, name) < 1]
    wrong += [limit.name for limit in LIMITS if limit.of(declared) <= 0]
    wrong += [name for name in ("budgets", "forms", "problems") if not getattr(declared, name)]
    if wrong or len({*declared.budgets}) < len(declared.budgets) or len({*runs}) < len(runs):
        raise ValueError(f"what it declares makes no sense ({', '.join(wrong) or 'something is named twice'})")
    if declared.pilot > len(declared.order):
        raise ValueError("it declares fewer problems than those that decide what fits")
    if not {*costs.forms, *choice.rows} <= {*runs}:
        raise ValueError("it has speeds or rows of a form that it does not declare")
    for cost in costs.forms.values():
        check_times(cost.times)
        if lacking := set(declared.chains) - {timing.chains for timing in cost.times}:
            raise ValueError(f"it has no speed of {min(lacking)} chains at once")
    for form in declared.forms:
        form.cache.nbytes(1)


def check_numbers(value: Any) -> None:
    """Raise ValueError for a number outside [-1, MOST]; -1 is the budget of a chain without thinking."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            check_numbers(inner)
    elif isinstance(value, int | float) and not -1 <= value <= MOST:
        raise ValueError(f"no number can be {value:g}" if abs(value) <= MOST else "a number is too large")


def check_times(times: Sequence["Timing | Timed"]) -> None:
    """Raise ValueError for speeds that no engine can have."""
    for timing in times:
        if (
            timing.chains < 1
            or timing.prompt_tokens <= 0
            or not min(timing.prompt_seconds, timing.first, timing.last) > 0
        ):
            raise ValueError(f"no engine is as fast as it says with {timing.chains} chains at once")


def choice_of(
    declared: Declared,
    costs: Costs,
    shown: ChoiceResult,
    rows: FormRows,
    looked: Mapping[str, int],
    looks: ChoiceHistory,
) -> Choice:
    """The content of choice.json. looked: rounds of each run that were looked at."""
    runs = {choice.run for choice in shown.choices if choice.problems}
    digests = {run: rows.digest(run, looked[run]) for run in sorted(runs)}
    made = Choice(
        format=FORMATS["choice"],
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        declared=declared,
        costs=costs,
        shown=shown,
        rows=digests,
        looks=looks,
        content="",
    )
    return replace(made, content=content_of(made.to_json()))


def publish(data: Choice, work: OpenedForm, made: Path, target: Path, request: ChoiceRequest, overwrite: bool) -> None:
    """Write the folder of a choice: the form, the command that serves it, what was decided, and the page.

    made: the folder of the form.
    """
    partial = work.folder / "out"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(made, partial, copy_function=linked, ignore=shutil.ignore_patterns(".git*", "*.writing"))
    if read_manifest(partial).history:  # a model as it is keeps its own card
        try:
            renew_card(partial)
        except PrunusError as error:
            say(f"the card of the model stays as it is: {error}")
    write_text(partial / FILE, canonical_json(data.to_json()) + "\n")
    write_text(partial / PAGE, page(data))
    write_text(partial / SCRIPT, script(data, work, request))
    (partial / SCRIPT).chmod(0o755)
    replace_folder(partial, target, overwrite)


def linked(source: str, target: str) -> str:
    """A hard link to a file of weights where that is possible, and a copy of any other file, which users may edit."""
    real = os.path.realpath(source)
    if Path(source).suffix in WEIGHTS:
        with suppress(OSError):
            os.link(real, target)
            return target
    shutil.copy2(real, target)
    return target


def script(data: Choice, work: OpenedForm, request: ChoiceRequest) -> str:
    """The command that serves the chosen form, with its context, number of chains, and budget."""
    row, declared = data.shown.chosen, data.declared
    assert row is not None
    tokens, slots = work.form.longest + row.budget + declared.answer, row.votes * declared.users
    name = work.model.label.rpartition("/")[2]
    options, in_torch = request.options, BACKENDS[request.engine.backend].in_torch
    command = request.engine.script(name, options.serve, options.args, (tokens, slots, work.form.cache))
    # Its speed was measured so; other engines have libgomp's own number.
    spins = {"GOMP_SPINCOUNT": SPINS} if in_torch and os.environ.get("GOMP_SPINCOUNT") == SPINS else {}
    votes = f" Ask {row.votes} times with other seeds, and take the answer that most give." if row.votes > 1 else ""
    lines = [
        "#!/bin/sh",
        f"# {row.name}, as chosen by prunus {__version__}.",
        f"# Thinking budget: {row.budget} tokens, after which the thinking is ended and the answer asked for"
        f" (prunus eval --budgets {row.budget}).{votes}",
        *([f"# Every request has {json.dumps(dict(options.request))}."] if options.request else []),
        f"# Cache: keys {work.form.cache.keys}, values {work.form.cache.values}; {tokens} tokens for each chain.",
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
        "port=${PORT:-8080}",
        *(f"export {key}={shlex.quote(value)}" for key, value in sorted({**spins, **options.environment}.items())),
        f"exec {command}",
    ]
    return "\n".join(lines) + "\n"
