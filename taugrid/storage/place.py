"""From the text of a command to a place: a folder, or a URL of an object store."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from taugrid.errors import UserError
from taugrid.storage import requests
from taugrid.storage.local import LocalStorage
from taugrid.storage.objects import ObjectStorage
from taugrid.storage.protocol import Storage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")


def is_url(text: str) -> bool:
    """Whether a text names a place by a scheme, such as s3://bucket/run, and not by a path."""
    return _SCHEME.match(text) is not None


def open_place(text: str, named: str) -> tuple[Path, Storage]:
    """The root of a run directory and its storage. Sends no request to an object store yet.

    Args:
        text: a path, or s3://BUCKET/PREFIX, gs:// or az:// with a container in the bucket's place.
        named: what the text is, for messages: an option or an argument.

    Raises:
        UserError: for a URL of an unknown scheme, without a bucket, or with a password in it.
    """
    if not is_url(text):
        root = Path(text).absolute()
        return root, LocalStorage(root)
    scheme, rest = text.split(":", 1)
    rest = rest.lstrip("/")
    if "@" in rest or "?" in rest or "#" in rest:
        where = requests.CREDENTIALS.get(scheme, "the environment")
        raise UserError(
            f"{named}: a URL of a run directory is {scheme}://BUCKET/PREFIX, without a user, a password, a key or a "
            f"query; credentials belong in {where}"
        )
    if scheme not in requests.CREDENTIALS:
        known = ", ".join(f"{name}://" for name in requests.CREDENTIALS)
        raise UserError(f"{named}: {scheme}:// can't hold a run directory; give a folder, or a URL with {known}")
    bucket, *parts = [part for part in rest.split("/") if part] or [""]
    if not bucket:
        raise UserError(f"{named}: {scheme}:// names no bucket; give {scheme}://BUCKET/PREFIX")
    if {".", ".."} & {bucket, *parts}:
        raise UserError(f"{named} {scheme}://{rest}: . and .. mean nothing in a bucket; leave them out")
    reached = requests.bucket_here(scheme, bucket)
    if reached.endpoint is not None and urlsplit(reached.endpoint).username is not None:
        variables = requests.CREDENTIALS[scheme]
        raise UserError(f"the endpoint of {scheme}:// in the environment holds a password; put it into {variables}")
    if reached.endpoint is not None and not re.match(r"https?://[^/]", reached.endpoint):
        raise UserError(
            f"the endpoint of {scheme}:// in the environment must be http://HOST:PORT or https://HOST, not "
            f"{reached.endpoint!r}"
        )
    if scheme == "az" and reached.account is None:
        raise UserError(f"{named}: az:// needs the storage account; set AZURE_STORAGE_ACCOUNT_NAME")
    root = Path(f"{scheme}:", bucket, *parts)
    return root, ObjectStorage(reached, root)
