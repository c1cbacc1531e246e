"""One strategy on one deployment → Estimate: predictions with bands, memory per rank, breakdown, utilisation,
findings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tools.cost.compute import Work
from tools.cost.curves import Curves
from tools.cost.fit import max_batch
from tools.cost.judge import judge
from tools.cost.serving import Load, Performance, Speculation, decode_steps, draft_pass, serve, spare_replicas
from tools.cost.steps import Candidates, Layout, StageRow, Works, each_stage, layouts, stage_layers, stage_rows
from tools.engines.rules import check, engines
from tools.graph.build import all_sizes
from tools.memory import memory, num_parameters
from tools.partition.axes import check_axes
from tools.partition.lower import default_layers_per_stage, lower
from tools.shards import DEFAULT_BALANCE
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.finding import Cause, Finding
from tools.spec.model import ModelSpec, with_redundant
from tools.spec.plan import Estimate, StageMemory
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown, Term


def estimate(
    deployment: Deployment,
    strategy: Strategy,
    curves: Curves,
    *,
    concurrency: int | None = None,
    max_throughput: bool = False,
) -> Estimate:
    """Predicted performance of `strategy`, and whether it is feasible on `deployment`.

    `concurrency` (requests in flight over all replicas) and `max_throughput` (largest batch that fits) override the
    workload and the strategy's batch. Raises ToolError or Refused for a strategy that cannot be laid out at all; what
    an engine would refuse, what does not fit and what breaks a requirement are findings, with `feasible` False.
    """
    if concurrency is not None and concurrency < 1:
        raise ToolError(f"concurrency({concurrency}) must be at least 1")
    p = predict(deployment, strategy, curves, concurrency=concurrency, max_throughput=max_throughput)
    model, s = deployment.model, p.strategy
    program = lower(model, s, "prefill", all_sizes(model, batch_size=s.batch, seq_len=p.load.isl, kv_len=p.load.isl))
    room = [c.memory_bytes for c in deployment.stage_clusters(s)]
    stages = memory(
        program, capacity_bytes=room, context=deployment.workload.context, batch=s.batch,
        memory_reserve=deployment.requirements.memory_reserve, engine_version=deployment.engine.version,
    )  # fmt: skip
    return _assemble(_Case(deployment, s, curves, p.layout, p.load, p.performance, stages, p.max_batch))


@dataclass(frozen=True, slots=True)
class Predicted:
    """A strategy at its operating point, priced; without memory tables, breakdown or verdicts."""

    strategy: Strategy
    layout: Layout
    load: Load
    performance: Performance
    max_batch: int


def predict(
    deployment: Deployment,
    strategy: Strategy,
    curves: Curves,
    *,
    concurrency: int | None = None,
    max_throughput: bool = False,
    benchmark_run: bool = False,
    length_deviation: float = 0.0,
    requests: int | None = None,
) -> Predicted:
    """The numbers of `estimate` alone. Raises as `estimate` does.

    `benchmark_run`: as a benchmark would measure it rather than as one plans it: requests start together, and an engine
    that allocates KV as sequences grow admits by their mean length. `requests`: the run ends after so many.
    `length_deviation`: standard deviation of the lengths over their mean.
    """
    if concurrency is not None and concurrency < 1:
        raise ToolError(f"concurrency({concurrency}) must be at least 1")
    check_axes(deployment.model, strategy)
    copies = with_redundant(deployment.model, strategy.redundant_experts)
    deployment = deployment.model_copy(update={"model": copies})
    s = normalise(deployment, strategy)
    load = Load.of(deployment.workload, concurrency=concurrency, max_throughput=max_throughput)
    ((_, layout),) = layouts(deployment, curves, Candidates.of(s))
    limit = batch_limit(deployment, curves, s.engine, s.attn_dp or 1)
    held = _mean_occupancy(layout) if benchmark_run and not layout.engine.reserve_output else layout
    most = int(max_batch(held, np.asarray([limit]))[0])
    load = replace(load, cold_start=benchmark_run, length_deviation=length_deviation, requests=requests)
    if concurrency is not None or max_throughput:
        wanted = most if concurrency is None else min(most, -(-concurrency // s.dp))
        s = s.model_copy(update={"batch": max(1, wanted)})
        layout = replace(layout, cands=Candidates.of(s))
    return Predicted(s, layout, load, serve(layout, load), most)


def _mean_occupancy(layout: Layout) -> Layout:
    """The layout on a workload whose sequences hold what they hold on average: the prompt and half of the output."""
    w = layout.deployment.workload
    mean = w.model_copy(update={"osl": max(1, w.osl // 2)})
    return replace(layout, deployment=layout.deployment.model_copy(update={"workload": mean}))


def normalise(deployment: Deployment, s: Strategy) -> Strategy:
    """The strategy with its pipeline stages spelled out as its engine would cut them."""
    layers, runs = deployment.model.num_hidden_layers, s.pp * s.virtual
    if s.pp == 1 or s.layers_per_stage is not None or runs > layers:
        return s
    return s.model_copy(update={"layers_per_stage": stage_layers(s.engine, layers, runs)})


def batch_limit(deployment: Deployment, curves: Curves, engine: str, attn_dp: int) -> int:
    """Most sequences per replica that scheduler limits allow: stated ones, else the engine's own per scheduler."""
    limits = deployment.engine.limits
    stated = [int(limits[k]) for k in ("max_num_seqs", "max_batch_size") if limits.get(k)]
    if stated:
        return max(1, min(stated)) * attn_dp
    return curves.engine(engine).max_num_seqs * attn_dp


