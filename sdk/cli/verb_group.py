"""A group of verbs whose modules are imported when they are used: completion and --help stay quick."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

HELP_OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


class VerbGroup(click.Group):
    """Verbs by a table: verb → (module of `package`, one line of help). A module's `command` is the verb."""

    def __init__(self, *arguments: Any, package: str, verbs: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._package = package
        self._verbs = verbs

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._verbs:
            return None
        module = importlib.import_module(f"{self._package}.{self._verbs[name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the verbs that a misspelt one may have meant."""
        if args and args[0] not in self._verbs and not args[0].startswith("-") and not context.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(args[0], self._verbs, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else f"; there are: {', '.join(self._verbs)}"
            raise click.UsageError(f"no verb {args[0]!r}{hint}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._verbs.items()])
