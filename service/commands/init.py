"""`hubler-auth init`: make an empty store."""

import asyncio
import os

import typer

from events.files import user_name
from service.checkpoints import DirectoryInUse, lock, prepare
from service.commands.console import ConfigOption, group, say
from service.commands.session import exit_codes, log_of, owners_settings
from service.config import Settings
from service.keys import secrets_key

app = group()


@app.command("init")
def command(context: typer.Context, config: ConfigOption = None) -> None:
    chosen = owners_settings(context, config)
    directory = chosen.storage.directory
    with exit_codes(chosen):
        try:
            with lock(directory):
                made = _make(chosen)
        except DirectoryInUse:
            made = []  # whoever runs there has made the store
    if made:
        say(f"Made a store in {directory}, of user {user_name(os.geteuid())}: {', '.join(made)}.")
        say("Keep the log's public key where nobody on this machine can change it: hubler-auth replay vkey")
    else:
        say(f"There is a store in {directory} already. Nothing was changed.")


def _make(chosen: Settings) -> list[str]:
    """Make what is missing of an empty store, and name it. Raises what `prepare` does."""
    keys = (chosen.keys_directory / name for name in ("log.pem", "log.vkey", "secrets.key"))
    files = [chosen.database, chosen.checkpoint, *keys]
    directory = chosen.storage.directory
    before = {*directory.glob("*"), *directory.glob("keys/*")}
    asyncio.run(prepare(chosen))
    with log_of(chosen) as reader:
        secrets_key(chosen.keys_directory, create=not reader.has_secrets())
    return [str(file.relative_to(directory)) for file in files if file not in before]
