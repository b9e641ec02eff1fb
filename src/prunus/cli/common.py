"""The group of all commands, their common options, and how data is printed."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import click

import prunus
from prunus import progress
from prunus.budgets import OFF, Off, with_names
from prunus.engines import EngineOptions, parse_args, users_of
from prunus.settings import settings_of
from prunus.step import Where

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


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Print errors only."
    )
    verbose = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose,
        help="Show the traceback of internal errors.",
    )  # fmt: skip
    return quiet(verbose(function))


def command(name: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator for a command with the common options and examples at the end of its help."""

    def register(function: Callable[..., None]) -> click.Command:
        epilog = "\n  ".join(("\b\nExample:", *examples))
        return cli.command(name, cls=_Command, epilog=epilog)(common_options(function))

    return register


def option(cls: type, name: str, *, flag: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    """An option with name, type, default, choices and help of a setting. flag: another name on the command line."""
    one = settings_of(cls)[name]
    words = flag or "--" + name.replace("_", "-")
    kinds = {one.type, *get_args(one.type)}
    settings = {"help": one.help, "metavar": one.metavar, "default": one.default} | settings
    settings["show_default"] = settings["default"] is not None and settings["default"] is not False
    if bool in kinds:
        settings["is_flag"] = True
        words = f"{words}/--no-{words[2:]}" if one.default else words
    elif one.choices:
        settings["type"] = click.Choice(one.choices)
    else:
        types = {
            int: int,
            float: float,
            str: str,
            Path: click.Path(path_type=Path),
            tuple[int | Off, ...]: BudgetList(),
        }
        settings["type"] = next((kind for of, kind in types.items() if of in kinds), str)
    return click.option(words, flag[2:].replace("-", "_") if flag else name, **settings)


def options(cls: type, names: Iterable[str] | None = None) -> Callable[[Any], Any]:
    """The options for settings of a class: those with these names, or all."""
    return all_of([option(cls, name) for name in (settings_of(cls) if names is None else names)])


def all_of(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One decorator for several options; help lists them in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


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
    names = [name for name in settings_of(EngineOptions) if name != "serve"]

    @wraps(function)
    def call(*given: Any, engine_args: str | None, **rest: Any) -> None:
        told = {name: rest.pop(name) for name in names if name != "args"}
        function(*given, engine=EngineOptions(parse_args(engine_args), **told), **rest)

    for name in reversed(names):
        help = f"{users_of(name)}: {settings_of(EngineOptions)[name].help}"
        changes: dict[str, Any] = {"flag": "--engine-args", "default": None} if name == "args" else {}
        call = option(EngineOptions, name, help=help, **changes)(call)
    return call


def is_given(name: str) -> bool:
    """Whether the user gave this option of the running command."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def margin(flag: str, default: str, help: str) -> Callable[[Any], Any]:
    """The option for a margin."""
    return click.option(flag, default=default, show_default=True, metavar="SHARE|N%", help=help)


def show(data: Any, as_json: bool, shown: str | Callable[[Any], object]) -> None:
    """Print data as JSON, the only output on stdout with --json, or as people read it.

    shown: prints it; or the name of a function in reporting/terminal.py, which takes a while to import, that makes a
    table of it, or several.
    """
    if as_json:
        click.echo(json.dumps(with_names(data), indent=1, ensure_ascii=False))
    elif isinstance(shown, str):
        from prunus.reporting import terminal

        tables = getattr(terminal, shown)(data)
        progress.out_console.print(*(tables if isinstance(tables, list | tuple) else [tables]), sep="\n")
    else:
        shown(data)


def show_verdicts(comparison: Mapping[str, Any]) -> None:
    """Print the table of a comparison."""
    from prunus.results.cells import Comparison

    show(Comparison.of(comparison), False, "verdict_table")


path = click.Path(path_type=Path)
model_argument = click.argument("model")
out_argument = click.argument("out", type=path)
device_option = option(Where, "device")
dry_run_option = option(Where, "dry_run")
overwrite_option = option(Where, "overwrite")
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
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
store_argument = click.argument("store", type=path)


def show_summary(summary: Mapping[str, Any]) -> None:
    """Print the summary of what a command did to stderr, one line per entry."""
    for key, value in summary.items():
        if isinstance(value, str | int | float | bool):
            shown = f"{value:.4g}" if isinstance(value, float) else value
            progress.say(f"{key.replace('_', ' ')}: {shown}")
    for warning in summary.get("warnings", ()):
        progress.say(f"warning: {warning}")
