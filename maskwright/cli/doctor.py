"""`maskwright doctor`: what works on this machine, and what mends the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from maskwright.cli.show import console, print_heading, print_json

MARKS = {"ok": ("ok", "green"), "note": ("!!", "yellow"), "fault": ("XX", "bold red")}


def add_commands(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Import no library; only look whether it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, torch, the device, and every domain's libraries, and say what mends what is broken."""
    from dataclasses import asdict

    from rich.text import Text

    from maskwright.core.doctor import examine

    findings = examine(quick)
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    out = console()
    section = ""
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print_heading(section)
        mark, style = MARKS[finding.state]
        out.print(Text.assemble((f"  {mark} ", style), f"{finding.what:<{width}}  {finding.text}"))
        if finding.mend:
            out.print(f"     {'':<{width}}  mend: {finding.mend}", style="yellow")
    faults = sum(finding.state == "fault" for finding in findings)
    print_heading(f"{faults} at fault; everything else works." if faults else "Nothing is at fault.")
