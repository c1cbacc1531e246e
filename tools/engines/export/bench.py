"""The benchmark of a plan: the engine's own load generator, and its result beside the predictions."""

from __future__ import annotations

import shlex

from tools.engines.export.base import Launcher, Request, continued, header


def bench_script(launcher: Launcher, r: Request, port: int | None = None) -> str:
    """The engine's own benchmark under the planned load, then its result beside the predictions.

    Exit 1 where a figure lies outside its band. The measured row goes to $MEASURED, which `meshwright calibrate` reads."""
    port = port or (r.port - 1 if r.instances > 1 else r.port)
    usage = [
        "bash bench.sh            # while the servers run; at other loads: CONCURRENCY=N bash bench.sh",
        "meshwright calibrate --measured measured.csv   # afterwards: curves and bands of this cluster",
        *(f"{n}" for n in r.bench_notes),
    ]
    prompts = 8 * r.concurrency if r.request_rate is None else max(4 * r.concurrency, round(120 * r.request_rate))
    why = (
        "eight rounds: the first fills the batch"
        if r.request_rate is None
        else "two minutes of arrivals, or four batches"
    )
    rows = [
        f"MODEL=${{MODEL:-{shlex.quote(r.model_path)}}}",
        "HOST=${HOST:-127.0.0.1}",
        f"PORT=${{PORT:-{port}}}",
        f"CONCURRENCY=${{CONCURRENCY:-{r.concurrency}}}",
        f"PROMPTS=${{PROMPTS:-{max(16, min(prompts, 4000))}}}   # {why}",
        "export RESULT=${RESULT:-bench.json} MEASURED=${MEASURED:-measured.csv}",
    ]
    return (
        header(r, "Measure the plan and compare it with its predictions.", usage)
        + "\n"
        + "\n".join(rows)
        + '\n\nrm -f "$RESULT"\n'
        + continued([*launcher.bench(r), *([f"--request-rate {r.request_rate:g}"] if r.request_rate else [])])
        + "\n\n"
        + comparison(r)
    )


def comparison(r: Request) -> str:
    """Python that reads the result (JSON, or the last line of JSON lines), compares, and appends the measured row."""
    s = r.strategy
    predicted = [(e.key, e.name, e.value, e.band, e.limit, e.higher_is_better) for e in r.expected]
    measured = {
        "model": r.model.name, "gpu": r.device.id if r.device is not None else "", "n_gpus": s.num_devices,
        "engine": r.rules.engine, "weight_dtype": s.weight_dtype, "kv_dtype": s.kv_dtype, "tp": s.tp * (s.attn_dp or 1),
        "pp": s.pp, "ep": s.ep, "dp": s.dp, "attn_dp": s.attn_dp or 1, "isl": r.isl, "osl": r.osl,
        "metric": "at_concurrency",
    }  # fmt: skip
    return f"""python3 - "$RESULT" "$MEASURED" "$CONCURRENCY" <<'PY'
import csv, json, os, sys
PREDICTED = {predicted!r}   # key of the result, name, value, relative band, limit, higher is better
ROW = {measured!r}
PLANNED, RATE = {r.concurrency}, {r.request_rate!r}
{COMPARE}PY
"""


COMPARE = """\
result, table, concurrency = sys.argv[1:]
text = open(result).read().strip()
try:
    found = json.loads(text)
except ValueError:
    found = json.loads(text.splitlines()[-1])   # one JSON document per run and line
outside = 0
at_plan = RATE is not None or int(concurrency) == PLANNED
for key, name, value, band, limit, higher in PREDICTED if at_plan else []:
    got = found.get(key)
    if not got:
        print(f"{name:22s} not in the result")
        continue
    off = got / value - 1
    inside = abs(off) <= band
    outside += not inside
    said = f"{name:22s} measured {got:10.4g}  predicted {value:10.4g} ±{band:.0%}  off {off:+.1%}"
    said += "  inside the band" if inside else "  OUTSIDE the band"
    if limit is not None:
        said += f"  limit {limit:.4g} " + ("met" if (got >= limit if higher else got <= limit) else "BROKEN")
    print(said)
if not at_plan:
    print(f"concurrency {concurrency} is not the planned {PLANNED}: nothing to compare, the row is kept")
if RATE is not None and found.get("mean_e2el_ms") and found.get("request_throughput"):
    concurrency = max(1, round(found["request_throughput"] * found["mean_e2el_ms"] / 1e3))   # Little's law
row = ROW | {"concurrency_or_batch": concurrency, "ttft_ms": found.get("mean_ttft_ms", ""),
             "tpot_ms": found.get("mean_tpot_ms", ""), "output_tok_s_total": found.get("output_throughput", "")}
new = not os.path.exists(table)
with open(table, "a", newline="") as f:
    w = csv.DictWriter(f, row)
    if new:
        w.writeheader()
    w.writerow(row)
sys.exit(1 if outside else 0)
"""
"""The part that is the same for every plan."""
