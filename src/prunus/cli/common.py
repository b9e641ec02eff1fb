"""The group of all commands, their common options, and how data is printed."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING
from functools import partial, wraps
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import prunus
from prunus import progress
from prunus.errors import PrunusError, nearest
from prunus.plain_data import plain, summary_lines
from prunus.settings import ADVANCED, GENERAL, GROUPS, OPTIONS, WHERE, settings_of
from prunus.settings.budgets import OFF, Off, with_names
from prunus.settings.engines import BACKENDS, REQUEST_EXAMPLE, EngineOptions, backend_of, parse_args, users_of
from prunus.settings.margins import MARGIN
from prunus.step import StepOptions
from prunus.visible import visible_json

if TYPE_CHECKING:
    from prunus.results.cells import Comparison

HEADINGS = ("Begin here", "Make", "Evaluate", "Decide", "Show", "Look")  # of commands in help
# Under a heading, these come in the order of use; all others follow as they are made.
USED = ("compare", "efforts", "find", "choose", "report", "view", "card", "inspect", "runs", "tasks", "profiles")
# What most people do, and why.
IN_ORDER = (
    ("prunus quantize MODEL small --bits 4 --calibration traces:own.jsonl", "make a variant"),
    ("prunus eval small --task gsm8k --engine vllm", "solve problems with it, and with MODEL"),
    ("prunus compare", "what it lost, with an error rate"),
)
WIDEST = 26  # columns of the names of options in help; a longer one has a line of its own
ALL = "prunus.help_all"  # key in the meta of a click context whose help shows the options of ADVANCED, too
_verbose = False


def verbose() -> bool:
    """Whether internal errors show their traceback (-v)."""
    return _verbose


def _set_verbose(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    global _verbose  # noqa: PLW0603  one switch for the process
    _verbose = _verbose or value


def _help_all(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


def _help(context: click.Context, _parameter: click.Parameter, word: str | None) -> None:
    """Print the help of a command; with a word, only the options that have it, or the help of the command so named."""
    if word is None or context.resilient_parsing:
        return
    group = context.command
    if isinstance(group, click.Group) and word in group.commands:
        context = click.Context(group.commands[word], context, info_name=word)
        word = ""
    click.echo(found_in_help(context, word) if word else context.get_help(), color=context.color)
    context.exit()


def found_in_help(context: click.Context, word: str) -> str:
    """The options of a command, or of all commands, whose name or text has a word; PrunusError without any."""
    group, formatter = context.command, context.make_formatter()
    commands = [*group.commands.values()] if isinstance(group, click.Group) else [group]
    for command in commands:
        records = (each.get_help_record(context) for each in command.params if isinstance(each, click.Option))
        found = [record for record in records if record and word.casefold() in " ".join(record).casefold()]
        if found:
            with formatter.section(f"prunus {command.name}"):
                formatter.write_dl(found, col_max=WIDEST)
    if not formatter.getvalue():
        raise PrunusError(f"no option of {context.command_path} has '{word}' in its name or text")
    return formatter.getvalue().strip("\n")


class _Helped(click.Command):
    def get_help_option(self, ctx: click.Context) -> click.Option:
        """Return the option for help, which may have a word to search for."""
        return _Option(
            ["-h", "--help"], is_flag=False, flag_value="", expose_value=False, is_eager=True, callback=_help,
            metavar="[WORD]", group=GENERAL, help="Show this, or the options that have WORD, and exit.",
        )  # fmt: skip


class _Group(_Helped, click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, in the order of use."""
        width = max(map(len, self.commands))
        with formatter.section("In this order"):
            formatter.write_dl(IN_ORDER)
        ordered = [*filter(self.commands.__contains__, USED), *(name for name in self.commands if name not in USED)]
        for heading in HEADINGS:
            listed = [name for name in ordered if getattr(self.commands[name], "heading", "") == heading]
            with formatter.section(heading):
                formatter.write_dl((f"{name:<{width}}", self.commands[name].get_short_help_str(200)) for name in listed)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write which models are supported; the version is looked up only when help is shown."""
        formatter.write_paragraph()
        formatter.write_text(
            f"MODEL is a folder, a hub id, or `tiny`: any decoder of transformers {version('transformers')} that can be"
            " run block by block. `prunus inspect MODEL` says what can be done with it."
        )


class _Option(click.Option):
    """An option under a heading of help, one of GROUPS."""

    def __init__(self, *words: Any, group: str = OPTIONS, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.group = group


class ChoiceType(click.Choice[str]):
    """The type of an option with these values. unknown: the error for other values; by default it names the nearest."""

    def __init__(self, choices: Iterable[str], unknown: Callable[[object], str] | None = None) -> None:
        super().__init__([*choices], case_sensitive=False)
        self.unknown = unknown or (lambda value: f"'{value}' is not known; {nearest(value, self.choices)}")

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        return self.unknown(value)


path = click.Path(path_type=Path)
own_option = partial(click.option, cls=_Option)
where_option = partial(own_option, group=WHERE)
_switch = partial(own_option, is_flag=True, expose_value=False, group=GENERAL)
_quiet = _switch("-q", "--quiet", callback=lambda _, __, value: progress.set_quiet(value), help="Print errors only.")
_loud = _switch("-v", "--verbose", callback=_set_verbose, help="Show the traceback of internal errors.")
_help_all_option = _switch("--help-all", is_eager=True, callback=_help_all, help="Show all options and exit.")


def group_of(option: click.Parameter) -> str:
    """The heading under which help lists an option, also for options that click itself adds."""
    return getattr(option, "group", GENERAL if "--help" in option.opts else OPTIONS)


class _Command(_Helped):
    def __init__(self, *given: Any, heading: str, rare: Sequence[str], **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.heading = heading
        for parameter in self.params:
            if parameter.name in rare:
                vars(parameter)["group"] = ADVANCED
        if any(group_of(parameter) == ADVANCED for parameter in self.params):
            _help_all_option(self)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings; those of ADVANCED only if all were asked for."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in GROUPS}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                rows[group_of(parameter)].append(record)
        left_out = [] if ALL in ctx.meta else rows.pop(ADVANCED)
        width = max(len(words) for entries in rows.values() for words, _ in entries if len(words) <= WIDEST)
        for heading, entries in rows.items():
            if entries:
                with formatter.section(heading):
                    formatter.write_dl([(f"{words:<{width}}", help) for words, help in entries], col_max=width)
        if left_out:
            formatter.write(f"\n{len(left_out)} more, for special cases: {ctx.command_path} --help-all\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, unless an option is NaN, which would pass every check of a range, or infinite."""
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is not a finite number.", ctx, option)
        return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"max_content_width": 100})
