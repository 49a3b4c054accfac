"""`hubler-auth config`: what the service would run with."""

import typer

from service.commands.console import ConfigOption, Format, FormatOption, group, say, settings, write_rows
from service.config import rows

app = group()


@app.command()
def check(context: typer.Context, config: ConfigOption = None) -> None:
    """Say whether the configuration can be used; exit 2 and name the key where not."""
    chosen = settings(context, config)
    if chosen.issuer_warning is not None:
        say(f"Warning: {chosen.issuer_warning}")
    say("The configuration is fine.")


@app.command()
def show(context: typer.Context, config: ConfigOption = None, format: FormatOption = Format.TABLE) -> None:
    """Every key, its value, and where the value came from. No secret is ever in the configuration."""
    write_rows(rows(settings(context, config)), ["key", "value", "source"], format)