@dataclass(frozen=True, slots=True)
class _Case:
    deployment: Deployment
    strategy: Strategy
    curves: Curves
    layout: Layout
    load: Load
    perf: Performance
    stages: tuple[StageMemory, ...]
    max_batch: int


def _assemble(c: _Case) -> Estimate:
    used = tuple({x.device.id: x for x in c.deployment.stage_clusters(c.strategy)}.values())
    predictions, verdicts = judge(c.deployment, c.curves, c.perf, c.load, c.strategy.num_devices, used)
    findings = (*_legality(c), *_fit(c), *_load_findings(c), *verdicts, *_mixed(c))
    p = c.perf
    stage_times, breakdown = _stage_times(c), {"ttft": _ttft_breakdown(c), "tpot": _tpot_breakdown(c)}
    held = [s.total_bytes - s.reserve_bytes for s in c.stages]
    return Estimate(
        strategy=c.strategy, feasible=not any(f.severity == "error" for f in findings), findings=findings,
        ttft_s=_f(p.ttft), tpot_s=_f(p.tpot), ttft_percentiles={k: _f(v) for k, v in p.ttft_percentiles.items()},
        tpot_percentiles={k: _f(v) for k, v in p.tpot_percentiles.items()}, e2e_s=_f(p.e2e),
        output_tok_s=_f(p.output_tok_s), input_tok_s=_f(p.input_tok_s), total_tok_s=_f(p.output_tok_s + p.input_tok_s),
        num_devices=c.strategy.num_devices, concurrency=max(1, round(_f(p.concurrency))), batch=c.strategy.batch,
        request_rate=_f(p.request_rate), max_batch=c.max_batch, burst_ttft_s=_f(p.burst_ttft), predictions=predictions,
        capacity_tok_s=_f(p.capacity_rate) * c.load.osl if bool(p.stable[0]) else _f(p.output_tok_s),
        memory=c.stages, breakdown=breakdown, utilisation=_utilisation(c),
        time_imbalance=max(stage_times) / (sum(stage_times) / len(stage_times)),
        memory_imbalance=max(held) / (sum(held) / len(held)),
    )  # fmt: skip


def _f(x: object) -> float:
    return float(np.asarray(x).reshape(-1)[0])


# ------------------------------------------------------------------------------------------------------------- findings


def beyond_positions(d: Deployment) -> Finding | None:
    """The longest context that is asked for against the positions of the model; None where it holds or is not known.

    Engines refuse to start beyond them (`max_position_embeddings`), and the model was not trained there.
    """
    w, most = d.workload, d.model.max_context
    longest = max(w.context, w.isl + w.osl)
    if most is None or longest <= most:
        return None
    return Finding(
        code="positions", severity="error", cause="shape", where=d.model.name,
        message=f"context({longest}) > max_position_embeddings({most}) of {d.model.name}",
        fix=f"a context of at most {most} tokens, or a checkpoint with scaled positions",
        values={"context": longest, "max_position_embeddings": most},
    )  # fmt: skip


