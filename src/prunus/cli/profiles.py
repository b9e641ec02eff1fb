"""The command that lists profiles, and shows one as it takes effect for a model."""

import click

import prunus
from prunus.cli.catalogue import print_list
from prunus.cli.common import command, json_option, print_json


@command(
    "profiles",
    "prunus profiles\nprunus profiles --model Qwen/Qwen3-0.6B\nprunus profiles mine.toml --model my-model",
)
@click.argument("name", required=False)
@click.option("--model", help="Show the profile for this model: a prompt, and every marker with its token ids.")
@json_option
def profiles_command(name: str | None, model: str | None, as_json: bool) -> None:
    """List the built-in profiles, or show the profile NAME (also a FILE.toml).

    With --model and without NAME, show the profile that the model's own files indicate.
    """
    if name is None and model is None:
        print_list(prunus.profiles(), as_json)
        return
    found = prunus.show_profile(name or "auto", model)
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for key, value in found.items():
        click.echo(f"{key:<{width}}  {value!r}")
