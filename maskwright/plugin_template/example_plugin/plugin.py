"""What this package adds to maskwright. It is imported whenever maskwright starts, so it imports nothing heavy."""

from collections import Counter

import maskwright
from maskwright.core.hookspecs import Component, hookimpl


@hookimpl
def register_maskings():
    return [Component("checkerboard", f"{__package__}.masking:Checkerboard", "Every other token, like a chess board.")]


@hookimpl
def register_loaders():
    return [Component("pictures", f"{__package__}.loaders:Pictures", "Grey pictures, one folder for each class.")]


@hookimpl
def register_methods():
    return [Component("picture-mae", f"{__package__}.methods:PictureMae", "MAE on small pictures.", "MAE, 2022")]


@hookimpl
def register_tasks():
    return [Component("one-class", f"{__package__}.tasks:OneClass", "One class against all others.")]


@hookimpl
def register_commands(app):
    @app.command()
    def summary(data: str):
        """Count the pictures of each class."""
        counts = Counter(file.parent.name for file in maskwright.open_data(data, "pictures").files)
        for label, count in sorted(counts.items()):
            print(f"{label}: {count}")
