"""Falsifiable statements, their judgement, and the ledger of what the sources claim.

`Claim`, `check` and `table` judge samples; `ledger` has every claim of the sources as data, one module a source, and
`records` the verdicts that were recorded for them.
"""

from .judge import MIME, SYMBOLS, Claim, Verdict, VerdictTable, check, table

__all__ = ["MIME", "SYMBOLS", "Claim", "Verdict", "VerdictTable", "check", "table"]
