"""`npuctl fw`: what firmware engineers do with files. Each subcommand is loaded when it is used."""

from __future__ import annotations

import importlib

import click

SUBCOMMANDS = {
    "export": ("export", "Export the register maps: C header, SystemRDL, HTML, JSON."),
}
"""Subcommand → (module of this package, one line of help)."""


class _Subcommands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{SUBCOMMANDS[name][0]}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in SUBCOMMANDS.items()])


@click.group("fw", cls=_Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Work with firmware and register maps; no device is needed."""
