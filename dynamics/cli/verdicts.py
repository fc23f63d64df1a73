"""`dynamics verdicts`: judge the ledger's claims and record what was found."""

from __future__ import annotations

from typing import Annotated

import typer


def verdicts(
    ids: Annotated[
        list[str] | None, typer.Argument(help="claims such as P7-2  [default: all that can be judged]")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="only what is judged by: tests, chapters or measurements")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="judge anew what is judged and still stands")] = False,
) -> None:
    """Judge claims by the tests, the chapters' outputs and measurements of their own, and record the verdicts.

    Each verdict is written when it is found, so a run that was stopped goes on where it was. What is judged and has
    not been outdated by the code is left out. All of it takes minutes. `make verdicts` is this command.
    """
    from ..claims.ledger import LEDGER, summary
    from ..claims.records import read_verdicts
    from ..verdicts import judge

    failed = judge(ids or (), source=source, again=again)
    print(summary(LEDGER.values(), read_verdicts()))
    if failed:
        print(f"{len(failed)} could not be judged: {', '.join(text.split(':')[0] for text in failed)} (reasons above)")
        raise typer.Exit(1)
