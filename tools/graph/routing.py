"""Hierarchical dispatch: which tokens a node gets, and how many.

`MoE.nodes` groups of devices hold the experts in equal runs. A token goes once to every node that holds one of its
experts, together with the chosen experts and their weights; inside the node it goes on to the experts; the node adds up
what they give, and one sum per node comes back (DeepEP's normal kernels; DeepSeek-V3, arXiv 2412.19437 §3.2.2).
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np

from tools.graph.ir import BodyBuilder, Sizes
from tools.spec.base import Refused
from tools.spec.model import ModelSpec, MoE

NODE_TOKENS = ("expert_nodes", "batch_size", "seq_len")
"""Dims of what travels between nodes: `batch_size` x `seq_len` hold the tokens that a node gets."""


def hierarchical(moe: MoE, phase: str) -> bool:
    """Whether tokens go to nodes first. Decode steps are small: their kernels send straight to the ranks."""
    return moe.nodes > 1 and phase == "prefill"


def node_sizes(moe: MoE) -> dict[str, int]:
    """Lengths and counts that only a hierarchical dispatch has."""
    if moe.nodes == 1:
        return {}
    return {"expert_nodes": moe.nodes, "expert_groups": moe.n_group, "groups_per_token": moe.topk_group}


@lru_cache(maxsize=4096)
def node_share(nodes: int, num_experts: int, top_k: int, num_groups: int = 1, groups_per_token: int = 1) -> float:
    """Expected share of the tokens that one of `nodes` nodes gets, every choice of `top_k` experts being equally likely:
    1 - C(E - E/nodes, k) / C(E, k).

    Gates that pick `groups_per_token` of `num_groups` groups first (DeepSeek-V3: 4 of 8) reach fewer nodes: the same with
    the E of the picked groups, averaged over how many of them the node holds (hypergeometric). Where a group spans nodes,
    as without groups.
    """
    if num_groups <= 1 or num_groups % nodes:
        return 1.0 - comb(num_experts - num_experts // nodes, top_k) / comb(num_experts, top_k)
    here, picked, size = num_groups // nodes, groups_per_token, num_experts // num_groups
    missed = sum(
        comb(here, j) * comb(num_groups - here, picked - j) * comb((picked - j) * size, top_k)
        for j in range(min(here, picked) + 1)
    )
    return 1.0 - missed / (comb(num_groups, picked) * comb(picked * size, top_k))


def node_tokens(tokens: Any, sizes: Sizes) -> Any:
    """Expected tokens of those that `tokens` counts that go to one node; `expert_nodes` may be an array."""
    fixed = [int(sizes[k]) for k in ("experts", "top_k", "expert_groups", "groups_per_token")]
    nodes = sizes["expert_nodes"]
    if not isinstance(nodes, np.ndarray):
        return tokens * node_share(int(nodes), *fixed)
    counts, back = np.unique(nodes, return_inverse=True)
    return tokens * np.asarray([node_share(int(n), *fixed) for n in counts])[back.reshape(nodes.shape)]


def routed_name(dims: Container[str]) -> str:
    """What the token dim of a routed tensor is called."""
    return "node_tokens" if "expert_nodes" in dims else "expert_tokens"


def to_nodes(b: BodyBuilder, model: ModelSpec, x: str, ids: str, weights: str) -> tuple[str, str, str]:
    """Tokens, chosen experts and their weights as the nodes get them: nothing, -1 and 0 where a node has no part."""
    m = model.moe
    assert m is not None
    if m.num_slots % m.nodes:
        raise Refused(
            f"experts({m.num_slots}) % ep_nodes({m.nodes}) = {m.num_slots % m.nodes}: nodes hold equal runs of experts; "
            f"choose ep_nodes among the divisors of {m.num_slots}, or redundant_experts that fill up"
        )
    kw: dict[str, Any] = {
        "kernel": "dispatch_nodes",
        "module": "mlp.dispatch.nodes",
        "routed": True,
        "attrs": {"nodes": m.nodes, "num_slots": m.num_slots},
    }
    narrow = (*NODE_TOKENS, "top_k")
    return (
        b.op("dispatch_nodes", "to_nodes", (x, ids), (*NODE_TOKENS, b.tensors[x].dims[-1]), fn="tokens", **kw),
        b.op("node_ids", "to_nodes", (ids,), narrow, fn="ids", tensor_kind="index", dtype="index", **kw),
        b.op("node_weights", "to_nodes", (weights, ids), narrow, fn="weights", dtype="fp32", **kw),
    )


def from_nodes(b: BodyBuilder, sums: str) -> str:
    """The sums of all nodes added up where the token came from."""
    kw: dict[str, Any] = {"kernel": "combine", "module": "mlp.combine", "attrs": {"left": "dispatch_nodes"}}
    return b.op("combine", "from_nodes", (sums,), ("batch_size", "seq_len", b.tensors[sums].dims[-1]), **kw)
