"""The strategy, said in layouts: which axis splits which dim of the weights, and how the residual stream lies.

Weights never move. Everything else follows from them by the rules in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tools.graph.heads import KEY_DIMS, KV_HEADS, VALUE_DIMS
from tools.graph.ir import Op, Tensor
from tools.partition.axes import SLICES, SPLITS
from tools.partition.layout import DEFAULT_ORDERS, Layout, Order, Orders
from tools.partition.mesh import ATTENTION, EXPERTS, POOL, Axes, MeshShape
from tools.spec.base import Refused
from tools.spec.strategy import Phase, Placements

WHOLE: frozenset[str] = frozenset(
    {"router.weight", "router.bias", "gate_correction_bias", "shared_gate.weight", "expert_scale"}
)
"""Weights that every rank keeps whole: each token is scored against all experts where it lies."""
_HEADS = ("heads", *KV_HEADS)
_KV_AXES = tuple(zip(KV_HEADS, ("tp_kv", "tp_kv_sliding"), strict=True))
_ONE_HEAD = tuple((d,) for d in KEY_DIMS)


def placed(name: str, weight: str, module: str) -> bool:
    """Whether an entry of a strategy's placements, a pattern such as `mlp.*_proj`, means this weight."""
    return any(fnmatchcase(x, name) for x in (module, weight, weight.split(".")[0]))


