"""`plan.md` of a paper: what was read, what was drawn, whether it is what the paper says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent.reading.paper_doubts import doubts
from agent.report.detail import latency, memory, merged, module_row, placement, proof_line
from agent.report.format import duration, gigabytes, plural, rate, table
from agent.report.judged import rubric, task
from agent.report.page import Lines, Page, finding_line
from tools.rubric import Deliverable, Evaluation
from tools.shards import summary
from tools.spec.paper import PaperMethod, PaperStrategy
from tools.spec.plan import Plan

if TYPE_CHECKING:
    from agent.paper_run import PaperGraph, PaperVerification

MODULES = (
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


def render_paper_md(
    method: PaperMethod, verification: PaperVerification, plans: Mapping[str, Plan], files: Sequence[Deliverable],
    evaluation: Evaluation, opinion: str = "",
) -> str:  # fmt: skip
    """Markdown; what is proven and what is predicted are said apart."""
    first = next(iter(plans.values()))
    page = Page(first, tuple(files), evaluation)
    blocks: list[Lines] = [
        _first(method, verification, first, evaluation),
        ["## Deployments", "", *_overview(method, verification)],
    ]
    for m in method.models:
        blocks.append([f"## {m.name}", "", *_model(method, m.key)])
        for s in method.of(m.key):
            g = verification.of(m.key, s.name)
            if g is not None:
                blocks.append(
                    [f"### {m.name}: {s.name.replace('_', ' ')}", "", *_strategy(method, s, g, plans.get(m.key))]
                )
    blocks += [[f"## {title}", "", *lines] for title, lines in _closing(method, first, page) if lines]
    if opinion:
        blocks.append(
            [
                "## Opinion of the language model (not verified, not scored)",
                "",
                *(f"> {x}" for x in opinion.strip().splitlines()),
            ]
        )
    return "\n\n".join("\n".join(b) for b in blocks) + "\n"


def _first(method: PaperMethod, verification: PaperVerification, plan: Plan, evaluation: Evaluation) -> Lines:
    proofs = [p for g in verification.graphs for p in g.verified.proofs.values()]
    worst = max((p.max_relative_error for p in proofs), default=0.0)
    out = [f"# Deployment of a paper: {method.title}", "", f"**{plan.headline}**"]
    out += ["", *(f"- **At risk.** {line}" for line in plan.at_risk)] if plan.at_risk else []
    low = [s for s in evaluation.scores if s.barred and s.value < evaluation.bar]
    out += (
        [
            "",
            *(
                f"- **Below the bar.** {s.criterion.capitalize()} {s.value:.2f} (bar {evaluation.bar}): {s.reason}."
                for s in low
            ),
        ]
        if low
        else []
    )
    lost = (*method.unsupported, *verification.refused)
    out += ["", *(f"- **Not drawn.** {u.message()}" for u in lost)] if lost else []
    said = " ".join(out)
    open_ones = [d for d in doubts(method) if d not in said]
    out += ["", *(f"- **Doubt.** {d[0].upper()}{d[1:]}." for d in open_ones)] if open_ones else []
    told = (
        f"*Proven:* {plural(len(proofs), 'graph')} executed on simulated devices at reduced sizes equal their unpartitioned models "
        f"(max relative error {worst:.0e}); dims, parts and the DAG rules check out. "
        "*Predicted:* every time, throughput and byte of use."
    )
    return [*out, "", told]


def _overview(method: PaperMethod, verification: PaperVerification) -> Lines:
    rows = []
    for s in method.strategies:
        g, m = verification.of(s.model, s.name), method.model(s.model)
        if g is None:
            continue
        e = g.estimate
        worst = max(p.max_relative_error for p in g.verified.proofs.values())
        used = max((x.total_bytes for x in e.memory), default=0.0) if e else None
        rows.append((
            m.name, s.name.replace("_", " "), s.strategy.label(moe=m.spec.moe is not None),
            f"{s.strategy.num_devices} ({s.devices_source})", f"proven, {worst:.0e}",
            duration(e.ttft_s) if e else "-", duration(e.tpot_s) if e else "-", rate(e.output_tok_s) if e else "-",
            f"{gigabytes(used)}{', does not fit' if e and any(x.free_bytes < 0 for x in e.memory) else ''}" if used else "-",
        ))  # fmt: skip
    head = (
        "model",
        "role",
        "strategy",
        "devices",
        "graphs",
        "TTFT (predicted)",
        "TPOT (predicted)",
        "output (predicted)",
        "memory per device",
    )
    return table(head, rows, "lllrlrrrr")


def _model(method: PaperMethod, key: str) -> Lines:
    m = method.model(key)
    spec, a = m.spec, m.spec.attention
    ffn = []
    if spec.mlp:
        ffn.append(f"MLP {spec.mlp.intermediate_size} ({'gated, ' if spec.mlp.gated else ''}{spec.mlp.activation})")
    if spec.moe:
        shared = f", shared expert {spec.moe.shared_intermediate_size}" if spec.moe.shared_intermediate_size else ""
        ffn.append(f"{spec.moe.num_experts} experts of {spec.moe.intermediate_size}, top-{spec.moe.top_k}{shared}")
    dense = f", {spec.moe_layers.count(False)} of the layers dense" if spec.moe_layers else ""
    said = (
        f"{spec.num_hidden_layers} layers{dense}, hidden {spec.hidden_size}, {a.num_heads} heads "
        f"({a.num_kv_heads} for KV) × {a.head_dim}, "
        f"{', '.join(ffn)}, vocabulary {spec.vocab_size}, {spec.weight_dtype}. Prefill: batch {m.batch_size} × {m.seq_len} tokens; "
        f"decode: one token each at {m.kv_len} tokens of context."
    )
    return [said, *(["", *(f"- Assumed: {n}." for n in m.notes)] if m.notes else [])]


def _strategy(method: PaperMethod, s: PaperStrategy, g: PaperGraph, plan: Plan | None) -> Lines:
    x = s.strategy
    moe = method.model(s.model).spec.moe is not None
    experts = f" = experts: edp({x.edp}) × ep({x.ep}) × etp({x.etp})" if moe else ""
    out = [
        f"Devices: pp({x.pp}) × [attention: tp({x.tp}) × cp({x.cp}) × attn_dp({x.attn_dp}){experts}] "
        f"× dp({x.dp}) = {x.num_devices}; "
        f"the paper gives {s.num_devices} ({s.devices_source}).",
        "",
        *(f"- “{' '.join(q.quote.split())}” ({q.file}:{q.line})" for q in s.quotes),
        *(f"- Read with: {n}." for n in s.notes),
    ]
    out += ["", *(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in summary(g.verified.parts))]
    out += ["", *table(MODULES, [module_row(p) for p in merged(g.verified.parts)], "llrllllll"), ""]
    for phase, proof in g.verified.proofs.items():
        z = g.verified.sizes[phase]
        entry = {"proof": proof.model_dump(), "batch": z.batch_size, "seq_len": z.seq_len, "kv_len": z.kv_len}
        out.append(proof_line(phase, x.label(moe=moe), entry))
    told = [f for f in g.verified.findings if f.severity != "info"]
    out += ["", *(f"- {finding_line(f)}" for f in told)] if told else []
    if s.role == "proposed" and plan is not None:
        own = Page(plan)
        for title, lines in (
            ("Which device does what", placement(own)),
            ("Memory per device", memory(own)),
            ("Where the time goes (predicted)", latency(own)),
        ):
            out += ["", f"**{title}**", "", *lines] if lines else []
    return out


def _closing(method: PaperMethod, plan: Plan, page: Page) -> list[tuple[str, Lines]]:
    hardware = [f"- {f.path}: {f.value} ({f.stated_as or f.origin})" for f in method.conditions.under("hardware.")]
    skipped = [f"- {i.section[:160]}: {i.why}" for i in method.conditions.ignored]
    dags = [d for d in page.files if d.kind in ("dag_svg", "dag_dot", "dag_script")]
    stems = dict.fromkeys(d.path.rsplit(".", 1)[0] for d in dags)
    links = [
        f"- {stem.removeprefix('dag/')}: "
        + ", ".join(f"[{d.path.rsplit('.', 1)[1]}]({d.path})" for d in dags if d.path.rsplit(".", 1)[0] == stem)
        for stem in stems
    ]
    return [
        ("Hardware", hardware),
        ("Not used from the paper", skipped),
        ("Demands of the task", task(page)),
        ("Rubric", rubric(page)),
        ("Files", links),
    ]
