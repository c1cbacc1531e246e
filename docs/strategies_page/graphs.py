"""The partitioned graph of each example, and what its collectives move."""

from __future__ import annotations

from collections.abc import Iterator

from knowledge.catalog import load_model
from strategies_page.examples import CONTEXT, SEQ, Entry
from tools.graph.build import all_sizes
from tools.partition.lower import (
    PBody,
    POp,
    Program,
    ends_of,
    expected_tokens,
    local_dims,
    lower,
    num_elements,
)
from tools.partition.pools import Handover, Pools, handovers, lower_pools
from tools.partition.transfer import messages
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def strategy_of(e: Entry) -> Strategy:
    return Strategy.model_validate(e.degrees)


def strategies_of(e: Entry) -> list[Strategy]:
    """The strategy of the example; of two pools, prefill's and decode's."""
    return [Strategy.model_validate(d) for d in (e.degrees, e.decode) if d is not None]


def devices_of(e: Entry) -> int:
    """Devices of the example, those of both pools."""
    return sum(s.num_devices for s in strategies_of(e))


def program_of(e: Entry, model: ModelSpec | None = None, strategy: Strategy | None = None) -> Program:
    model, phase = model or load_model(e.model).model, e.phase
    seq, kv = (SEQ, SEQ) if phase == "prefill" else (1, CONTEXT)
    sizes = all_sizes(model, batch_size=e.batch, seq_len=seq, kv_len=kv)
    return lower(model, strategy or strategy_of(e), phase, sizes)


def pools_of(e: Entry, model: ModelSpec | None = None) -> Pools | None:
    """Both pools of an example that has two."""
    if e.decode is None:
        return None
    model = model or load_model(e.model).model
    prompt = all_sizes(model, batch_size=e.batch, seq_len=SEQ, kv_len=SEQ)
    return lower_pools(model, *strategies_of(e), prompt, {**prompt, "seq_len": 1})


def crossing(pools: Pools) -> tuple[Handover, ...]:
    """What crosses from pool to pool of the first layer, cache by cache."""
    return tuple(h for h in handovers(pools) if 0 in h.layers)


def layer_of(e: Entry, program: Program) -> PBody:
    """The layer that a section is about, from the first stage that has it."""
    return next(b for s in program.stages for b, _ in s.bodies() if b.name == e.layer)


def collectives(body: PBody) -> Iterator[POp]:
    return (p for p in body.ops if p.comm is not None and p.comm.kind != "slice")


def elements(program: Program, body: PBody, tensor: str) -> float:
    return float(num_elements(local_dims(body, tensor, program.sizes, program.mesh)))


def measured(e: Entry, program: Program) -> float:
    """Elements that enter collectives, per rank (of the group that sends) and layer; for a pipeline, per boundary; for two
    pools, of all messages of a layer."""
    pools, body = pools_of(e), layer_of(e, program)
    if pools:
        return float(sum(m.elements for h in crossing(pools) for m in h.messages(program.sizes)))
    if program.strategy.pp > 1:
        return elements(program, body, body.inputs[0])
    return sum(elements(program, body, p.inputs[0]) for p in collectives(body))


def travelled(program: Program, body: PBody) -> tuple[float, float]:
    """Elements that a layer's transfers between device groups move, all ranks together: (to another device, none needed
    because sender and receiver are the same device). Of a routed tensor a token goes to top_k of its experts."""
    away = stay = 0.0
    for p in collectives(body):
        if p.comm is None or p.comm.kind != "transfer":
            continue
        spec, sizes = body.spec(p.output), program.sizes
        chosen = float(sizes["top_k"] / sizes["experts"]) if spec.routed else 1.0
        ends = ends_of(body, p, program.mesh, program.orders)
        for m in messages(*ends, {d: int(sizes[d]) for d in spec.dims}):
            away += chosen * m.elements * (m.src != m.dst)
            stay += chosen * m.elements * (m.src == m.dst)
    return away, stay


def predicted(e: Entry, program: Program) -> float:
    """The formula of the section, with the sizes and degrees of its example."""
    s = program.strategy
    names = ("tp", "pp", "ep", "etp", "attn_dp", "cp", "dcp", "dk", "expert_devices", "attn_pool", "redundant_experts")
    degrees = {n: getattr(s, n) for n in names}
    if s.ep_nodes > 1:
        tokens = program.sizes["batch_size"] * program.sizes["seq_len"] // (s.attn_dp or 1)
        degrees |= {"ep_nodes": s.ep_nodes, "node_tokens": expected_tokens(("expert_nodes",), tokens, program.sizes)}
    return float(eval(e.volume, {"__builtins__": {}}, {**program.sizes, **degrees, **dict(s.axes)}))
