"""What an operator's words say it is: computation, communication, routing, or the total input or output."""

from __future__ import annotations

import re
from functools import lru_cache

from tools.dag.alike import KEPT, form
from tools.dag.labels import words
from tools.dag.parse import DotNode

COMM = re.compile(
    r"all[\s_-]?reduce|all[\s_-]?gather|reduce[\s_-]?scatter|all[\s_-]?to[\s_-]?all|\ba\da\b|\bi?send\b|\bi?recv\b|\breceive\b|\bp\dp\b|\bbroadcast\b|"
    r"\bcommunication\b|\btransfer\b|\bcomm\b|ring[\s_-]?(?:exchange|shift)|\bnccl\b|\bhccl\b|通信|发送|接收|传输|广播|规约|归约|全收集|全交换",
    re.IGNORECASE,
)  # fmt: skip
ROUTING = re.compile(
    r"\bsplit(?:ter)?\b|\bslice\b|\bchunk\b|\baggregat\w*|\bconcat\w*|\bcat\b|\bdispatch\b|\bcombine\b|"
    r"\brout(?:e|er|ing)\b(?!.*(?:mat ?mul|linear|logits|scores?|weights|probs|soft ?max))|"
    r"top[\s_-]?(?:k|\d+)(?![a-z\d])|\bgate\b(?!.*(?:proj|mat ?mul|linear|softmax|sigmoid|score|mul|up))|\bscatter\b|"
    r"\bgather\b(?!.*(?:embed|lookup|rows|index))|\bpartition\b|\bmerge\b|"
    r"聚合|切分|拆分|分割|分发|汇总|合并|路由|拼接", re.IGNORECASE,
)  # fmt: skip
IO = re.compile(
    r"\b(?:total|model|final|global)[\s_-]*(?:input|output)\b|总输入|总输出|模型输入|模型输出|"
    r"^\s*(?:input|output)s?(?:\s+(?:tokens?|ids|token ids|sequences?|text|prompts?|data|batch|results?))?\s*$",
    re.IGNORECASE,
)
RECTANGLES = frozenset({"box", "rect", "rectangle", "square", "record", "mrecord"})
ELLIPSES = frozenset({"ellipse", "oval", "circle"})
ROLE_KIND = {
    "comm": "comm",
    "routing": "routing",
    "io": "io",
    "compute": "compute",
    "attention": "compute",
    "moe": "compute",
}


def kind_of(n: DotNode, operator: str, module: str) -> str:
    """What the operator's words say it is; empty where they say nothing."""
    if n.attrs.get("role") in ROLE_KIND:
        return ROLE_KIND[n.attrs["role"]]
    drawn_as_routing = n.attrs.get("shape") == "parallelogram"
    return _kind_of_words(form(operator.split("\n", 1)[0]), drawn_as_routing, _EMBEDS.search(module) is not None)


@lru_cache(maxsize=KEPT)
def _kind_of_words(operator: str, parallelogram: bool, embeds: bool) -> str:
    head = words(operator)
    head = re.split(r"\b(?:input|output)\s*[:=]", head, flags=re.IGNORECASE)[0] or head
    head = _PLACE_FIRST.sub("", head) or head
    # "Input tokens (all GPUs)": what stands in brackets at the end does not change what the node is.
    if IO.search(head) or IO.search(re.sub(r"\s*[(（][^()（）]*[)）]\s*$|\s+(?:on\s+)?all\b.*", "", head)):
        return "io"
    if COMM.search(head):
        return "comm"
    if _INSIDE_EXPERT.search(head) or (not parallelogram and _PART.search(head)):
        return "compute"
    # Only of a head that names no operator before its brackets do they tell: "Q Projection (dim slice 0)" projects.
    bare = BRACKETED.sub(" ", head)
    computes = COMPUTES.search(bare)
    if parallelogram and computes and not COMPUTES.search(THINGS.sub(" ", bare)):
        return "routing" if ROUTING.search(bare) else ""  # what it routes, not what it computes
    if ROUTING.search(bare) and ROUTING.search(head):
        return "compute" if embeds else "routing"
    if ROUTING.search(head):
        return "" if computes and parallelogram else "compute" if computes else "routing"
    return "compute" if computes or COMPUTES.search(head) else ""


_INSIDE_EXPERT = re.compile(r"\bexpert\s*#?\d+\W.*\bgate\b|\bgate\b.*\bexpert\s*#?\d", re.IGNORECASE)
"""The gated linear map of one expert; a router chooses among several."""
_PART = re.compile(
    r"\b(?:attention|attn|MHA|MLP|FFN|MoE|experts?|linear|projection)\s+(?:partition|slice|chunk)\s*#?\d*\s*\Z",
    re.IGNORECASE,
)
"""`MLP Partition 3`: a part of what computes, where it is not drawn as a split."""
_EMBEDS = re.compile(r"embed|wte")
_PLACE_FIRST = re.compile(
    r"^\s*[\[(【](?:all\s+)?(?:GPU|NPU|cuda|device|rank|card|卡|设备)s?[^\])】]*[\])】]\s*", re.IGNORECASE
)
THINGS = re.compile(
    r"\battention\b|\battn\b|\bmha\b|\b[gm]qa\b|\bmla\b|\bhead\b|\bmlp\b|\bffn\b|\bexperts?\b|\bactivation\b",
    re.IGNORECASE,
)
BRACKETED = re.compile(r"[(（][^()（）]*[)）]")
COMPUTES = re.compile(
    r"\bproj|\blinear\b|mat[\s_-]?mul|gemm|\bbmm\b|\bmm\b|soft[\s_-]?max|norm\b|normali[sz]|\badd\b|\baddition\b|"
    r"投影|线性|归一化|激活|相加|矩阵乘|采样|"
    r"\bembedding\b|gelu\b|\bsilu\b|\brelu\b|\bswi?g?lu\b|\bswish\b|\bactivation\b|\bresidual|残差|\bsampl|argmax|\brope\b|\brotary\b|\battention\b|\battn\b|\bmha\b|\b[gm]qa\b|\bmla\b|\bhead\b|"
    r"\bconv\d?d?\b|\bmlp\b|\bffn\b|\bexperts?\b",
    re.IGNORECASE,
)  # fmt: skip
RESIDUAL = re.compile(
    r"\bresidual|\bresid\b|残差|^\s*(?:element[ -]?wise\s+)?add(?:ition)?\s*\d*\s*\Z|\badd\s*(?:&|and|\+)\s*norm",
    re.IGNORECASE,
)


GATE = re.compile(
    r"top[\s_-]?(?:k|\d+)(?![a-z\d])|\bgate\b.*\bselect|\bgating\b|\brouter\b(?!.*(?:mat ?mul|linear|logits|soft ?max|proj))|"
    r"\bgate\b\s*(?:\b(?:GPU|NPU|rank|device|layer|L)[\s-]*\d+\s*)*$|"
    r"门控(?!.*(?:线性|投影|softmax))",
    re.IGNORECASE,
)
TOP_K = re.compile(r"top[\s_-]?(?:k|\d+)(?![a-z\d])", re.IGNORECASE)


__all__ = [
    "BRACKETED",
    "COMM",
    "COMPUTES",
    "ELLIPSES",
    "GATE",
    "IO",
    "RECTANGLES",
    "RESIDUAL",
    "ROUTING",
    "THINGS",
    "TOP_K",
    "kind_of",
]