def blocks_in_doubt(model: ModelSpec) -> Finding | None:
    """Blocks that were read by likeness: shapes and figures are those of another family."""
    if model.doubt is None:
        return None
    counted = num_parameters(model)
    return Finding(
        code="blocks-in-doubt", severity="warning", cause="input", where=model.name,
        message=f"{model.doubt}; its blocks may differ, and every figure with them: so read it has {counted / 1e9:.4g} B "
        "parameters",
        fix="compare the parameters with the published count; state the model_type of a family with the same blocks",
        values={"parameters": counted},
    )  # fmt: skip


def _legality(c: _Case) -> list[Finding]:
    d, s = c.deployment, c.strategy
    out = [f for f in (beyond_positions(d), blocks_in_doubt(d.model)) if f]
    out += device_findings(d, s)
    if s.engine in engines():
        for cluster in {x.device.id: x for x in d.stage_clusters(s)}.values():
            nodes = cluster.num_nodes if not s.stage_devices else None
            told = check(
                d.model, s, version=d.engine.version, num_nodes=nodes, devices_per_node=cluster.devices_per_node,
                device=cluster.known_device if s.stage_devices else None,
            )  # fmt: skip
            out += [f for f in told if f not in out]
    else:
        out.append(
            Finding(
                code="engine-unknown",
                severity="info",
                cause="engine",
                message=f"no legality rules for {s.engine}; priced, not checked",
            )
        )
    return out


def device_findings(d: Deployment, s: Strategy) -> list[Finding]:
    """Devices that are asked for and not there (of each kind), and those that stay idle."""
    out: list[Finding] = []
    used = dict.fromkeys((c.device.id for c in d.clusters), 0)
    for c in d.stage_clusters(s):
        used[c.device.id] += s.group * s.dp
    for c in d.clusters:
        n, there = used[c.device.id], c.num_devices
        if there is not None and n > there:
            kind = f" {c.device.id}" if d.further_clusters else ""
            message = f"{s.label()} needs {n}{kind} devices, the cluster has {there}"
            fix = f"degrees whose product is at most {there}"
            out.append(Finding(code="devices", severity="error", cause="shape", message=message, fix=fix))
    total = d.num_devices
    if total is not None and s.num_devices < total and not out:
        idle = [(c.num_devices - used[c.device.id], c) for c in d.clusters if c.num_devices is not None]
        kinds = ", ".join(f"{n} × {c.device.id}" for n, c in idle if n)
        which = f" ({kinds})" if d.further_clusters else ""
        message = f"{total - s.num_devices} of {total} devices stay idle under {s.label()}{which}"
        values = {"idle": total - s.num_devices}
        out.append(Finding(code="idle-devices", severity="warning", cause="other", message=message, values=values))
    return out


def _fit(c: _Case) -> list[Finding]:
    worst = min(c.stages, key=lambda s: s.free_bytes)
    if worst.free_bytes >= 0:
        return []
    need, have = worst.total_bytes, worst.capacity_bytes
    cause: Cause = "memory" if c.max_batch < 1 else "kv"
    context = c.deployment.workload.context
    message = (
        f"stage {worst.stage} needs {need / 1e9:.1f} GB per device of {have / 1e9:.1f} GB: "
        f"weights {worst.weights_bytes / 1e9:.1f}, KV {worst.kv_bytes / 1e9:.1f} for batch {c.strategy.batch} x "
        f"{context} tokens, activations {worst.activation_bytes / 1e9:.1f}, "
        f"engine {(worst.overhead_bytes + worst.reserve_bytes) / 1e9:.1f}"
    )
    fix = (
        f"batch of at most {c.max_batch}"
        if c.max_batch
        else "more devices per replica, narrower weights, or a shorter context"
    )
    return [
        Finding(
            code="does-not-fit",
            severity="error",
            cause=cause,
            message=message,
            fix=fix,
            values={"need_bytes": need, "capacity_bytes": have},
        )
    ]


