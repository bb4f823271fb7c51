"""Options that take several values in a row: `--protocol knn linear`."""

from __future__ import annotations

import typer
from typer.core import TyperCommand


class ManyValues(TyperCommand):
    """A command whose repeatable options may be given once with several values.

    A value that looks like an option ends the list. What follows the list must be an option, so arguments come first.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        many = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False) and "--set" not in parameter.opts
            for name in parameter.opts
        }
        spread: list[str] = []
        current = ""
        for number, word in enumerate(args):
            if word == "--":
                spread += args[number:]
                break
            if word.startswith("-") and not word.removeprefix("-").replace(".", "", 1).isdigit():
                current = word if word in many else ""
                spread.append(word)
            elif current and spread[-1] != current:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)
