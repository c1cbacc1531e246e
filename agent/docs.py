"""Generated pages of docs/, their drift check, and the tour.

python -m agent.docs --write     regenerate
python -m agent.docs --check     exit 1 if a page differs from what the code says
python -m agent.docs --tour      layers, tools, checks, axes, engines, the ten longest functions
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tools", "knowledge", "prompts", "agent", "evals")


def pages() -> dict[Path, Callable[[], str]]:
    """Every generated page and the function that writes it."""
    import agent.tools  # noqa: F401  (registers the tools)
    from agent.reading.strategy_file import strategy_file_markdown
    from agent.report.schema import SCHEMAS, schema_text
    from agent.training_page import training_markdown
    from tools.registry import tools_markdown

    return {
        ROOT / "docs" / "tools.md": tools_markdown,
        ROOT / "docs" / "strategy-file.md": strategy_file_markdown,
        ROOT / "docs" / "training.md": training_markdown,
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


# ------------------------------------------------------------------------------------------------------------------ walk

WALK: tuple[tuple[str, str, int], ...] = (
    ("What is installed", "doctor", 30),
    ("What a careful reader takes from the example", "read examples/conditions/llama3_70b_8xh100.md", 40),
    ("The whole job", "plan examples/conditions/llama3_70b_8xh100.md --out runs/tour", 40),
    ("The first lines of the report", "@runs/tour/plan.md", 26),
    ("The launch file", "@runs/tour/launch/vllm/serve.sh", 40),
    ("An infeasible one", "plan examples/conditions/llama31_70b_2x3090.md --out runs/tour_infeasible", 30),
    (
        "A search",
        "search --model qwen3-235b-a22b --device h200 --nodes 2 --devices-per-node 8 --isl 4000 --osl 800 --ttft-ms 2000 "
        "--concurrency 64 --top 5",
        14,
    ),
    (
        "One strategy, predicted",
        "estimate --model llama3.1-70b --device h100 --tp 4 --dp 2 --isl 2048 --osl 256 --concurrency 64",
        10,
    ),
    ("A proof", "prove --model deepseek-v3 --tp 8 --pp 4", 10),
    ("A proof that finds nothing to prove", "prove --model qwen2.5-7b --tp 7", 10),
    ("A drawing", "dag --model mixtral-8x7b --tp 2 --attn-dp 2 --ep 4 --phase decode --out runs/tour_dag", 12),
)
"""(title, command line of meshwright or @file, most lines shown)"""


def walk() -> int:
    """docs/tour.md: every command with what it really printed. Exit codes are shown where they are not 0."""
    lines = [
        "# A tour",
        "",
        "Every block below was printed by the command above it (`python -m agent.docs --walk`).",
        "",
    ]
    for title, command, most in WALK:
        if command.startswith("@"):
            shown, said, code = f"head -{most} {command[1:]}", (ROOT / command[1:]).read_text(encoding="utf-8"), 0
        else:
            done = subprocess.run(
                [sys.executable, "-m", "agent.cli", *command.split()],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            shown, said, code = f"meshwright {command}", done.stderr + done.stdout, done.returncode
        rows = said.replace(str(ROOT) + "/", "").rstrip().splitlines()
        rows = [r for r in rows if not r.endswith(" …")]
        cut = [*rows[:most], "…"] if len(rows) > most else rows
        lines += [f"## {title}", "", "```text", f"$ {shown}", *cut, *([f"[exit {code}]"] if code else []), "```", ""]
    (ROOT / "docs" / "tour.md").write_text("\n".join(lines), encoding="utf-8")
    print("wrote docs/tour.md")
    return 0


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
    from tools.partition.axes import LOGICAL
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
    if argv == ["--walk"]:
        return walk()
    if argv == ["--tour"]:
        print(tour())
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
