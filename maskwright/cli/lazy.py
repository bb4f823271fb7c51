"""Groups of plugin commands that import their plugin only when one of their commands is used or listed."""

from __future__ import annotations

import functools
from typing import Any

import typer
from typer.core import TyperGroup

from maskwright.core.discovery import plugin_names

PANEL = "Commands of plugins"
OWN_HELP = {"remote-sensing": "Satellite images: commands of the remote sensing domain."}
"""Help of our own domains; that of others is the summary of their distribution."""


class PluginGroup(TyperGroup):
    """Commands of one plugin, as `maskwright NAME ...`."""

    @functools.cached_property
    def loaded(self) -> TyperGroup:
        """The plugin's own group.

        Raises:
            PluginError: the plugin is broken or adds no commands.
        """
        from maskwright.core.host import Host

        app = typer.Typer(name=self.name, help=self.help, add_completion=False)
        Host(only=self.name).mount_commands(str(self.name), app)
        return typer.main.get_group(app)

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return self.loaded.list_commands(ctx)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        return self.loaded.get_command(ctx, cmd_name)


class MainGroup(TyperGroup):
    """The commands of maskwright, then a group for each plugin. A command of ours wins over a plugin of that name."""

    @functools.cached_property
    def plugin_groups(self) -> dict[str, PluginGroup]:
        groups = {}
        for name, summary in plugin_names().items():
            text = OWN_HELP.get(name) or summary or f"Commands of the plugin {name}."
            text = text.replace("[", "\\[")  # a stranger's summary must not be read as markup
            groups[name] = PluginGroup(name=name, help=text, no_args_is_help=True, rich_help_panel=PANEL)
        return groups

    def list_commands(self, ctx: typer.Context) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in self.plugin_groups if name not in own]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self.plugin_groups.get(cmd_name)