@click.version_option(prunus.__version__, prog_name="prunus")
def cli() -> None:
    """Prunus makes reasoning models smaller, and tests whether they still think."""


def command(
    heading: str, name: str, *examples: str, rare: Sequence[str] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator for a command, under one of HEADINGS, with the common options and examples at the end of its help.

    rare: the options that help shows only if it is asked for all, besides those of ADVANCED.
    """

    def register(function: Callable[..., None]) -> click.Command:
        epilog = "\n  ".join(("\b\nExample:", *examples))
        made = cli.command(name, cls=_Command, epilog=epilog, heading=heading, rare=rare)
        return made(_quiet(_loud(function)))

    return register


def option(cls: type, name: str, *, flag: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    """An option with name, type, default, choices and help of a setting. flag: another name on the command line."""
    setting = settings_of(cls)[name]
    words = flag or setting.option
    kinds = {setting.type, *get_args(setting.type)}
    default = settings.get("default", None if setting.default is MISSING else setting.default)
    make = partial(own_option, help=setting.help, default=default, group=setting.group, required=setting.required)
    make = partial(make, metavar=setting.metavar)
    if bool in kinds:
        make = partial(make, is_flag=True)
        words = f"{words}/--no-{words[2:]}" if setting.default else words
    elif setting.choices:
        make = partial(make, type=ChoiceType(setting.choices, setting.unknown))
    else:
        types = {str: str, int: Count(), float: float, Path: path, tuple[int | Off, ...]: BudgetList()}
        kind = next((kind for of, kind in types.items() if of in kinds), str)
        usual = "N" if isinstance(kind, Count) else "X" if kind is float else None
        make = partial(make, type=kind, metavar=setting.metavar or usual)
    if name == "engine":
        make = partial(make, envvar="PRUNUS_ENGINE")
    shown = default is not None and default is not False and not setting.required
    return make(words, flag[2:].replace("-", "_") if flag else name, show_default=shown, **settings)


def options(cls: type, names: Iterable[str] | None = None) -> Callable[[Any], Any]:
    """The options for settings of a class: those with these names, or all."""
    return all_of([option(cls, name) for name in (settings_of(cls) if names is None else names)])


def all_of(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One decorator for several options; help lists them in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


NUMBER = re.compile(r"\s*(-?\d+)([kKmM]?)\s*")
TIMES = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}  # as vLLM reads the numbers of its options


def whole_number(text: str) -> int:
    """The number of `4096`, `4k` (4,000) or `4K` (4,096); ValueError for another text."""
    found = NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) * TIMES[found[2]]


class Count(click.ParamType):
    """The type of an option with a whole number, which may end in k or m (thousands) or K or M (by 1,024)."""

    name = "integer"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return whole_number(str(value))
        except ValueError:
            self.fail(f"'{value}' is not a valid integer, such as 512 or 4k", param, ctx)


def several(*words: str, type: click.ParamType = click.STRING, **settings: Any) -> Callable[[Any], Any]:
    """An option that may be given again, and takes several values separated by commas."""

    def split(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> tuple[Any, ...]:
        parts = [part for text in given for part in ([text] if Path(text).is_file() else re.split(r",(?!\s)", text))]
        return tuple(type.convert(part, parameter, context) for part in parts)

    return own_option(*words, multiple=True, callback=split, **settings)


class BudgetList(click.ParamType):
    """The type of an option with whole numbers, and possibly `off`, separated by commas."""

    name = "N,N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(OFF if part.strip() == str(OFF) else whole_number(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 512,1024 or off,0,4k", param, ctx)


def engine_options(*without: str, alone: bool = True) -> Callable[[Any], Any]:
    """Options that only some engines use, which the function receives as EngineOptions named `options`.

    without: settings to leave out. alone: whether a server's address or command without `--engine` means a server.
    """
    # For a single command the shell sets the environment.
    names = [name for name in settings_of(EngineOptions) if name not in (*without, "environment")]
    made = []
    for name in names:
        help = f"{users_of(name)}: {settings_of(EngineOptions)[name].help}"
        flag, repeated = "--engine-args" if name == "args" else None, name in ("args", "request")
        changes = {"default": (), "multiple": True} if repeated else {}
        made.append(option(EngineOptions, name, flag=flag, help=help, **changes))

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def call(*given: Any, engine_args: Sequence[str], **rest: Any) -> None:
            request = parse_args(rest.pop("request"), "request fields", REQUEST_EXAMPLE)
            if "engine" in rest and not is_typed("engine"):  # a command on stored runs takes their engines
                if alone and any(rest[name] for name in ("url", "serve") if name in rest):
                    rest["engine"] = "openai"
                elif BACKENDS[backend_of(rest["engine"])].in_torch and find_spec("vllm") is not None:
                    progress.say("computed in transformers (hf); vLLM is installed, too: --engine vllm takes it")
            chosen = {name: rest.pop(name) for name in names if name in rest}
            function(*given, options=EngineOptions(parse_args(engine_args), request=request, **chosen), **rest)

        return all_of(made)(call)

    return decorate


def is_given(name: str) -> bool:
    """Whether the user gave this option of the running command."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def is_typed(name: str) -> bool:
    """Whether the user gave this option on the command line, and not by an environment variable."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def check_together(**owners: str) -> None:
    """Raise PrunusError if an option was given without the option that it needs. owners: {option: needed option}."""
    for name, owner in owners.items():
        if is_given(name) and not is_given(owner):
            raise PrunusError(f"--{name.replace('_', '-')} is for --{owner}: leave it out or add --{owner}")


def margin(flag: str, help: str) -> Callable[[Any], Any]:
    """The option for a margin."""
    return click.option(flag, default=str(MARGIN), show_default=True, metavar="SHARE|N%", help=help)


def show(data: object, as_json: bool, shown: str | Callable[[Any], object]) -> None:
    """Print data as JSON, the only output on stdout with --json, or as people read it.

    data: a record, or plain data. shown: prints it; or the name of a function in reporting/terminal.py, which takes a
    while to import, that makes a table of it, or several.
    """
    if as_json:
        in_unicode = "utf" in (sys.stdout.encoding or "utf").casefold()
        click.echo(visible_json(json.dumps(with_names(plain(data)), indent=1, ensure_ascii=not in_unicode)))
    elif isinstance(shown, str):
        from prunus.reporting import terminal

        tables = getattr(terminal, shown)(data)
        progress.out_console.print(*(tables if isinstance(tables, list | tuple) else [tables]), sep="\n")
    else:
        shown(data)


def show_verdicts(comparison: "Comparison", details: bool = False) -> None:
    """Print the table of a comparison, or with details all its tables."""
    from prunus.reporting.terminal import detail_tables, verdict_table

    progress.out_console.print((detail_tables if details else verdict_table)(comparison))


model_argument = click.argument("model")
out_argument = click.argument("out", type=path)
device_option = option(StepOptions, "device")
dry_run_option = where_option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
overwrite_option = option(StepOptions, "overwrite")
mixed_option = where_option(
    "--mixed", is_flag=True,
    help="Go on with a run of another device, version or server, where the base goes on, too, for a verdict.",
)  # fmt: skip
ray_options = all_of(
    [
        where_option(
            "--ray", is_flag=False, flag_value="auto", metavar="[HOST:PORT]",
            help="Run on a Ray cluster: this one, else $RAY_ADDRESS, else one started here.",
        ),
        where_option(
            "--gpus-per-task", type=click.FloatRange(0), metavar="N",
            help="With --ray: GPUs of each worker; default: 1, or 0 without GPUs.",
        ),
        where_option(
            "--cpus-per-task", type=click.FloatRange(0, min_open=True), metavar="N", default=1, show_default=True,
            help="With --ray: CPUs of each worker.",
        ),
    ]
)  # fmt: skip
recover_option = click.option(
    "--recover", is_flag=True, help="Then train what is kept, as `prunus recover` by default."
)
json_option = own_option("--json", "as_json", is_flag=True, group=GENERAL, help="Print JSON on stdout.")
STORE = "results.db"
store_option = where_option(
    "--store", type=path, default=STORE, show_default=True, envvar="PRUNUS_STORE", help="File of the results."
)


def stored(out: click.ParamType | None = None, usual: str = "") -> Callable[[Any], Any]:
    """A decorator that gives a command its store: the first argument, which may be left out, or --store.

    out: type of an argument OUT after it. usual: the default of OUT, whose suffix tells OUT from a store.
    """
    what = "STORE" if out is None else "[STORE] OUT"

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def call(*given: Any, words: tuple[Path, ...], store: Path, **rest: Any) -> None:
            names = list(words)
            if out is not None:
                ends = bool(names) and bool(usual) and names[-1].suffix == Path(usual).suffix
                names += [Path(usual)] if usual and not ends and len(names) <= 1 else []
                if not names or (len(names) == 1 and is_store(names[0])):
                    raise PrunusError(
                        f"name the file or folder OUT: prunus {click.get_current_context().info_name} {what}"
                    )
                rest["out"] = out.convert(names.pop(), None, click.get_current_context())
            if len(names) > 1:
                raise PrunusError(f"too many arguments after {what}: {', '.join(map(str, names[1:]))}")
            if names and is_typed("store"):
                raise PrunusError(f"{names[0]} and --store {store} are two stores: name one")
            function(*given, store=names[0] if names else store, **rest)

        metavar = "[STORE]" if out is None else f"[STORE] {'[OUT]' if usual else 'OUT'}"
        return click.argument("words", nargs=-1, type=path, metavar=metavar)(store_option(call))

    return decorate


def is_store(path: Path) -> bool:
    """Whether there is an SQLite file, or an empty one, as an interrupted creation leaves it."""
    try:
        with path.open("rb") as file:
            return file.read(6) in (b"SQLite", b"")
    except OSError:
        return False


def show_summary(made: object) -> None:
    """Print what a command did, a record or plain data, to stderr: a line per entry."""
    for line in summary_lines(plain(made)):
        progress.say(line)
