"""What the ledger holds of one claim, and the words for its class, its scale and why it may be untested."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = {
    "E": "exact identity",
    "D": "law of the dynamics",
    "A": "statistic of accuracy",
    "H": "hardware or time",
    "Q": "qualitative",
}
SCALES = {
    "S": "holds at any size, so small runs test it",
    "M": "its sign or shape shows small, its numbers need full size",
    "F": "needs full CIFAR-10",
}

NEEDS_CIFAR = "needs full CIFAR-10 at the published width, in several runs"
NEEDS_LONG_RUNS = "needs full CIFAR-10 for hundreds of epochs, in several runs"
NEEDS_GPU = "needs a GPU"
NEEDS_GPUS = "needs several GPUs"
HISTORICAL = "about hardware or software of its time"
TOO_NEAR = "measured in chapter 10, where one seed lies too near the bound to judge"
NOT_YET = "could be judged here, and has not been"


@dataclass(frozen=True)
class Entry:
    """One claim of the sources.

    `kind` is its class, a key of CLASSES, and `scale` a key of SCALES. `text` is our wording; `source` is "post 1" to
    "post 8", "notes" or "report". `published` is the value that the source prints, empty where it prints none.
    `tested` says what checks it here ("tests/FILE::NAME", "chapter NN", "benchmarks/FILE" or "dynamics/verdicts/FILE"),
    and `untested` why that does not decide it, or why there is nothing; one of the two is never empty. `formulas` names
    functions of the package that predict it ("module:name"): a recorded verdict goes stale when one of them changes.
    """

    id: str
    kind: str
    scale: str
    source: str
    text: str
    published: str = ""
    tested: tuple[str, ...] = ()
    untested: str = ""
    formulas: tuple[str, ...] = ()
