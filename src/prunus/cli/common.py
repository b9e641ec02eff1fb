"""The group of all commands, their common options, and how data is printed."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import click

import prunus
from prunus import progress
from prunus.budgets import OFF, with_names
from prunus.engines import EngineOptions, parse_args, users_of

_verbose = False


def verbose() -> bool:
    """Whether internal errors show their traceback (-v)."""
    return _verbose


def _set_quiet(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    progress.set_quiet(value)


def _set_verbose(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    global _verbose  # noqa: PLW0603  one switch for the process
    _verbose = _verbose or value


class _Group(click.Group):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write which models are supported; the version is looked up only when help is shown."""
        formatter.write_paragraph()
        formatter.write_text(
            f"MODEL is a folder, a hub id, or `tiny`: any decoder of transformers {version('transformers')} that can be"
            " run block by block. `prunus inspect MODEL` says what can be done with it."
        )


class _Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, unless an option is NaN, which would pass every check of a range, or infinite."""
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is not a finite number.", ctx, option)
        return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(prunus.__version__, prog_name="prunus")
def cli() -> None:
    """Prune a reasoning LLM, measure accuracy against thinking budget, and say whether it still thinks."""


def command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator for a command with the common options and an example at the end of its help."""

    def register(function: Callable[..., None]) -> click.Command:
        quiet = click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Print errors only."
        )
        verbose = click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_set_verbose,
            help="Show the traceback of internal errors.",
        )
        epilog = "\b\nExample:\n  " + example.replace("\n", "\n  ")
        return cli.command(name, cls=_Command, epilog=epilog)(quiet(verbose(function)))

    return register


def recipe_option(recipe: type, field: str, help: str, **settings: Any) -> Callable[[Any], Any]:
    """An option with the name and default of a field of the recipe."""
    default = next(f.default for f in fields(recipe) if f.name == field)
    if default is not MISSING:
        settings = {"default": default, "show_default": default is not None} | settings
    words = field.replace("_", "-")
    switch = f"--{words}/--no-{words}" if default is True else f"--{words}"
    return click.option(switch, field, help=help, **settings)


def all_of(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One decorator for several options; help lists them in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def choice(names: Any) -> click.Choice:
    """A choice among names, or among the values of a Literal type."""
    return click.Choice(get_args(names) or tuple(names))


class BudgetList(click.ParamType):
    """The type of an option with whole numbers, and possibly `off`, separated by commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(OFF if part.strip() == str(OFF) else int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 512,1024 or off,0,512", param, ctx)


def engine_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of single backends; the function receives them as one `engine`."""
    usual = EngineOptions()

    @wraps(function)
    def call(*args: Any, engine_args: str | None, **rest: Any) -> None:
        told = {key: rest.pop(key) for key in ("url", "served_model", "tokenizer", "concurrency", "timeout", "sparse")}
        engine = EngineOptions(parse_args(engine_args), **told)
        function(*args, engine=engine, **rest)

    options = (
        _engine_option("args", "--engine-args", "arguments of vllm.LLM.", metavar="JSON"),
        _engine_option("url", "--url", "the server's address, such as http://localhost:8000/v1."),
        _engine_option("served_model", "--served-model", "the server's name for MODEL, if it differs.", metavar="NAME"),
        _engine_option(
            "tokenizer",
            "--tokenizer",
            "the served model's tokenizer; MODEL is then only its name.",
            metavar="FOLDER|HUB-ID",
        ),
        _engine_option(
            "concurrency", "--concurrency", "most simultaneous requests; the default follows the server.", type=int
        ),
        _engine_option("timeout", "--timeout", "seconds for the whole reply to a request.", default=usual.timeout),
        _engine_option(
            "sparse",
            "--sparse/--no-sparse",
            "on a CPU, multiply packed and 16-bit weights with Prunus's kernel.",
            default=usual.sparse,
        ),
    )
    for option in reversed(options):
        call = option(call)
    return call


def _engine_option(setting: str, name: str, help: str, **settings: Any) -> Callable[[Any], Any]:
    """An option whose help names the backends that use it."""
    return click.option(name, help=f"{users_of(setting)}: {help}", show_default="default" in settings, **settings)


def is_given(name: str) -> bool:
    """Whether the user gave this option of the running command."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def print_json(data: Any) -> None:
    """Print data as JSON, the only output on stdout with --json."""
    click.echo(json.dumps(with_names(data), indent=1, ensure_ascii=False))


model_argument = click.argument("model")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, ...; auto: a GPU if there is one."
)
ray_options = all_of(
    [
        click.option(
            "--ray",
            is_flag=False,
            flag_value="auto",
            metavar="[HOST:PORT]",
            help="Run on a Ray cluster: at this address, else at $RAY_ADDRESS, else one started on this machine.",
        ),
        click.option(
            "--gpus-per-task",
            type=click.FloatRange(0),
            help="With --ray: GPUs of each worker; default: 1, or 0 without GPUs.",
        ),
        click.option(
            "--cpus-per-task",
            type=click.FloatRange(0, min_open=True),
            default=1,
            show_default=True,
            help="With --ray: CPUs of each worker.",
        ),
    ]
)
recover_option = click.option(
    "--recover", is_flag=True, help="Then train what is kept, as `prunus recover` does without options of its own."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
store_argument = click.argument("store", type=click.Path(path_type=Path))


def show_summary(summary: dict[str, Any]) -> None:
    """Print the summary of what a command did to stderr, one line per entry."""
    for key, value in summary.items():
        if isinstance(value, str | int | float | bool):
            progress.say(
                f"{key.replace('_', ' ')}: {value:.4g}"
                if isinstance(value, float)
                else f"{key.replace('_', ' ')}: {value}"
            )
    for warning in summary.get("warnings", ()):
        progress.say(f"warning: {warning}")
