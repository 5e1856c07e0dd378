"""`taugrid board`: all runs below some folders and buckets on one page."""

import click

from taugrid.errors import UserError
from taugrid.orchestrator.cli.options import Command, Whole, json_option, print_value


@click.command(cls=Command)
@click.argument("places", metavar="DIR | URL ...", nargs=-1, required=True)
@click.option("--port", type=Whole(0, 65535), help="The port.  [default: 8000, or the next one that is free]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address; others than loopback need a token.")
@click.option("--to", "target", metavar="FOLDER", help="Write the page as static files, and serve nothing.")
@json_option
def board(places: tuple[str, ...], port: int | None, host: str, target: str | None, as_json: bool) -> None:
    """Show all runs below folders and buckets on one page, from what they recorded.

    It is served on this machine alone and follows runs at work, until Ctrl-C. A --host beyond loopback needs a token:
    that of TAUGRID_BOARD_TOKEN, or a new one that is printed. Nothing is planned, run or written below the folders.

    Examples:
        taugrid board runs --json  # all cells of all runs, for programs
    """
    if target is not None and as_json:
        raise click.UsageError("--to writes a page, and --json prints a document; give only one of them")
    from taugrid.orchestrator.board.document import records
    from taugrid.orchestrator.board.find import Place
    from taugrid.orchestrator.board.index import Index

    index = Index([Place.of(place) for place in places])
    if as_json:
        found = index.look_or_refuse()
        print_value(records(found), as_json, str)
        return
    raise UserError("taugrid board needs --json for now")
