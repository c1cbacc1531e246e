"""R10, R11, R19, R20: operators, layers and their repetitions, module paths."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from tools.dag.alike import by_form
from tools.dag.facts import COMPUTES, NodeFacts, View, cluster_repeats, index_set, num_layers, plain, repeats_in, words
from tools.dag.rules.base import NotDecidable, Violation, bad, full_detail, rule, some_nodes
from tools.dag.rules.evidence import MODULE, absent, is_own, lacking
from tools.dag.rules.repeated import repetitions

BLOCK = re.compile(
    r"multi[\s-]?head[\s-]?attention|\bself[\s-]?attention\b|\bMHA\b|\bGQA\b|\bMLA\b|\battention\b|\battn\b|\bfeed[\s-]?forward\b|\bFFN\b|\bMLP\b|"
    r"\b(?:transformer|decoder|encoder)[\s-]?(?:block|layer)|\bMoE\b|\blayers?\s*\d+\s*(?:-|–|to)\s*\d+|"
    r"^\W*(?:(?:pipeline|transformer|decoder|encoder|dense|model)\s+)*(?:layers?|blocks?|stages?)"
    r"\s*#?\d+(?:\s*(?:-|–|to)\s*\d+)?\W*$", re.IGNORECASE,
)  # fmt: skip
OPERATOR = re.compile(
    r"mat ?mul|gemm|linear|\bproj|\bscores?\b|soft ?max|\bscale\b|\bmask\b|\bvalues?\b|\bcontext\b|"
    r"norm\b|\badd\b|\bmul\b|\bact|gelu|silu|swish|relu|rope|"
    r"rotary|\bup\b|\bdown\b|\bgate\b|\bq\b|\bk\b|\bv\b|qkv|\bcache\b|\boutput\b|embed|lookup|sampl|argmax|logits|repeat|weights?|cat\b|transpose|"
    r"reshape|dropout|sqrt|einsum|\bdot\b|\bbmm\b|lm[\s-]?head|dispatch|combine|residual|gather|scatter|top[\s_-]?k|router|"
    r"sigmoid|\bdiv(?:ide)?\b|\bexp\b|\bsum\b|\bmax\b", re.IGNORECASE,
)  # fmt: skip
OMITTED = re.compile(
    r"\bomitted\b|\b(?:more|remaining|other|similar|same)\b.*\blayers?\b|^\W*(?:\.{3}|…)\W*|省略|其余.*层",
    re.IGNORECASE,
)
JOINED = re.compile(r"\s(?:\+|&|and|→|->)\s|(?<=\w)\+(?=\w)", re.IGNORECASE)


@rule("R10", "no node stands for several operators")
def single_operators(v: View) -> Iterator[Violation]:
    some_nodes(v)
    full_detail(v)
    for n in v.nodes.values():
        if n.kind != "compute":
            continue
        several, omits, block = _stands_for(n.operator)
        if several:
            yield bad(n, f"{words(n.operator)[:60]!r} names {several} operators", "one node per operator")
        elif omits:
            yield bad(n, f"{words(n.operator)[:60]!r} stands for layers that are not drawn",
                      "draw the layer once and write × n")  # fmt: skip
        elif block and _only_a_block(v, words(n.operator)):
            yield bad(n, f"{words(n.operator)[:60]!r} is a block of operators",
                      "break it down: projections, scores, softmax, …")  # fmt: skip


@by_form
def _stands_for(operator: str) -> tuple[int, bool, bool]:
    """How many operators the words list (0 where they do not), whether they leave layers out, whether they name a block."""
    head = words(operator)
    omits = OMITTED.search(head) is not None
    block = BLOCK.search(head) is not None and not OPERATOR.search(_DOT_PRODUCT.sub("", BLOCK.sub("", head)))
    parts = JOINED.split(head)
    if (
        len(parts) > 1
        and sum(bool(OPERATOR.search(p) or BLOCK.search(p)) for p in parts) > 1
        and "append and read" not in head
    ):
        return len(parts), omits, block
    listed = re.search(r"[(（]([^()（）]+)[)）]", head)
    listing = re.split(r"\s*[,，、/]\s*", listed[1]) if listed else []
    if len(listing) > 1 and all(OPERATOR.search(p) and not re.search(r"\d", p) for p in listing):
        return len(listing), omits, block
    return len(_LIST.split(head)) if _listed_bare(head) else 0, omits, block


_BESIDE_BLOCK = re.compile(
    r"\b(?:block|layers?|module|sub|fused|causal|masked|self|cross|multi|head|the|network|expert|shard\w*|part|local|dense|sparse|"
    r"forward|pass|full|group|of|for|on|with|and|a|in|pre|post|x|stage|computation|compute|core|op|mechanism|tp|ep|dp|pp|heads?|"
    r"transformer|decoder|encoder|stack|unit|experts?|partition|slice|kv\d*)\b", re.IGNORECASE,
)  # fmt: skip


def _only_a_block(v: View, head: str) -> bool:
    """Beside the block's name no word that may name one of its operators; adjectives before it make it no other thing."""
    if _ADJECTIVES.match(_ORDINALS.sub("", v.places.without(head))):
        return True
    rest = BLOCK.sub(" ", v.places.without(head))
    return is_own(v) or not re.search(r"[^\W\d_]{2,}", _BESIDE_BLOCK.sub(" ", re.sub(r"[(（].*", " ", rest)))


