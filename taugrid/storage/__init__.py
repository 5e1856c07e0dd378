"""Where files live, and how they appear: whole or not at all. Local folders, and object stores by URL."""

from taugrid.storage.files import (
    READS_TOGETHER,
    end_session,
    is_same,
    lines_of,
    pieces,
    read_json,
    read_sealed,
    replacing,
    together,
    upload_folder,
    write_json,
    write_sealed,
)
from taugrid.storage.local import LOCAL, LocalStorage, user_cache, write_text
from taugrid.storage.objects import is_url, open_place
from taugrid.storage.protocol import ANY, Level, Stat, Storage
