"""Commands for the first minutes: `init` writes a config."""

from pathlib import Path

import click

from taugrid.errors import UserError
from taugrid.orchestrator.cli.options import Command


@click.command(cls=Command)
@click.option("--checkpoint", metavar="DIR | ID", help="The network: a diffusers folder, or an id on the hub.")
@click.option(
    "--data",
    metavar="NAME[:ROOT]",
    help="The images: a data set, with the folder where it is; folder:DIR for PNG or JPEG, parquet:DIR, lsun/bedroom.  "
    "[default: of the checkpoint's shape, or digits]",
)
@click.option("--unet", is_flag=True, help="Train a U-Net also where the data's best network is known (gaussian).")
@click.option("--name", metavar="NAME", help="Of the experiment.  [default: the checkpoint's or the data's]")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write it there.  [default: print]"
)
def init(checkpoint: str | None, data: str | None, unet: bool, name: str | None, target: Path | None) -> None:
    """Print a config with a comment on each key, for a checkpoint or images that you have.

    Without --checkpoint, it trains a small U-Net. The checkpoint's files say which shape, classes, VAE and process it
    has; nothing is downloaded. An existing FILE is never replaced.

    Examples:
        taugrid init  # the demo: a small U-Net of digits, in minutes
        taugrid init --data fashion-mnist --to fashion.yaml  # a U-Net for these images
        taugrid init --data folder:pngs --name mine --to pngs.yaml  # for your own
        taugrid init --checkpoint facebook/DiT-XL-2-256  # for a network on the hub
    """
    if unet and checkpoint is not None:
        raise click.UsageError("--unet trains a network, and --checkpoint has one; give one of them")
    if target is not None and target.suffix not in (".yaml", ".yml"):
        raise UserError(f"--to {target}: a config is YAML; give FILE.yaml")
    from taugrid.orchestrator.cli.text.new_config import new_config

    text = new_config(checkpoint, data, unet, name)
    if target is None:
        click.echo(text, nl=False)
        return
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"--to {target} exists; give a new file") from None
    except OSError as error:
        raise UserError(f"--to {target}: {error.strerror}") from None
    click.echo(f"{target} is written; next: taugrid plan {target}", err=True)