@dataclass(frozen=True, slots=True)
class Placement:
    """Layouts that the strategy fixes for one phase of one device group."""

    mesh: MeshShape
    phase: Phase
    sp: bool = False
    moe_comm: str = "auto"
    ring: int = 0
    """Steps of ring attention (= cp), 0: none. The only degree that is structure: the steps are written out."""
    pass_q: bool = field(default=False, kw_only=True)
    """Queries travel around the ring, keys and values stay."""
    overrides: Placements = field(default=(), kw_only=True)
    """Weights that are placed one by one."""

    def axis(self, name: str) -> Axes:
        return self.mesh.axis(name)

    def words(self, layout: Layout) -> str:
        """A layout in the strategy's words: "heads over tp, seq_len over cp"."""
        parts = [f"{d} over {self.mesh.words(a)}" for d, a in layout.split]
        if layout.pending:
            parts.append(f"pending {layout.reduce} over {self.mesh.words(layout.pending)}")
        return ", ".join(parts) or "replicated"

    # ----------------------------------------------------------------------------------------------------- device groups

    def has(self, group: str) -> bool:
        """Whether a stage has this device group beside attention's own."""
        return any(name == group for name, _, _ in self.mesh.groups)

    @property
    def main(self) -> str:
        """The device group that holds everything no other was made for; "" where there is one only."""
        return ATTENTION if self.mesh.groups else ""

    def group_of(self, op: Op) -> str:
        """Device group that runs an operator of a layer."""
        if self.has(EXPERTS) and op.module.startswith("mlp.experts"):
            return EXPERTS
        if self.has(POOL) and op.kernel in ("attention", "attention_merge"):
            return POOL
        return self.main

    def arrival(self, t: Tensor, group: str) -> Layout:
        """How a tensor would lie in a device group that did not make it, before the operator there says what it needs."""
        tokens = dict(self.tokens())
        if group == EXPERTS:
            tokens = {
                "seq_len" if self.phase == "prefill" else "batch_size": self.axis("edp"),
                "experts": self.axis("ep"),
            }
        elif group == POOL:
            tokens = dict(self.attention())
        else:
            tokens |= {"heads": self.axis("tp_heads"), **{kv: self.axis(over) for kv, over in _KV_AXES}}
        return Layout.of({d: tokens.get(d, ()) for d in t.dims})

    def leaving(self, t: Tensor, layout: Layout) -> Layout:
        """How a tensor lies when it leaves the group that made it: a pending sum is scattered over its tokens, so that
        every rank sends a part."""
        if not layout.pending:
            return layout
        split, dim = layout.as_dict(), "seq_len" if self.phase == "prefill" else "batch_size"
        if dim in t.dims:
            split[dim] = split.get(dim, ()) + layout.pending
        return Layout.of(split)

    def weight(self, t: Tensor, group: str = "", module: str = "") -> Layout:
        """How a weight lies; `module`: path of the operator that reads it."""
        said = next((split for name, split in self.overrides if placed(name, t.name, module)), None)
        if said is not None:
            return self._said(t, said, module)
        if t.name in WHOLE or t.dims in _ONE_HEAD:
            return Layout()  # a norm over d_k needs it whole
        if group == POOL:
            return Layout.of({dim: self.axis("pool_heads") for dim in t.dims if dim in _HEADS})
        return Layout.of(self._split(t))

    def _split(self, t: Tensor) -> dict[str, Axes]:
        """Every dim over the axis that splits it, less the ranks that slices of this weight take."""
        split = {dim: self.axis(axis) for dim, axis in SPLITS if dim in t.dims}
        for name, x in SLICES.items():
            mine = self.axis(name)
            if mine and not x.beside & set(t.dims):
                split |= {d: tuple(a for a in split[d] if a not in mine) for d in x.takes_from if d in split}
                split |= {d: mine for d in x.dims if d in t.dims and len(t.dims) > 1}
        return split

    def tokens(self) -> Mapping[str, Axes]:
        """How tokens are dealt out outside attention: by sequences over attn_dp, by positions over cp. A decode step has
        one position per sequence, which every cp rank holds."""
        return {"batch_size": self.axis("attn_dp"), "seq_len": self.axis("cp") if self.phase == "prefill" else ()}

    def _said(self, t: Tensor, split: tuple[tuple[str, Axes], ...], module: str) -> Layout:
        """A placement in the layout language. Refuses a dim that the weight lacks and axes that two dims would share."""
        by_dim, taken = dict(SPLITS), dict[str, str]()
        out: dict[str, Axes] = {}
        for dim, names in split:
            if dim not in t.dims:
                continue  # a bias lacks the dim that is contracted
            # KV heads are as far split as there are some; d_k only by pairs, which is what dk is for.
            axes = tuple(a for n in names for a in self.axis(by_dim[dim] if n == "tp" and dim in _HEADS else n))
            clash = next((a for a in axes if a in taken), None)
            if clash is not None or dim in KEY_DIMS:
                why = (
                    f"{taken[clash]} is split over the same ranks" if clash else "RoPE needs its pairs together: use dk"
                )
                raise Refused(f"{module}: weight {t.name}, {dim} over {'*'.join(names)}: {why}")
            taken |= dict.fromkeys(axes, dim)
            out[dim] = axes
        return Layout.of(out)

    @property
    def splits_kv(self) -> bool:
        """Whether attention reduces over ranks: decode with the cache dealt out over dcp, or over the ring's ranks."""
        return self.phase == "decode" and bool(self.axis("dcp") or self.ring or self.axis("pool_seq"))

    @property
    def exchanged(self) -> Axes:
        """cp axes along which positions are exchanged for heads."""
        return () if self.ring else self.axis("cp")

    @property
    def kv_split(self) -> Axes:
        """Axes over which the cached positions of a sequence are dealt out."""
        if self.has(POOL):
            return self.axis("pool_seq")
        return (self.axis("cp") if self.ring else ()) + self.axis("dcp")

    @property
    def rings(self) -> bool:
        """Whether attention runs as a ring in this phase."""
        return self.phase == "prefill" and self.ring > 0

    @property
    def orders(self) -> Orders:
        """How dims are dealt out. A ring's positions are zig-zag, so that causal attention loads its ranks alike; what
        decoding appends is dealt out one by one."""
        orders: dict[str, Order] = dict(DEFAULT_ORDERS)
        if self.ring:
            orders["seq_len"] = "zigzag"
        for name, x in SLICES.items():
            if self.axis(name):
                orders |= dict(x.orders)
        return orders

    def attention(self) -> Mapping[str, Axes]:
        """What attention itself asks for: whole queries, heads over tp and over what cp exchanged for positions
        (DeepSpeed-Ulysses, arXiv 2309.14509); under dcp the heads of its ranks together, each on its own cached positions
        (Helix, arXiv 2507.07120)."""
        if self.has(POOL):
            queries = self.axis("pool_seq") if self.phase == "prefill" else ()
            return {"heads": self.axis("pool_heads"), "seq_len": queries, "kv_len": () if queries else self.kv_split}
        tp = self.axis("tp_heads")
        if self.splits_kv:
            together = tp[: len(tp) - len(self.axis("dcp"))]
            return {"heads": together + self.exchanged, "seq_len": (), "kv_len": self.kv_split}
        if self.rings:
            return {"heads": tp, "seq_len": self.axis("cp"), "kv_len": self.axis("cp")}
        return {"heads": tp + self.exchanged, "seq_len": (), "kv_len": ()}

    def cache(self) -> Mapping[str, Axes]:
        """How the KV cache lies, in every phase."""
        if self.has(POOL):
            heads = self.axis("pool_heads")
            return {
                "batch_size": (),
                "kv_len": self.kv_split,
                "seq_len": (),
                **dict.fromkeys(_HEADS, heads),
                **dict.fromkeys(KEY_DIMS, ()),
            }
        return {
            "batch_size": self.axis("attn_dp"), "kv_len": self.kv_split, "seq_len": self.axis("cp") if self.rings else (),
            **{
                kv: self.axis(over) + (() if self.ring else self.axis(over.replace("tp", "cp", 1)))
                for kv, over in _KV_AXES
            },
            "heads": self.axis("tp_heads") + self.exchanged,
            **{d: self.axis(name) for name, x in SLICES.items() for d in x.cache},
        }  # fmt: skip

    def home(self, dims: tuple[str, ...], layout: Layout) -> Layout:
        """Where a pending sum goes: the residual stream to its own layout, heads back to where their weights are."""
        if dims == ("batch_size", "seq_len", "hidden"):
            return self.residual()
        if self.has(POOL) and set(layout.pending) <= set(self.axis("pool_seq")):
            # What ranks of the pool merge is scattered along each head, so that every rank has a part to send back.
            inner = next((d for d in (*KEY_DIMS, *VALUE_DIMS, "kv_lora") if d in dims), None)
            parts = layout.as_dict()
            if inner:
                parts[inner] = layout.axes(inner) + layout.pending
            return Layout.of(parts)
        have, whole = layout.axes("heads"), self.axis("tp_heads") + self.exchanged
        back = whole[len(have) :]
        if "heads" in dims and whole[: len(have)] == have and back and set(back) <= set(layout.pending):
            return Layout.of({**layout.as_dict(), "heads": whole})
        return layout.without_pending()

    def handed(self, t: Tensor) -> Layout:
        """How a tensor lies that bodies hand on beside the residual stream: like tokens outside attention."""
        lies = self.cache() if t.kind == "cache" else self.tokens()
        return Layout.of({d: lies.get(d, ()) for d in t.dims})

    def residual(self) -> Layout:
        """Sequence parallelism (arXiv 2205.05198) also splits tokens over tp: positions in prefill, sequences in decode."""
        split = dict(self.tokens())
        if self.sp:
            dim = "seq_len" if self.phase == "prefill" else "batch_size"
            split[dim] = split[dim] + self.axis("tp")
        return Layout.of(split)

    def routed(self, tokens: Layout) -> Layout:
        """Tokens that lie as `tokens`, spread so that no expert rank sends a token twice; ranks that slice the same
        expert (etp) need the same tokens."""
        etp, ep = self.axis("etp"), self.axis("ep")
        if self.has(EXPERTS):
            etp, ep = (), self.mesh.members(ATTENTION)  # every attention rank sends some of the tokens
        split = {d: tuple(a for a in tokens.axes(d) if a not in etp) for d in ("batch_size", "seq_len")}
        nodes = self.axis("ep_nodes")
        idle = tuple(sorted((a for a in ep if a not in tokens.used()), key=lambda a: a in nodes))  # as `tokens`: inside
        dim = "seq_len" if self.phase == "prefill" else "batch_size"
        return Layout.of({**split, dim: split[dim] + idle})

    def gathered(self, tokens: Layout) -> Layout:
        """Tokens as ranks need them that pick their own experts' share: whole over ep and etp."""
        inside = self.axis("ep") + self.axis("etp")
        return Layout.of({d: tuple(a for a in tokens.axes(d) if a not in inside) for d in ("batch_size", "seq_len")})

    def dispatches(self, tokens: Layout) -> bool:
        """Whether experts see tokens of other ranks, so that dispatch and combine must communicate."""
        if self.has(EXPERTS):
            return True
        return bool(set(self.axis("ep")) & tokens.used()) and self.moe_comm != "allgather"