_DOT_PRODUCT = re.compile(r"\bdot[\s-]?product\b", re.IGNORECASE)
_ORDINALS = re.compile(
    r"[(（].*|\s+(?:L|stage|step|layer)?\s*\d+\s*$|^\W*(?:layer|stage|step|block|L)\s*#?\d+\W+", re.IGNORECASE
)
_ADJECTIVES = re.compile(
    r"\s*(?!.*\b(?:of|for|to|from|after|before|in|with|into)\b)(?:[a-z][a-z.-]*\s+){0,4}(?:attention|attn|MHA|FFN|MLP|MoE|feed[\s-]?forward)(?:\s+(?:network|layer|block|module|model|computation))?\s*\Z",
    re.IGNORECASE,
)
_LIST = re.compile(r"\s*[,，、;；]\s*")


def _listed_bare(head: str) -> bool:
    """`Linear up, GELU, Linear down`: operators one after the other."""
    parts = _LIST.split(head) if "," in head or "、" in head or ";" in head else []
    return len(parts) > 1 and all(COMPUTES.search(p) and not re.search(r"\d", p) for p in parts)


ANY_LAYER = re.compile(r"\b(?:layers?|blocks?|h)[._\[{(]+(?:[a-z*]|idx|index)[\]})]*(?:\.|$)", re.IGNORECASE)
"""`model.layers.i.…`: a layer that stands for others."""
LAYER_INDEX = re.compile(
    r"(?:\b|_)(?:(?:layers?|blocks?)[._\s\[-]*(\d+)(?![\d-])|[hl][._\[]?(\d+)(?=[._\]]))", re.IGNORECASE
)


@rule("R11", "repeated modules are drawn once, with the number of repetitions")
def repeats(v: View) -> Iterator[Violation]:
    some_nodes(v)
    per_layer: dict[tuple[frozenset[int] | None, int], Counter[str]] = defaultdict(Counter)
    first: dict[tuple[frozenset[int] | None, int], NodeFacts] = {}
    for n in v.nodes.values():
        index = _layer_index(n)
        if index is not None and n.kind == "compute":
            key = (n.devices, index)
            per_layer[key][_without_index(n.operator)] += 1
            first.setdefault(key, n)
    told = set()
    if v.graph.attrs.get("detail", "full") != "full":
        per_layer = {}  # a view with less detail does not tell kinds of layers apart
    for devices, index, before in _equal_neighbours(per_layer) if is_own(v) else _equal_layers(per_layer):
        told.add(devices)
        yield bad(first[(devices, index)], f"layer {index} is drawn again, equal to layer {before}", _DRAW_ONCE)
    for found in repetitions(v) if not is_own(v) else ():
        if found.first.devices not in told:
            upto = f" to {found.last.id}" if found.size > 1 else ""
            on = v.places.names(found.first.devices) if found.first.devices else "all GPUs"
            yield bad(found.again, f"the {found.size} operators from {found.first.id}{upto} are drawn again"
                      f" ({found.times} times on {on})", _DRAW_ONCE)  # fmt: skip
    for n in v.nodes.values():
        if n.repeats is None and _stands_for(n.operator)[1] and not re.search(r"\d", n.operator):
            yield bad(n, "leaves layers out without their number", "draw the layer once and write × n")
            return
    if not _states_repetition(v):
        stated = v.graph.attrs.get("num_hidden_layers", "")
        if stated == "1":
            return
        if len({index for _, index in per_layer}) == 1 and num_layers(v) in (None, 1):
            raise NotDecidable("one layer is drawn, and nothing says that the model has more")
        if not per_layer and not any(ANY_LAYER.search(n.module) for n in v.nodes.values()):
            raise NotDecidable("no layer is recognisable and no repetition is stated")
        yield Violation(
            message="no number of repetitions anywhere",
            line=v.graph.line,
            fix='label the repeated layer "layers 0-79 · × 80"',
        )


