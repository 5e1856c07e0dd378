"""Where the files of data sets are, and their download by torchvision."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from taugrid.config import Data
from taugrid.errors import NotHere, UserError, joined_lines
from taugrid.storage import user_cache
from taugrid.workers.data.decoding import locked


class MissingImages(UserError):
    """The images of a published data set are not there. Its text is for the section `data` of a config."""

    def __init__(self, fault: str, root: str, *others: str) -> None:
        """Args: `fault`, what is missing where; `root`, what `data.root` must be; `others`, phrases of other fixes."""
        self.fault, self.root, self.others = fault, root, others
        super().__init__(f"data: {fault}: {', or '.join([f'set data.root to {root}', *others])}")

    def for_section(self, section: str) -> NotHere:
        """The same error for a different section that names a data set, such as `evaluate.reference`."""
        text = str(self).replace("data.root", f"{section}.root").replace("data.download", f"{section}.download")
        return NotHere(f"{section}: {text.removeprefix('data: ')}")


def default_root() -> Path:
    """The folder of data sets, also for downloads, unless `data.root` is set."""
    return user_cache() / "datasets"


def decoded_folder() -> Path:
    return user_cache() / "decoded"


def root_of(data: Data) -> Path:
    return default_root() if data.root is None else Path(data.root)


def download(name: str, root: Path) -> None:
    """Have torchvision download its data set `name` to `root`, or raise `UserError`. Other processes wait for it."""
    from torchvision import datasets

    try:
        with locked(root / f".{name}.lock"), redirect_stdout(sys.stderr):
            getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib's, gdown's, requests', torchvision's or the operating system's
        raise UserError(
            f"data: {name} can't be downloaded to {root}: {type(error).__name__}: {joined_lines(error)}"
        ) from error
