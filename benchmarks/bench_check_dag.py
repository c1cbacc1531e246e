"""How long check-dag takes on files of 10 MB, whatever is in them. Reported, never asserted.

    python benchmarks/bench_check_dag.py [--runs N] [SHAPE...]

Each file is made here and checked by a process of its own, as on the command line. Seconds of CPU: on a shared machine the
wall clock says more about the neighbours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 10_000_000
DIMS = "Input: [batch_size={a}, seq_len={b}, hidden=4096], Output: [batch_size={a}, seq_len={b}, hidden=512]"
WORDS = [
    a + b for a in ("gate", "norm", "q", "moe [a=", "in: ", "GPU ") for b in ("", "0", "_proj", " x", "/up", "->", "]")
]
SHAPES: dict[str, Callable[[int], str]] = {
    "a chain without labels": lambda i: f"node_{i} -> node_{i + 1};\n",
    "a word per node": lambda i: f'n{i} [label="op {i} GPU {i % 8}"];\nn{i} -> n{i + 1};\n',
    "operators as usual": lambda i: (
        f'n{i} [shape=box, label="q_proj\\nGPU {i % 64}\\n{DIMS.format(a=8, b=128)}\\nlayers.{i % 80}.q_proj"];\n'
        f'n{i} -> n{i + 1} [label="x"];\n'
    ),
    "no two dims alike": lambda i: (
        f'n{i} [shape=box, label="q_proj {i}\\nGPU {i % 1024}\\n{DIMS.format(a=i % 97 + 1, b=i)}\\nlayers.{i}.q_proj"];\n'
        f'n{i} -> n{i + 1} [label="x{i}"];\n'
    ),
    "keys of its own": lambda i: (
        f'n{i} [label="matmul_{i}\\nR{i % 64}\\nfrom x{i}: b={i % 7 + 1} h={i}\\nto b={i % 7 + 1} h={i}"];\nn{i} -> n{i + 1};\n'
    ),
    "attributes of its own": lambda i: (
        f'n{i} [label="matmul of one shard {i}", size_{i}="{i}", on_device="{i % 8}"];\nn{i} -> n{i + 1};\n'
    ),
    "tables in HTML": lambda i: (
        f"n{i} [shape=none, label=<<TABLE><TR><TD>q_proj {i}</TD></TR><TR><TD>Input</TD><TD>[b={i % 9}, s={i}]</TD></TR>"
        f"<TR><TD>Output</TD><TD>[b={i % 9}, s={i}]</TD></TR></TABLE>>];\nn{i} -> n{i + 1};\n"
    ),
    "1 kB of prose per label": lambda i: (
        f'n{i} [shape=box, label="op{i}\\n{DIMS.format(a=8, b=128)}\\n{"some words about this node " * 32}"];\n'
        f'n{i} -> n{i + 1} [label="x{i}"];\n'
    ),
    "no two labels alike": lambda i: (
        f'n{i} [label="{" ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(3, 15))}"];\nn{i} -> n{i + 1};\n'
    ),
    "mostly edges": lambda i: f'n{i % 1000} -> n{i * 7 % 1000 + 1} [label="tensor {i} [b={i}]", weight=2];\n',
    "groups joined to groups": lambda i: f"{{a{i} b{i} c{i}}} -> {{d{i} e{i}}};\n",
    "broken in every line": lambda i: f'n{i} [label="op {i}\n -> n{i + 1} [[;\n',
    "one cluster per node": lambda i: (
        f'subgraph cluster_{i} {{ label="GPU {i}"; n{i} [label="add"]; }}\nn{i} -> n{i + 1};\n'
    ),
}


def lines(shape: str) -> Iterator[str]:
    """A DOT text of `SIZE` bytes."""
    yield "digraph g {\n"
    size, i = 0, 0
    while size < SIZE:
        line = SHAPES[shape](i)
        yield line
        size, i = size + len(line), i + 1
    yield "}\n"


def seconds(file: Path) -> float:
    """CPU seconds of one `meshwright check-dag` of the file."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "agent.cli", "check-dag", str(file), "--json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False, cwd=Path(__file__).resolve().parent.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    print(f"check-dag on files of {SIZE / 1e6:.0f} MB, CPU seconds, median of {options.runs}; aim: 10 s\n")
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes or SHAPES:
            file = Path(folder) / "big.dot"
            file.write_text("".join(lines(shape)))
            print(f"{shape:28s} {statistics.median(seconds(file) for _ in range(options.runs)):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
