"""The cut in detail: modules and their parts, ranks, memory, time, proofs, files."""

from __future__ import annotations

from collections.abc import Sequence

from agent.report.format import (
    duration,
    gibibytes,
    gigabytes,
    percent,
    plural,
    spans,
    table,
)
from agent.report.page import Lines, Page
from tools.shards import summary
from tools.spec.plan import ModuleParts, Plan
from tools.spec.term import Breakdown

RANK_ROWS = 64


def modules(page: Page) -> Lines:
    plan, s = page.plan, page.plan.strategy
    if not plan.parts or s is None:
        return []
    head = (
        "module",
        "weight",
        "layers",
        "global dims",
        "per device",
        "split",
        "restored by",
        "parts × copies = devices",
        "",
    )
    used = len({r for row in plan.rank_map for r in row["ranks"]})
    moe = f" = experts: edp({s.edp}) × ep({s.ep}) × etp({s.etp})" if page.moe else ""
    count = (
        f"Devices: pp({s.pp}) × [attention: tp({s.tp}) × cp({s.cp}) × attn_dp({s.attn_dp}){moe}] × dp({s.dp}) = "
        f"{s.num_devices}; "
        f"all modules together lie on {used} of {plural(plan.num_devices, 'device')}."
    )
    if s.pp > 1:
        count += f" A layer's modules lie on the {plural(s.group * s.dp, 'device')} of its own stage."
    words = [f"- {sentence[0].upper()}{sentence[1:]}." for sentence in summary(plan.parts)]
    return [count, "", *words, "", *table(head, [module_row(p) for p in merged(plan.parts)], "llrllllll")]


def merged(parts: Sequence[ModuleParts]) -> list[ModuleParts]:
    """Layers that differ elsewhere (dense and MoE ones) but hold this module alike share a row."""
    rows: dict[tuple[object, ...], ModuleParts] = {}
    for p in parts:
        key = (
            p.module,
            p.weight,
            str(p.global_dims),
            str(p.local_dims),
            p.axis,
            p.collective,
            p.num_shards,
            p.copies,
            p.devices,
            p.matches,
        )
        rows[key] = p.model_copy(update={"layers": rows[key].layers + p.layers}) if key in rows else p
    return list(rows.values())


def module_row(p: ModuleParts) -> tuple[object, ...]:
    per_device = p.num_shards * p.copies // p.devices if p.devices else 0
    times = f" ({per_device} per device)" if per_device > 1 else ""
    return (
        p.module,
        p.weight,
        p.layers,
        dims(p.global_dims),
        dims(p.local_dims),
        p.axis or "replicated",
        p.collective or "nothing",
        f"{p.num_shards} × {p.copies} = {p.num_shards * p.copies}{times} on {p.devices}",
        "matches" if p.matches else "**does not match**",
    )


def dims(sizes: dict[str, int]) -> str:
    return f"[{', '.join(f'{name}={size}' for name, size in sizes.items())}]"


def placement(page: Page) -> Lines:
    """Which ranks do what; a rank is one device. Nodes of several kinds of devices are counted by kind."""
    several = any("device" in r for r in page.plan.rank_map)
    rows = [
        (
            r["replica"],
            r["stage"],
            spans(r["ranks"]),
            spans(r["nodes"]),
            "-" if r["layers"] is None else f"{r['layers'][0]}-{r['layers'][1]}",
            axes(r["axes"]),
            *((r.get("device", "-"),) if several else ()),
        )
        for r in page.plan.rank_map[:RANK_ROWS]
    ]
    more = len(page.plan.rank_map) - len(rows)
    head = ("replica", "stage", "GPU (rank)", "node", "layers", "axes (innermost first)")
    out = table((*head, *(("device",) if several else ())), rows, "rrlllll"[: 6 + several])
    return out + (["", f"{more} more rows are in plan.json."] if more > 0 else [])


