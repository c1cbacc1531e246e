"""How fast the search is: seconds per search, candidates per second, against one-at-a-time evaluation.

python benchmarks/bench_search.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import cluster_of  # noqa: E402
from knowledge.catalog import load_device, load_model  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.estimate import estimate  # noqa: E402
from tools.search import search  # noqa: E402
from tools.search.space import price_space  # noqa: E402
from tools.spec.deployment import Deployment  # noqa: E402
from tools.spec.workload import Requirement, Requirements, Workload  # noqa: E402

CASES = (("llama3-70b", "H100", 8, "bf16", 0.3), ("deepseek-v3", "H200", 1024, "fp8", 2.0))
"""(model, device, devices, weights, seconds allowed)"""


def case(model: str, device: str, n: int, weights: str) -> Deployment:
    gates = (Requirement(metric="ttft_s", stat="p99", limit=2.0), Requirement(metric="tpot_s", limit=0.05))
    return Deployment(
        model=load_model(model).model, cluster=cluster_of(load_device(device).device, n),
        workload=Workload(isl=2048, osl=512), requirements=Requirements(gates=gates), weight_dtypes=(weights,),
    )  # fmt: skip


def main() -> int:
    curves = load_curves()
    for model, device, n, weights, allowed in CASES:
        d = case(model, device, n, weights)
        start = time.perf_counter()
        result = search(d, curves)
        first = time.perf_counter() - start
        start = time.perf_counter()
        search(d, curves)
        again = time.perf_counter() - start
        start = time.perf_counter()
        priced = sum(len(p) for p in price_space(d, curves, (n,)).priced)
        space = time.perf_counter() - start
        assert result.best is not None
        start = time.perf_counter()
        estimate(d, result.best.estimate.strategy, curves)
        single = time.perf_counter() - start
        print(
            f"{model} on {n} x {device}: search {first:.2f} s (again {again:.2f} s, allowed {allowed:g} s); "
            f"{priced} points priced in {space:.2f} s = {priced / space:,.0f}/s, one at a time {1 / single:,.0f}/s"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
