"""`taugrid config`: shows and checks configs, and prints their schema."""

import json

import click

from taugrid.orchestrator.cli.options import Group, json_option, print_value, set_option
from taugrid.words import counted


@click.group(cls=Group)
def config() -> None:
    """Look at a config."""


@config.command()
@click.argument("config")
@set_option
@json_option
def show(config: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print the whole config, with defaults filled in."""
    import yaml

    from taugrid.config.load import load

    values = load(config, assignments).model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100).rstrip()
    print_value(values, as_json, lambda _: text)


@config.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from taugrid.config import schema as config_schema

    click.echo(json.dumps(config_schema(), indent=2))


@config.command()
@click.argument("config")
@set_option
def validate(config: str, assignments: tuple[str, ...]) -> None:
    """Check a config, including its grid."""
    from taugrid.orchestrator.opened import open_config

    run = open_config(config, assignments, None)
    models, cells = counted(len(run.plan.models), "model"), counted(len(run.plan.cells), "cell")
    click.echo(f"{config} is valid: {models}, {cells}", err=True)