_DRAW_ONCE = "draw the layer once and write × n"


_PerLayer = dict[tuple[frozenset[int] | None, int], Counter[str]]
_Again = tuple[frozenset[int] | None, int, int]
"""(devices, layer, the layer that it equals)"""


def _in_order(per_layer: _PerLayer) -> list[tuple[tuple[frozenset[int] | None, int], Counter[str]]]:
    return sorted(per_layer.items(), key=lambda kv: (kv[0][1], sorted(kv[0][0] or ())))


def _equal_layers(per_layer: _PerLayer) -> Iterator[_Again]:
    """Layers that are drawn again on the same devices."""
    alike: dict[tuple[frozenset[int] | None, frozenset[tuple[str, int]]], int] = {}
    for (devices, index), ops in _in_order(per_layer):
        before = alike.setdefault((devices, frozenset(ops.items())), index)
        if before != index:
            yield devices, index, before


def _equal_neighbours(per_layer: _PerLayer) -> Iterator[_Again]:
    """Layers that equal the one before on every device of both. Runs of an interleaved pipeline are apart in time, and of
    two layers that differ in attention only, the expert devices show the same: neither can be drawn once."""
    whole: dict[int, dict[frozenset[int] | None, Counter[str]]] = defaultdict(dict)
    for (devices, index), ops in _in_order(per_layer):
        whole[index][devices] = ops
    for index, drawn in whole.items():
        if whole.get(index - 1) == drawn:
            yield next(iter(drawn)), index, index - 1


def _layer_index(n: NodeFacts) -> int | None:
    if len(n.layers) > 1 and "layer_indices" not in n.attrs:
        return None
    if n.layers:
        return min(n.layers) if n.attrs.get("repeats", "1") == "1" else None
    for text in (n.module or n.id, n.operator):
        if span := _index_of_layer(text):
            return int(text[span[0] : span[1]])
    return None


@by_form
def _index_of_layer(text: str) -> tuple[int, int] | None:
    m = LAYER_INDEX.search(text)
    return m.span(m.lastindex or 0) if m else None


def _without_index(text: str) -> str:
    return re.sub(r"\d+", "#", LAYER_INDEX.sub(" ", words(text)))


def _states_repetition(v: View) -> bool:
    texts = [plain(c.attrs.get("label", "")) for c in v.graph.clusters.values()]
    if any("repeats" in c.attrs for c in v.graph.clusters.values()) or any(
        n.layers and "repeats" in n.attrs for n in v.nodes.values()
    ):
        return True
    texts += [plain(v.graph.attrs.get("label", "")), *(n.text for n in v.nodes.values())]
    return any(repeats_in(t) is not None or _counts_layers(t) for t in texts)


_LAYERS = re.compile(r"\b\d+\s*(?:more\s*)?(?:identical\s*)?layers\b|layers?\s*\d+\s*(?:-|–|to)\s*\d+", re.IGNORECASE)


@by_form
def _counts_layers(text: str) -> bool:
    return _LAYERS.search(text) is not None


@rule("R19", "the repetitions add up to num_hidden_layers, per stage and in total")
def layer_sum(v: View) -> Iterator[Violation]:
    total = num_layers(v)
    owners: dict[int, frozenset[int]] = {}
    seen = False
    for devices, layers, times, n in _layer_claims(v):
        seen = True
        if layers and times != len(layers):
            yield bad(
                n,
                f"repeats {times} times but stands for {len(layers)} layers",
                "make the count and the layer range agree",
            )
        for i in layers:
            owners[i] = owners.get(i, frozenset()) | devices
    if not seen and total is not None and (counts := _lane_counts(v)):
        if not _can_add_up(counts, total):
            yield Violation(
                message=f"the stages repeat {' + '.join(map(str, counts[:12]))} layers, the model has {total}",
                line=v.graph.line,
                fix="correct the repetitions",
            )
        return
    if not seen:
        raise NotDecidable("no layer range or repetition is stated")
    if total is None:
        total = max(owners, default=-1) + 1
        if not owners:
            raise NotDecidable("the number of layers is not stated (graph attribute num_hidden_layers)")
    missing = sorted(set(range(total)) - owners.keys())
    extra = sorted(owners.keys() - set(range(total)))
    if missing or extra:
        what = f"layers {missing[:8]} are missing" if missing else f"layers {extra[:8]} do not exist"
        yield Violation(
            message=f"{len(owners)} of {total} layers are drawn: {what}",
            line=v.graph.line,
            fix="correct the repetitions and layer ranges",
        )
    yield from _uneven_stages(v)