def _load_findings(c: _Case) -> list[Finding]:
    out: list[Finding] = []
    p = c.perf
    spare = _spare_findings(c)
    if not bool(p.stable[0]) and c.load.rate is not None and not any(f.severity == "error" for f in spare):
        message = (
            f"arrivals of {c.load.rate:.4g} requests/s exceed what {c.strategy.label()} serves "
            f"with batch {c.strategy.batch}: "
            f"{_f(p.capacity_rate):.4g} requests/s"
        )
        out.append(
            Finding(
                code="overload",
                severity="error",
                cause="slo",
                message=message,
                fix="more replicas, or a larger batch",
                values={
                    "capacity_rate": _f(p.capacity_rate),
                    "asked_rate": _f(c.load.rate) if c.load.rate is not None else None,
                },
            )
        )
    out += spare
    limit = batch_limit(c.deployment, c.curves, c.strategy.engine, c.strategy.attn_dp or 1)
    if c.strategy.batch > limit:
        message = f"batch({c.strategy.batch}) per replica exceeds the scheduler limit of {limit}"
        out.append(
            Finding(
                code="batch-limit", severity="error", cause="engine", message=message, fix=f"batch of at most {limit}"
            )
        )
    return [*out, *_speculation(c), *_cached(c), *_peak(c), *_at_maximum(c)]


