"""The command line: its commands, and how errors become exit codes."""

import signal
import sys
from typing import NoReturn

import click

from taugrid import __version__
from taugrid.errors import Exit, RunFailed, UserError
from taugrid.orchestrator.cli import config, evaluate, look, run, selfcheck


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """How good are a diffusion model's samples at S steps?

    CONFIG is a file, the name of a shipped config (digits, gaussian), or a run directory.
    """


for command in (
    look.plan,
    run.run,
    run.train,
    run.sample,
    evaluate.evaluate,
    run.report,
    look.status,
    look.verify,
    look.export,
    look.compare,
    selfcheck.selfcheck,
    run.reconstruct,
    run.interpolate,
    config.config,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run a command. User errors are one line on stderr, bugs a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems send it; treat it like Ctrl-C
    try:
        cli.main(prog_name="taugrid", standalone_mode=False)
        sys.exit(Exit.DONE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"taugrid: {error}", err=True)
        sys.exit(Exit.USAGE)
    except RunFailed as error:
        click.echo(f"taugrid: {error}", err=True)
        sys.exit(Exit.FAILED)
    except (KeyboardInterrupt, click.Abort):
        click.echo("taugrid: interrupted; run the same command again to continue", err=True)
        sys.exit(Exit.INTERRUPTED)