def _lane_counts(v: View) -> list[int]:
    """Layers that each cluster says it repeats, without saying which ones."""
    out: dict[str, int] = {}
    for n in v.nodes.values():
        for cluster, times, _ in cluster_repeats(v, n.cluster) if n.kind == "compute" else ():
            if LAYER_WORD.search(plain(v.graph.clusters[cluster].attrs.get("label", ""))):
                out[cluster] = times
            break
    return list(out.values())


LAYER_WORD = re.compile(r"\blayers?\b|\bblocks?\b|层", re.IGNORECASE)


def _can_add_up(counts: list[int], total: int) -> bool:
    """Lanes of one stage repeat the same layers, so some of the counts, not all, have to give the total."""
    sums = 1
    for k in counts:
        sums |= sums << k if k <= total else 0
    return bool(sums >> total & 1)


def _layer_claims(v: View) -> Iterator[tuple[frozenset[int], frozenset[int], int, NodeFacts]]:
    """(devices, layers, repetitions, node) once per node that belongs to layers."""
    for n in v.nodes.values():
        if n.kind != "compute":
            continue
        devices = n.devices or frozenset()
        if n.layers and ("repeats" in n.attrs or (len(n.layers) > 1 and n.repeats is not None)):
            yield devices, n.layers, n.repeats or 1, n
            continue
        index = _layer_index(n)
        if index is not None and n.repeats is None and num_layers(v) and not any(cluster_repeats(v, n.cluster)):
            yield devices, frozenset({index}), 1, n
            continue
        for _, times, layers in cluster_repeats(v, n.cluster):
            if layers or len(n.layers) > 1:
                yield devices, layers or n.layers, times, n
                break
        else:
            if len(n.layers) > 1:
                yield devices, n.layers, len(n.layers), n


def _uneven_stages(v: View) -> Iterator[Violation]:
    """A device that lacks an operator which the others of its stage have."""
    steps: dict[tuple[str, str], list[NodeFacts]] = defaultdict(list)
    for n in v.nodes.values():
        if n.kind == "compute" and n.layers and n.devices and n.module:
            steps[(n.module, _without_index(n.operator))].append(n)
    lanes: dict[str, frozenset[int]] = {}
    for c in v.graph.clusters.values():
        if c.attrs.get("layer_indices") and c.parent and (gpu := v.graph.clusters[c.parent].attrs.get("gpu")):
            span = c.attrs["layer_indices"]
            lanes[span] = lanes.get(span, frozenset()) | index_set(gpu)
    groups = [index_set(x.split(":")[-1]) for x in v.graph.attrs.get("device_groups", "").split(";") if x]
    for nodes in steps.values():
        key = next((k for k in lanes if nodes[0].layers <= index_set(k)), None)
        have = frozenset().union(*(n.devices or frozenset() for n in nodes))
        expected = lanes.get(key or "", frozenset())
        if groups:  # of several device groups, those that run it at all
            expected = frozenset(g for group in groups if group & have for g in group & expected)
        if key and expected - have:
            gone = ",".join(map(str, sorted(expected - have)))
            yield bad(
                nodes[0], f"is missing on GPU {gone}", "every device of the stage runs every operator of its layers"
            )


@rule("R20", "each node carries its module path")
def modules(v: View) -> Iterator[Violation]:
    some_nodes(v)
    judged = [n for n in v.nodes.values() if n.kind != "io"]
    if absent(v, MODULE, judged):
        # The file has no such convention: one thing to tell, not one per node.
        yield Violation(
            message=f"none of the {len(judged)} nodes carries a module path",
            line=v.graph.line,
            fix="write it on the second line of every label, e.g. model.layers.0-79.self_attn.q_proj",
        )
        return
    for n in lacking(v, MODULE, judged):
        yield bad(n, "no module path", "write it on the second line, e.g. model.layers.0-79.self_attn.q_proj")