def axes(degrees: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {n}" for name, n in degrees.items() if n and n > 1) or "-"


def memory(page: Page) -> Lines:
    e = page.plan.estimate
    if e is None or not e.memory:
        return []
    rows = [
        (
            f"{s.stage} {s.group}".strip(),
            s.layers,
            s.ranks,
            gigabytes(s.weights_bytes),
            gigabytes(s.kv_bytes),
            gigabytes(s.activation_bytes),
            gigabytes(s.overhead_bytes),
            gigabytes(s.reserve_bytes),
            f"{gigabytes(s.capacity_bytes)} ({gibibytes(s.capacity_bytes)})",
            gigabytes(s.free_bytes),
        )
        for s in e.memory
    ]
    head = ("stage", "layers", "ranks", "weights", "KV cache", "activations", "engine", "reserved", "capacity", "free")
    note = (
        f"Per device, the fullest of each stage. Balance, max/mean over devices: bytes {e.memory_imbalance:.3f}, "
        f"step time {e.time_imbalance:.3f}."
    )
    return [*table(head, rows, "rrrrrrrrrr"), "", note]


def latency(page: Page) -> Lines:
    e = page.plan.estimate
    if e is None:
        return []
    out: Lines = []
    for key, title in (("ttft", "One prefill (TTFT)"), ("tpot", "One decode step (TPOT)")):
        if key in e.breakdown:
            out += ["", f"**{title}**, predicted:", "", *breakdown(e.breakdown[key])]
    busy = [f"{name} {percent(share)}" for name, share in e.utilisation.items()]
    out += ["", f"Utilisation, predicted: {', '.join(busy)}." + target(page)] if busy else []
    return out[1:]


def breakdown(b: Breakdown, least: float = 0.005) -> Lines:
    """Terms largest first; those below half a percent are one line."""
    total = b.total or 1.0
    big = sorted((t for t in b.terms if abs(t.value) >= least * total), key=lambda t: -t.value)
    rest = b.total - sum(t.value for t in big)
    rows = [
        (part_name(t.name), duration(t.value), percent(t.value / total), f"`{t.formula}`" if t.formula else "")
        for t in big
    ]
    rows += [("everything else", duration(rest), percent(rest / total), "")] if abs(rest) > 1e-12 else []
    return table(("part", "time", "share", "formula"), [*rows, ("**total**", duration(b.total), "100 %", "")], "lrrl")


def part_name(name: str) -> str:
    """ "o_proj@all_reduce" is "all-reduce after o_proj"; operators keep their own names."""
    op, at, collective = name.partition("@")
    if at:
        return f"{collective.replace('_', '-')} after {op}"
    return name if name.count("_") < 3 else name.replace("_", " ")


def target(page: Page) -> str:
    goal = page.plan.deployment.requirements.utilisation_target
    if goal is None or page.plan.estimate is None:
        return ""
    busy = page.plan.estimate.utilisation.get("busy")
    reached = "" if busy is None else f": {'reached' if busy >= goal else 'not reached'} with {percent(busy)} busy"
    return f" Target {percent(goal)}{reached} (a target, not a gate)."


def proofs(page: Page) -> Lines:
    """One line per executed graph; where the baseline is the plan, the runner-up stands beside it."""
    plan, out = page.plan, []
    names = {
        e.strategy.label(): (n, page.label(e))
        for n, e in (("runner-up", plan.runner_up), ("baseline", plan.baseline))
        if e
    }
    mine = plan.strategy.label(moe=page.moe) if plan.strategy else ""
    for u in plan.units:
        label = u.strategy.label(moe=page.moe)
        out += [proof_line(f"plan on {u.name}, {phase}", label, entry) for phase, entry in u.phases.items()]
    for phase, entry in plan.phases.items():
        if not plan.units:
            out.append(proof_line(f"plan, {phase}", mine, entry))
        other = entry.get("baseline")
        if other and other["digest"] != entry["digest"]:
            name, label = names.get(other["proof"]["strategy"], ("baseline", other["proof"]["strategy"]))
            out.append(proof_line(f"{name}, {phase}", label, other))
    return out


def proof_line(name: str, label: str, entry: dict) -> str:
    proof = entry["proof"]
    word = "proven" if proof["ok"] else "**not proven**"
    return (
        f"- {name}: {word}: {label}, max relative error {proof['max_relative_error']:.0e} over "
        f"{plural(proof['tensors_compared'], 'tensor')} on {plural(proof['devices_simulated'], 'simulated device')}, "
        f"{plural(proof['steps'], 'step')}; graph `{proof['digest'][:16]}`, drawn at batch {entry['batch']}, "
        f"seq_len {entry['seq_len']:,}, kv_len {entry['kv_len']:,}"
    )


def files(page: Page) -> Lines:
    """Links to DAGs, plan first and prefill first, and to the launch files of each engine."""
    order = ["plan", "baseline", "runner_up", "prefill", "decode"]
    place = {name: i for i, name in enumerate(order)}
    dags = [d for d in page.files if d.kind in ("dag_svg", "dag_dot", "dag_script")]
    owners = dict.fromkeys((d.role or "", d.phase or "") for d in dags)
    out = []
    for role, phase in sorted(owners, key=lambda o: (place.get(o[0], 9), place.get(o[1], 9))):
        links = [link(d.path, "dag/") for d in dags if (d.role or "", d.phase or "") == (role, phase)]
        out.append(
            f"- DAG, {f'{role} {phase}'.replace('_', '-').strip() or 'further views'}: {', '.join(sorted(links))}"
        )
    if "runner_up" in {r for r, _ in owners} and "baseline" not in {r for r, _ in owners}:
        out.append("- The baseline parallelises as the plan does, so the runner-up is drawn beside it.")
    launch = [link(d.path, "launch/") for d in page.files if d.kind == "launch"]
    return [*out, *([f"- Launch (planned for {launch_engine(page.plan)}): {', '.join(launch)}"] if launch else [])]


def link(path: str, folder: str) -> str:
    return f"[{path.removeprefix(folder)}]({path})"


def launch_engine(plan: Plan) -> str:
    return plan.strategy.engine if plan.strategy else plan.deployment.engine.name
