"""Generated pages of docs/, their drift check, and the tour.

python -m agent.docs --write     regenerate
python -m agent.docs --check     exit 1 if a page differs from what the code says
python -m agent.docs --tour      layers, tools, checks, axes, engines, the ten longest functions
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tools", "knowledge", "prompts", "agent", "evals")


def pages() -> dict[Path, Callable[[], str]]:
    """Every generated page and the function that writes it."""
    import agent.tools  # noqa: F401  (registers the tools)
    from agent.report.schema import SCHEMAS, schema_text
    from tools.registry import tools_markdown

    return {
        ROOT / "docs" / "tools.md": tools_markdown,
        **{ROOT / "docs" / "schema" / name: partial(schema_text, model) for name, model in SCHEMAS.items()},
    }


def write() -> int:
    for path, make in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def check() -> int:
    stale = [p for p, make in pages().items() if not p.exists() or p.read_text(encoding="utf-8") != make()]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what the code says; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


# ------------------------------------------------------------------------------------------------------------------ tour


def functions() -> Iterator[tuple[int, str, str]]:
    """(lines, file, qualified name) of every function of the product."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield (node.end_lineno or node.lineno) - node.lineno + 1, str(path.relative_to(ROOT)), node.name


def tour() -> str:
    import agent.tools  # noqa: F401
    from knowledge import catalog
    from tools.checks import CHECKS
    from tools.dag.rules import RULES as DAG_RULES
    from tools.engines.rules import ENGINES
    from tools.partition.mesh import LOGICAL
    from tools.partition.rules import RULES
    from tools.registry import all_tools
    from tools.rubric import CRITERIA

    lengths = sorted(functions(), reverse=True)
    by_length = sorted(n for n, _, _ in lengths)
    lines = [
        "layers      evals → agent → knowledge, prompts → tools (rubric → manifest → dag → search → checks → cost, oracle → "
        "memory, shards → engines.rules → partition → graph → spec)",
        "axes        " + ", ".join(name for name, _, _ in LOGICAL),
        "operators   " + ", ".join(RULES),
        "tools       " + ", ".join(t.name for t in all_tools()),
        "checks      " + ", ".join(CHECKS),
        "dag rules   " + ", ".join(DAG_RULES),
        "criteria    " + ", ".join(CRITERIA),
        "engines     " + ", ".join(f"{e} {v}" for e, v in ENGINES),
        f"catalogue   {len(catalog.devices())} devices, {len(catalog.models())} models",
        f"functions   {len(lengths)}, median {by_length[len(by_length) // 2]} lines, p95 {by_length[int(len(by_length) * 0.95)]}",
        "longest     " + "\n            ".join(f"{n:4d}  {where}:{name}" for n, where, name in lengths[:10]),
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    if argv == ["--write"]:
        return write()
    if argv == ["--check"]:
        return check()
    if argv == ["--tour"]:
        print(tour())
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
