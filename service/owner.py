"""Whose files: on a store that belongs to another user, root works as that user.

Everything that is made there is then the owner's from the first moment on, and readable by the service. To make it
as root and to give it away afterwards would be a race: a running service looks at the store several times a second.
"""

import getpass
import os
from contextlib import suppress
from pathlib import Path

from events.files import user_name


class CannotBecomeOwner(Exception):
    """Root cannot work as the owner of `storage.directory`; the text says why."""


def become_owner(directory: Path) -> None:
    """Take the uid and gid of the directory's owner, for good, if this process is root's and the directory is not.

    Before anything in it is opened. Raises `CannotBecomeOwner`, and `OSError` where the directory cannot be looked at.
    """
    if os.geteuid() != 0:
        return
    try:
        found = directory.stat()
    except FileNotFoundError:
        return  # what root makes is root's
    if found.st_uid == 0:
        return
    with suppress(KeyError, OSError):
        os.environ["LOGNAME"] = getpass.getuser()  # events name who typed the command
    user = user_name(found.st_uid)
    try:
        os.setgroups([])
        os.setgid(found.st_gid)
        os.setuid(found.st_uid)
    except OSError as error:
        raise CannotBecomeOwner(
            f"{directory} belongs to user {user}, and root cannot become that user: {str(error.strerror).lower()};"
            f" run this as {user}"
        ) from None
