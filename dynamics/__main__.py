"""`python -m dynamics`, which needs neither make nor a script on the PATH."""

from __future__ import annotations

from dynamics.cli import main

if __name__ == "__main__":
    main()
