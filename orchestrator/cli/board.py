"""`taugrid board`: all runs below some folders and buckets on one page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from taugrid.errors import UserError
from taugrid.orchestrator.cli.options import Command, Whole, echo, json_option, print_value, reader_may_leave
from taugrid.words import counted

if TYPE_CHECKING:
    from taugrid.orchestrator.board.index import Index


@click.command(cls=Command)
@click.argument("places", metavar="DIR | URL ...", nargs=-1, required=True)
@click.option("--port", type=Whole(0, 65535), help="The port.  [default: 8000, or the next one that is free]")
@click.option("--to", "target", metavar="FOLDER", help="Write the page as static files, and serve nothing.")
@json_option
def board(places: tuple[str, ...], port: int | None, target: str | None, as_json: bool) -> None:
    """Show all runs below folders and buckets on one page, from what they recorded.

    It is served on this machine alone and follows runs at work, until Ctrl-C. Only those who have the address that is
    printed can read it. Nothing is planned, run or written below the folders.

    Examples:
        taugrid board runs  # on 127.0.0.1, until Ctrl-C
        taugrid board runs --to site  # static files: for a disk, a bucket or GitHub Pages
        taugrid board runs history --json  # all cells of all runs, for programs
    """
    if target is not None and as_json:
        raise click.UsageError("--to writes a page, and --json prints a document; give only one of them")
    from taugrid.orchestrator.board.document import document_of, records
    from taugrid.orchestrator.board.find import Place
    from taugrid.orchestrator.board.index import Index

    index = Index([Place.of(place) for place in places])
    if as_json:
        print_value(records(index.look_or_refuse()), as_json, str)
    elif target is not None:
        from taugrid.orchestrator.board.site import check_target, write_site

        folder = check_target(target, index.places)
        found = index.look_or_refuse()
        unread = write_site(document_of(found, index.places), folder)
        _say(found.notes)
        lacking = f"; the images of {counted(unread, 'cell')} could not be read" if unread else ""
        echo(f"{counted(len(found.runs), 'run')} in {folder / 'index.html'}{lacking}")
    else:
        _serve(index, port)


def _serve(index: "Index", port: int | None) -> None:
    """Serve the board until Ctrl-C."""
    try:
        from taugrid.orchestrator.board import server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError("the board needs starlette and uvicorn; pip install 'taugrid[board]'") from None
    listening, token = server.listen(port), server.new_token()
    found = index.look_or_refuse()
    _say(found.notes)
    with reader_may_leave():
        echo(f"{counted(len(found.runs), 'run')} on {server.address_of(listening, token)} (Ctrl-C ends it)")
    server.serve(server.application(index, found, token), listening)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        echo(f"taugrid: {note}", err=True)
