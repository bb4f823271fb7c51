"""The entry point `maskwright`: global options, errors as sentences, exit codes.

Exit codes: 0 done, 1 unexpected, 2 a wrong option or recipe, 3 data that cannot be used, 4 a plugin at fault, 5 training
stopped for a reason, 130 and 143 interrupted by SIGINT or SIGTERM with a checkpoint.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated, Any, NoReturn

import typer

import maskwright
from maskwright.cli import (
    catalogue,
    completion,
    data,
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    new_plugin,
    predict,
    train,
)
from maskwright.cli.lazy import MainGroup
from maskwright.cli.show import console, say
from maskwright.core.errors import MaskwrightError
from maskwright.core.host import STRICT_VARIABLE

app = typer.Typer(
    name="maskwright",
    cls=MainGroup,
    help="Pre-train encoders by masking on the data you already have, and learn honestly whether it helped.",
    epilog="Start with `maskwright demo`, then `maskwright doctor` and `maskwright plugins`.",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (train, evaluate, embed, finetune, predict, export, data, catalogue, new_plugin, doctor, completion):
    module.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"maskwright {maskwright.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Make every fault of a plugin an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if strict:
        os.environ[STRICT_VARIABLE] = "1"  # so that child processes know it too


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    say("Warning", str(message), "bold yellow")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Global flags may stand anywhere before `--`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    flags = [flag for flag in ("--debug", "--strict") if flag in words[:end]]
    words = flags + [word for word in words[:end] if word not in flags] + words[end:]
    debug = "--debug" in flags
    if not debug:
        warnings.showwarning = _show_warning
    sys.exit(run(words, debug))


def run(words: list[str], debug: bool = False) -> int:
    """Run one command line and return its exit code."""
    completion.prepare_completion()
    command = typer.main.get_command(app)
    try:
        returned = command.main(words, prog_name="maskwright", standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except MaskwrightError as error:
        if debug:
            traceback.print_exc()
        if error.exit_code in (0, 130, 143):  # training stopped as it was told to
            console(stderr=True).print(str(error), style="bold yellow")
        else:
            say("Error", str(error), "bold red")
        return error.exit_code
    except typer.TyperException as error:
        return _explain_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        console(stderr=True).print("Interrupted.", style="bold yellow")
        return 130
    except BrokenPipeError:  # `maskwright list method | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:500] or "no message"
        hint = "" if debug else " Run it again with --debug for the traceback."
        say("Error", f"unexpected {type(error).__name__}: {text}. This may be a bug in maskwright.{hint}", "bold red")
        return 1


def _explain_usage(error: Any) -> int:
    """A wrong command or option, as one sentence with the help that mends it; a bare group shows its help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    hint = f" See `{context.command_path} --help`." if context is not None else ""
    say("Error", f"{error.format_message().rstrip('.')}.{hint}".replace("?.", "?"), "bold red")
    return error.exit_code
