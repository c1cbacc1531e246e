"""Writes docs/strategies.md and its pictures: what each strategy splits, what it sends, what it costs, how to say it.

python docs/make_strategies.py --write    the page and the pictures (needs Graphviz or its WASM build)
python docs/make_strategies.py --check    exit 1 if the page is not what the code says

Everything in a section but its prose comes from the partitioned graph: layouts, collectives, sizes, the picture. The
communication formula is prose too, but it is evaluated and must equal what the graph's collectives move.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from strategies_page.page import page  # noqa: E402
from strategies_page.pictures import write_pictures  # noqa: E402

PAGE = ROOT / "docs" / "strategies.md"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="docs/strategies.md and its pictures")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    if args.check:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        print(
            "docs/strategies.md is up to date"
            if fresh
            else "docs/strategies.md is not what the code says; run --write",
            file=sys.stderr,
        )
        return 0 if fresh else 1
    if args.write:
        PAGE.write_text(page(), encoding="utf-8")
        write_pictures()
        return 0
    parser.print_help()
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