def _speculation(c: _Case) -> list[Finding]:
    """What drafting yields, costs and changes."""
    w = c.deployment.workload
    spec = Speculation.of(w)
    if w.draft_acceptance is None:
        return []
    size = -(-c.perf.steps.b_high // np.minimum(c.strategy.pp, c.perf.steps.b_high))
    context = c.load.isl + max(1, c.load.osl // 2)
    plain = replace(
        c.layout, deployment=c.deployment.model_copy(update={"workload": w.model_copy(update={"draft_length": 0})})
    )
    without = _f(decode_steps(plain, c.perf.steps.b_high, context)[0])
    draft = _f(draft_pass(c.layout, size, context))
    assumed = "" if w.draft_length is not None else " (length assumed)"
    message = (
        f"speculation: {spec.length} drafted tokens per step{assumed} at acceptance {w.draft_acceptance:g} yield "
        f"{spec.accepted:.3g} tokens per step; a drafted token costs {draft * 1e3:.3g} ms (one layer and the head, as MTP and "
        f"EAGLE; a separate draft model is not priced, and no draft's weights are in the memory); time between tokens "
        f"{_f(c.perf.steps.high) * 1e3:.4g} ms, without speculation {without * 1e3:.4g} ms"
    )
    worse = _f(c.perf.steps.high) > without
    return [
        Finding(
            code="speculation", severity="warning" if worse else "info", message=message,
            fix="no speculation at this batch, or fewer drafted tokens" if worse else None,
            values={"tokens_per_step": spec.accepted, "draft_s": draft, "tpot_without_s": without},
        )
    ]  # fmt: skip


def _cached(c: _Case) -> list[Finding]:
    if not c.load.cached:
        return []
    new = max(1, math.ceil(c.load.isl * (1.0 - c.load.cached)))
    message = (
        f"prefix cache: of {c.load.isl} prompt tokens {c.load.isl - new} are found and {new} are prefilled; each sequence's KV "
        f"is counted in full, so that shared prefixes leave more room than is said here"
    )
    return [Finding(code="prefix-cache", severity="info", message=message, values={"prefilled": new})]


def _peak(c: _Case) -> list[Finding]:
    w = c.deployment.workload
    if w.peak_factor == 1.0:
        return []
    if c.load.mode == "open":
        message = f"judged at the peak: {w.request_rate:g} requests/s x peak factor {w.peak_factor:g}"
    else:
        message = (
            f"peak factor {w.peak_factor:g} multiplies a request rate, and this load has none: it is taken as the peak"
        )
    return [Finding(code="peak-load", severity="info", message=message)]


def _spare_findings(c: _Case) -> list[Finding]:
    """What the N+k spare asked for costs; an error where no replica is left to serve."""
    w, s = c.deployment.workload, c.strategy
    if not (w.spare_replicas or w.spare_nodes):
        return []
    spare = int(spare_replicas(c.deployment, c.layout.cands)[0])
    asked = f"{w.spare_nodes} spare node(s)" if w.spare_nodes else f"{w.spare_replicas} spare replica(s)"
    values = {"spare_replicas": spare, "spare_devices": spare * s.replica, "replicas": s.dp}
    if s.dp <= spare:
        message = f"{asked}: {s.label()} has {s.dp} replica(s) of {s.replica} devices, none is left without {spare}"
        fix = f"at least {(spare + 1) * s.replica} devices, or smaller replicas"
        return [Finding(code="no-spare", severity="error", cause="slo", message=message, fix=fix, values=values)]
    message = (
        f"{asked}: judged with {s.dp - spare} of {s.dp} replicas in service; {spare * s.replica} of {s.num_devices} "
        "devices are the spare"
    )
    return [Finding(code="spare", severity="info", message=message, values=values)]


def _at_maximum(c: _Case) -> list[Finding]:
    """Latencies at the longest stated prompt: reported, not gated."""
    longest = c.deployment.workload.seq_len_max
    if not longest or longest <= c.load.isl + c.load.osl:
        return []
    isl = max(1, longest - c.load.osl)
    perf = serve(c.layout, Load("closed", isl, c.load.osl, concurrency=1))
    message = (
        f"at the longest sequence ({isl} in + {c.load.osl} out) a lone request has TTFT {_f(perf.ttft):.4g} s "
        f"and TPOT {_f(perf.tpot):.4g} s"
    )
    return [
        Finding(
            code="at-maximum-length",
            severity="info",
            message=message,
            values={"ttft_s": _f(perf.ttft), "tpot_s": _f(perf.tpot)},
        )
    ]


# ------------------------------------------------------------------------------------------------------------ breakdown


def _kernels(c: _Case, works: Works) -> list[tuple[Layout, Work, int]]:
    """Every kernel of one pass through all stages, with the layout that prices it and how often it runs."""
    s, model = c.strategy, c.deployment.model
    out: list[tuple[Layout, Work, int]] = []
    if not s.stage_devices:
        return _of_rows(c.layout, works, stage_rows(model, s.layers_per_stage or (model.num_hidden_layers,), s.virtual))
    sides = c.layout.by_stage(works)
    rows = each_stage(model, s.layers_per_stage or ())
    for layout in {id(side): side for side, _ in sides}.values():
        mine = [(row, 1) for row, (side, _) in zip(rows, sides, strict=True) if side is layout]
        there = next(w for side, w in sides if side is layout)
        out += _of_rows(layout, there, mine)
    return out


def _of_rows(layout: Layout, works: Works, rows: Iterable[tuple[StageRow, int]]) -> list[tuple[Layout, Work, int]]:
    """The kernels of these stages, each once."""
    rows = tuple(rows)
    times: dict[object, int] = {}
    for row, count in rows:
        for kind, n in row.layers:
            times[kind] = times.get(kind, 0) + n * count
    out = [(layout, w, 1) for w in works.embed] if any(r.embed for r, _ in rows) else []
    for kind, layer in works.layers:
        out += [(layout, w, times[kind]) for w in layer if kind in times]
    return [*out, *((layout, w, 1) for w in works.head if any(r.head for r, _ in rows))]


def _terms(c: _Case, works: Works, scale: float) -> list[Term]:
    """Seconds per kernel name, summed over layers; on several kinds of devices, per kind."""
    total: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    sources: dict[str, str] = {}
    for layout, w, n in _kernels(c, works):
        name = f"{w.kernel} on {layout.deployment.cluster.device.id}" if c.strategy.stage_devices else w.kernel
        row = total.setdefault(name, [0.0, 0.0])
        row[0] += n * _f(layout.kernel_time(w).total)
        row[1] += n
        kinds[name] = w.kind if w.comm is None else w.comm.kind
        sources[name] = _source(layout, w)
    return [
        Term(
            name=name, value=seconds * scale, unit="s", 
            formula=f"{kinds[name]} x {int(n)}" + (f" x {scale:.4g} passes" if scale != 1 else ""),
            source=sources[name],
        )
        for name, (seconds, n) in total.items()
    ]  # fmt: skip


def _source(layout: Layout, w: Work) -> str:
    """Where the seconds of a kernel come from."""
    roof = layout.roof
    if w.comm is not None:
        measured = [t.curve.measured for t in layout.tops if t.operators is not None and t.curve.measured]
        return f"collectives measured on {measured[0]}; α–β beyond that link" if measured else "α–β of the links"
    if roof.table(w) is not None or (w.routed and roof.experts_measured):
        return f"operators measured on {roof.relative}"
    return f"{roof.curve.name} curve"


def _closed(name: str, terms: list[Term], total: float, rest: str, formula: str) -> Breakdown:
    """Terms plus what they leave of `total`, so that they add up."""
    left = total - sum(t.value for t in terms)
    return Breakdown(
        name=name,
        unit="s",
        terms=(*terms, Term(name=rest, value=left, unit="s", formula=formula, source="closed form")),
    )


def _overhead(c: _Case, sequences: float, passes: float) -> Term:
    e = c.curves.engine(c.strategy.engine)
    per_rank = -(-sequences // (c.strategy.attn_dp or 1))
    seconds = (e.step_s + e.per_sequence_s * per_rank) * passes
    return Term(
        name="engine",
        value=seconds,
        unit="s",
        formula=f"({e.step_s:g} + {e.per_sequence_s:g} · {per_rank:g}) · {passes:g}",
        source=e.source,
    )


def _tpot_breakdown(c: _Case) -> Breakdown:
    works, batch = c.perf.steps.decode_works, c.perf.steps.b_high
    size = -(-batch // np.minimum(c.strategy.pp, batch))
    hops = Term(
        name="p2p",
        value=_f(c.layout.boundary_times(works.residual_bytes)[0]),
        unit="s",
        formula="residual stream between stages",
        source="α–β of the links",
    )
    # A step yields several tokens where it verifies drafts.
    spec = Speculation.of(c.deployment.workload)
    per_token = 1.0 / spec.accepted
    hops = hops.model_copy(update={"value": hops.value * per_token})
    terms = [*_terms(c, works, per_token), *([hops] if c.strategy.pp > 1 else []), _overhead(c, _f(size), per_token)]
    if spec.length:
        draft = _f(draft_pass(c.layout, size, c.load.isl + max(1, c.load.osl // 2)))
        formula = f"{spec.length} x (a layer and the head) / {spec.accepted:.3g} tokens per step"
        seconds = spec.length * draft * per_token
        terms.append(Term(name="draft", value=seconds, unit="s", formula=formula, source=c.layout.roof.curve.name))
    return _closed("tpot", terms, _f(c.perf.tpot), "prefill_of_others_and_pipeline", "mean TPOT - one decode pass")


def _ttft_breakdown(c: _Case) -> Breakdown:
    s = c.perf.steps
    prompts, works = s.prompts, s.prefill_works
    passes = _f(s.chunks) * (_f(np.ceil(s.b_high / prompts)) if c.load.mode == "together" else 1.0)
    hops = Term(
        name="p2p",
        value=_f(c.layout.boundary_times(works.residual_bytes)[0]),
        unit="s",
        formula="residual stream between stages",
        source="α–β of the links",
    )
    terms = [*_terms(c, works, passes), *([hops] if c.strategy.pp > 1 else []), _overhead(c, _f(prompts), passes)]
    return _closed("ttft", terms, _f(c.perf.ttft), "queue_and_shared_steps", "mean TTFT - own prefill passes")


# ---------------------------------------------------------------------------------------------------------- utilisation


def _stage_times(c: _Case) -> list[float]:
    """Kernel seconds of one decode pass per stage."""
    s, model = c.strategy, c.deployment.model
    split = s.layers_per_stage or (model.num_hidden_layers,)
    if not s.stage_devices:
        rows = stage_rows(model, split, s.virtual)
        return [t for row, count in rows for t in [_row_time(c.layout, c.perf.steps.decode_works, row)] * count]
    sides = c.layout.by_stage(c.perf.steps.decode_works)
    return [_row_time(*side, row) for side, row in zip(sides, each_stage(model, split), strict=True)]


def _mixed(c: _Case) -> list[Finding]:
    """A pipeline over several kinds of devices: how evenly its stages are busy, against layers dealt out evenly; and that
    its bands were fitted on pipelines of one kind."""
    s, steps, model = c.strategy, c.perf.steps, c.deployment.model
    if not s.stage_devices:
        return []
    share = max(c.load.osl - 1, 0) / _f(-(-steps.b_high // np.minimum(s.pp, steps.b_high)))
    passes = ((steps.prefill_works, _f(steps.chunks) / _f(steps.prompts)), (steps.decode_works, share))

    def busiest(split: tuple[int, ...]) -> float:
        rows = each_stage(model, split)
        took = [sum(n * _row_time(*c.layout.by_stage(w)[i], row) for w, n in passes) for i, row in enumerate(rows)]
        return max(took) / (sum(took) / len(took))

    mine, even = busiest(s.layers_per_stage or ()), busiest(default_layers_per_stage(model.num_hidden_layers, s.pp))
    kinds = ", ".join(f"{list(s.stage_devices).count(k)} on {k}" for k in dict.fromkeys(s.stage_devices))
    words = f"stages {kinds}: busiest over mean {mine:.3f}, with layers dealt out evenly {even:.3f} (kernel times)"
    values = {"ratio": mine, "bound": max(even, DEFAULT_BALANCE)}
    message = (
        "one pipeline over several kinds of devices: the error bands were fitted on pipelines of one kind, and nobody "
        "measured this one"
    )
    return [
        Finding(code="mixed-balance", severity="info", cause="balance", where="time", message=words, values=values),
        Finding(
            code="mixed-unmeasured",
            severity="warning",
            message=message,
            fix="measure it with bench.sh before relying on it",
        ),
    ]


def _row_time(layout: Layout, works: Works, row: StageRow) -> float:
    layers = {k: _f(layout.body_time(w)) for k, w in works.layers}
    ends = _f(layout.body_time(works.embed)) * row.embed + _f(layout.body_time(works.head)) * row.head
    return ends + sum(n * layers[k] for k, n in row.layers)


def _utilisation(c: _Case) -> dict[str, float]:
    """Shares of the device's peak (compute, memory) and of time (network, busy), averaged over prefill and decode."""
    load, perf = c.load, c.perf
    steps = perf.steps
    decode, prefill, batch = steps.decode_works, steps.prefill_works, steps.b_high
    per_replica = _f(perf.request_rate) / c.strategy.dp
    passes_prefill = per_replica * _f(steps.chunks) / _f(steps.prompts)
    count = min(c.strategy.pp, int(batch[0]))
    passes_decode = _f(perf.decoding) / max(1.0, _f(batch)) * count / max(_f(perf.steps.high), 1e-12)
    # `high` is the time between tokens, of which a step of speculation yields several.
    per_step = Speculation.of(c.deployment.workload).accepted
    passes_decode /= per_step
    passes_decode = min(
        passes_decode,
        per_replica / per_step * max(load.osl - 1, 0) * count / max(1.0, min(_f(perf.decoding), _f(batch))),
    )
    sums = {"compute": 0.0, "memory": 0.0, "network": 0.0}
    for works, rate in ((prefill, passes_prefill), (decode, passes_decode)):
        for layout, w, n in _kernels(c, works):
            # A pass visits every stage; a rank belongs to one of them.
            share, peak = n * rate / c.strategy.pp, layout.roof.peak(c.strategy.weight_dtype)[0]
            sums["compute"] += share * _f(w.flops) / peak
            sums["memory"] += share * _f(w.weight_bytes + w.stream_bytes) / layout.roof.cluster.memory_bandwidth
            sums["network"] += share * _f(layout.kernel_time(w).total) if w.comm is not None else 0.0
    return {**{k: min(1.0, v) for k, v in sums.items()}, "busy": min(1.0, _f(perf.busy))}
