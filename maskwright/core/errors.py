"""The errors that a user may see. Each message says what was found, where, and which option or command mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaskwrightError(Exception):
    """Base class. The command line prints its text as one sentence, without a traceback, and exits with `exit_code`."""

    exit_code = 1


class ConfigError(MaskwrightError):
    """A recipe, an option or an argument that does not fit. Lists all problems at once."""

    exit_code = 2


class DataError(MaskwrightError):
    """A file or folder that cannot be used.

    Args:
        path: the file or folder.
        found: what is there.
        expected: what was looked for.
        mend: what the user can do about it.
    """

    exit_code = 3

    def __init__(self, path: object, found: str, expected: str = "", mend: str = "") -> None:
        self.path, self.found, self.expected, self.mend = str(path), found, expected, mend
        text = f"{path}: {found}"
        if expected:
            text += f"; expected {expected}"
        text += "."
        if mend:
            text += f" {mend.rstrip('.')}."
        super().__init__(text)

    def __reduce__(self):  # worker processes send errors home by pickling them
        return type(self), (self.path, self.found, self.expected, self.mend)


class PluginError(MaskwrightError):
    """A plugin, or something that it registered, that cannot be used. Names the distribution and the hook."""

    exit_code = 4


class TrainingStopped(MaskwrightError):
    """Training ended early for a reason that the user should act on (non-finite loss, too many bad files)."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: ` Did you mean "x"?`, else the list of known names, else nothing."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(known)}." if known else ""
