"""Where things are when nobody says so; found without loading any library."""

import os
from pathlib import Path

WEB_PORT = 8765


def default_state_dir() -> Path:
    """The folder of root, or of this user; raises ValueError when there is no home."""
    if os.geteuid() == 0:
        return Path("/var/lib/regraft")
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG rules say that a relative path is to be ignored.
    if data.startswith("/"):
        return Path(data) / "regraft"
    try:
        return Path.home() / ".local" / "share" / "regraft"
    except RuntimeError:
        raise ValueError(
            "this user has no home folder; set it to a folder to keep data in"
        ) from None
