"""Shapes and workloads as papers state them: "32 heads × 128", "top-6", "序列长度 4096", table cells, English or Chinese."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from agent.reading.paper_text import NUMBER, Passage, whole
from tools.spec.base import ToolError
from tools.spec.conditions import Evidence

_IS = (
    r"\s*(?:(?:is|are|was|fixed|set|equal|equals|为|是|取|设为|固定为)\s*)*(?:at|to|of|with)?\s*[=:：]?\s*(?:about\s*)?"
)
_N = rf"(?P<n>{NUMBER})"
_M = rf"(?P<m>{NUMBER})"
_DEV = r"(?:GPUs?|NPUs?|devices?|cards?|ranks?|accelerators?|stages?|nodes?|卡|设备|阶段|节点)"
_SIZE = r"(?:[ _]?(?:layer[ _])?(?:sizes?|dim(?:ension)?s?|width|units))"
_INNER = r"(?:(?:inner|hidden|intermediate|FFN|MLP|feed[- ]?forward|SwiGLU|GELU|gated|network)[- ]?)*(?:width|size|dim(?:ension)?|MLP|FFN|hidden|inner|中间(?:维度|层)?|隐藏(?:维度|层)?|宽度)"
_ZH_SIZE = r"(?:层)?(?:的)?(?:维度|大小|宽度|维数|维)"


@dataclass(frozen=True, slots=True)
class Pattern:
    """`n` is `name`'s value, `m` (if there) that of `second`; `value` stands where no number is written."""

    name: str
    regex: str
    second: str = ""
    value: int | None = None
    binary: bool = True


# Narrow before wide: what a pattern matched is blanked before the next one looks.
PATTERNS: tuple[Pattern, ...] = (
    Pattern("", rf"{_N}[ -]?(?:consecutive |contiguous |transformer )*layers? (?:per|on each|in each|for each|to each|on every)\s*{_DEV}"),
    Pattern("", rf"每(?:个|张|块)?(?:{_DEV})(?:放置|承载|持有|负责|处理)?\s*(?P<n>{NUMBER})\s*(?:个)?(?:连续)?层"),
    Pattern("", rf"(?P<n>{NUMBER})\s+(?:routed )?experts? (?:per|on each|on every|in each)\s*{_DEV}|(?:one|a single) expert (?:per|on each|on every)\s*{_DEV}"),
    Pattern("", rf"(?:holds?|hosts?|owns?|stores?|keeps?)\s+(?:exactly |only )?(?P<n>{NUMBER})\s+(?:whole |complete |routed )?experts?\b"),
    Pattern("", rf"每(?:个|张|块)?(?:{_DEV})[^,，。;；\d]{{0,8}}(?P<n>{NUMBER})\s*个专家"),
    Pattern("first_dense", rf"(?:the )?first\s+(?P<n>{NUMBER})(?:\s+layers?| of them|(?=\s+(?:is|are|being)))(?: is| are| being| use| remain)*\s*(?:a )?dense|前\s*(?P<n1>{NUMBER})\s*层(?:为|是|采用|使用)?\s*(?:稠密|dense)"),
    Pattern("first_dense", r"(?:the )?(?:first layer|layer (?:1|0|one))(?: is| being| uses| remains)*\s*(?:a )?dense|(?:第一层|首层)(?:为|是|采用|使用)?\s*(?:稠密|dense)", value=1),
    Pattern("first_dense", rf"{_N}\s+(?:leading )?dense (?:first )?layers? (?:first|at the (?:start|beginning)|followed)"),
    Pattern("moe_step", r"(?:every|each) (?:other|second) (?:FFN |MLP )?layer|alternat\w+ (?:dense|MoE)[^.]{0,20}layers?|每隔一层", value=2),
    Pattern("shared", r"(?:no|without(?: an?| any)?|zero) shared experts?|(?:无|没有|不含)共享专家", value=0),
    Pattern("shared", rf"{_N}\s+shared experts?[^.;,\d]{{0,40}}?(?:(?:hidden|intermediate|inner|FFN|MLP)?{_SIZE}|\b(?:FFN|MLP)){_IS}(?P<m>{NUMBER})(?:\s*each)?", second="shared_width"),
    Pattern("shared", rf"{_N}\s*个共享专家[^。;；\d]{{0,14}}(?:隐藏|中间)?{_ZH_SIZE}{_IS}(?P<m>{NUMBER})", second="shared_width"),
    Pattern("shared", rf"shared experts?\s*[:=]\s*{_N}\s*[,(（]\s*[^.;\d]{{0,30}}?{_SIZE}{_IS}(?P<m>{NUMBER})", second="shared_width"),
    Pattern("shared_width", rf"shared[ _]expert(?:s|'s)?[ _](?:FFN |MLP )?(?:hidden|intermediate|inner|FFN|MLP)?{_SIZE}?{_IS}{_N}|共享专家(?:的)?(?:隐藏|中间){_ZH_SIZE}{_IS}(?P<n1>{NUMBER})"),
    Pattern("shared", rf"{_N}\s+shared experts?|shared[ _]experts?{_IS}(?P<n1>{NUMBER})|(?P<n2>{NUMBER})\s*个共享专家|共享专家(?:数)?{_IS}(?P<n3>{NUMBER})"),
    Pattern("experts", rf"{_N}\s*(?:个)?(?:\w+ )?(?:routed |local |MoE |FFN )?(?:experts?|专家)\s*(?:[(（][^)）]{{0,30}}[)）]\s*)?[,，]?\s*(?:each |per layer |in total )*(?:of|with|having|at|whose|,?\s*each with|每个)\s*(?:an? )?{_INNER}{_IS}(?P<m>{NUMBER})(?!\s*[(（]?\s*(?:layers|heads))", second="expert_width"),
    Pattern("experts", rf"{_N}\s*(?:个)?(?:routed |local )?(?:experts?|专家)\s*[(（][^)）\d]{{0,40}}?{_INNER}{_IS}(?P<m>{NUMBER})", second="expert_width"),
    Pattern("expert_width", rf"{_N}\s+experts?[ -](?:hidden|intermediate|inner|FFN|MLP)(?:{_SIZE})?\b"),
    Pattern("expert_width", rf"(?:an? |each |every |the |one )experts?\b[^.;,。；，\d]{{0,40}}?(?:whose|with|has|have|of)\s[^.;,。；，\d]{{0,20}}?{_INNER}{_IS}{_N}|experts?[ _](?:width|size|dim(?:ension)?){_IS}(?P<n1>{NUMBER})|(?:each|every|each one|all)\s+(?:with|of|having)\s+(?:an? )?{_INNER}{_IS}(?P<n2>{NUMBER})|专家(?:的)?(?:宽度|大小|维度){_IS}(?P<n3>{NUMBER})"),
    Pattern("expert_width", rf"experts?(?:'s?)?[ _](?:MLP |FFN )?(?:hidden|intermediate|inner|FFN|MLP)(?:[ _]hidden|[ _]intermediate)?{_SIZE}?{_IS}{_N}|(?:hidden|intermediate|inner|FFN){_SIZE} (?:of|per|in) (?:each |the |an |every )?(?:(?:routed )?experts?|MoE)(?: MLPs?| FFNs?)?{_IS}(?P<n1>{NUMBER})"
            rf"|experts?(?: MLPs?| FFNs?)? (?:of|with|having)(?: an?)? (?:hidden|intermediate|inner){_SIZE}{_IS}(?P<n2>{NUMBER})|(?:moe_intermediate_size|d_expert|d[_ ]?ff \(?(?:per |of )?experts?\)?|moe intermediate(?: size)?){_IS}(?P<n3>{NUMBER})"
            rf"|(?:每个)?专家(?:网络|的)*(?:隐藏|中间)(?:{_ZH_SIZE})?{_IS}(?P<n4>{NUMBER})"),
    Pattern("top_k", rf"(?:activat\w+|select\w*|choos\w+|rout\w+ (?:each token )?to|uses?|激活|选择|路由到?|选)\s*(?:the )?(?:top[- ]?)?(?P<n>{NUMBER})\s*(?:of|out of|/)\s*(?P<m>{NUMBER})\s*(?:routed )?experts?", second="experts"),
    Pattern("top_k", rf"{_N}\s+(?:of (?:which|them|these) )?(?:are |is |being )?(?:active|activated|used|selected|chosen|fire|consulted)(?: experts?)?(?: (?:per|for (?:a|an|each|every|any|one)|at (?:a|each)) tok\w*|\b)|(?:其中|每次|每个词元)\s*(?:激活|选择|选)\s*(?P<n1>{NUMBER})"),
    Pattern("top_k", rf"(?P<n>{NUMBER})\s*(?:of|out of)\s*(?P<m>{NUMBER})\s*(?:routed )?experts?", second="experts"),
    Pattern("top_k", rf"top[- ]?k\b[^.;\d]{{0,20}}?(?<![A-Za-z])k\s*=\s*(?P<na>\d+)|top[- ]?(?P<n>\d+)\b|top[- ]?k{_IS}(?P<n1>{NUMBER})|(?P<n2>{NUMBER})\s+(?:active|activated|selected|chosen) (?:routed )?experts?|experts? per tok(?:en)?{_IS}(?P<n3>{NUMBER})|(?P<n4>{NUMBER})\s+experts? per tok(?:en)?"
            rf"|(?:激活|选择|路由到?|选)\s*(?P<n5>{NUMBER})\s*个(?:路由)?专家|每(?:个)?\s*(?:token|词元)\s*(?:激活|选择|路由到?)(?:专家)?(?:数)?{_IS}(?P<n6>{NUMBER})|(?:active|activated) experts?{_IS}(?P<n7>{NUMBER})|激活\s*(?P<n8>{NUMBER})\s*个(?=[，。；,;]|$)"),
    Pattern("experts", rf"{_N}(?:\s+|-(?=experts?\b))(?:\w+ )?(?:routed |local |MoE |FFN )?experts?\b|(?:number of |num_)?(?:routed |local )?experts?(?: per (?:MoE )?layer)?{_IS}(?P<n1>{NUMBER})(?!\s*(?:layers?|{_DEV}))|(?P<n2>{NUMBER})\s*个?(?:路由)?专家|专家(?:数|个数|数量)?{_IS}(?P<n3>{NUMBER})|(?<![A-Za-z])E\s*=\s*(?P<n4>\d+)"),
    Pattern("intermediate_size", rf"(?:hidden|inner|intermediate){_SIZE} of (?:the |each )?(?:dense )?(?:MLPs?|FFNs?|feed[- ]?forward(?: networks?| layers?)?){_IS}{_N}|(?:MLPs?|FFNs?|feed[- ]?forward)(?: networks?| layers?)?(?:'s)?[ _]?(?:hidden|intermediate|inner)?{_SIZE}?(?: \(?d_?ff\)?)?{_IS}(?P<n1>{NUMBER})(?!\s*(?:layers?|matri))"
            rf"|intermediate{_SIZE}?{_IS}(?P<n2>{NUMBER})|(?<!\w)d[_ ]?ff{_IS}(?P<n3>{NUMBER})|(?:MLP|FFN|前馈)(?:网络|层|的)*\s*(?:隐藏|中间)?(?:{_ZH_SIZE})?{_IS}(?P<n4>{NUMBER})|中间{_ZH_SIZE}{_IS}(?P<n5>{NUMBER})|ffn_hidden_size{_IS}(?P<n6>{NUMBER})|(?:MLPs?|FFNs?|feed[- ]?forward)(?: networks?| layers?)?(?: is gated| is not gated)?(?: ?\([^)]{{1,20}}\))?,? (?:of|with)(?: an?)? (?:inner |hidden |intermediate )?width {_IS}(?P<n8>{NUMBER})|(?P<n7>{NUMBER})[- ](?:wide |dim(?:ensional)? )?(?:FFN|MLP|feed[- ]?forward|intermediate|inner)(?! (?:layers?|blocks?))"),
    Pattern("intermediate_size", rf"{_N}\s+(?:MLP|FFN|feed[- ]?forward)[ -](?:hidden|intermediate|inner|width|{_SIZE})"),
    Pattern("heads", rf"{_N}\s*[×x]\s*(?P<m>\d[\d,]*)\s*(?:MHA|attention|self-attention)?\s*heads?\b", second="head_dim"),
    Pattern("head_dim", rf"{_N}[- ]?(?:head[ -]{_SIZE.strip()}|dim(?:ension)?s?\s*(?:/|per|for each|in each|of each)\s*heads?)\b|dim(?:ension)?s?\s*(?:/|per)\s*heads?{_IS}(?P<n1>{NUMBER})"),
    Pattern("hidden_size", rf"{_N}\s+(?:token|model|embedding|hidden|residual)[ -](?:sizes?|dim(?:ension)?s?|width)\b"),
    Pattern("kv_heads", rf"{_N}\s*(?:KV|key[-/ ]?value)[ -](?:heads?|groups?)|(?:number of |num_)?(?:KV|key[-/_ ]?value)[ _-](?:heads?|groups?){_IS}(?P<n1>{NUMBER})|(?:GQA|grouped[- ]query attention)[^.;,\d]{{0,20}}(?P<n2>{NUMBER})\s*(?:groups?|KV)?|(?P<n3>{NUMBER})\s*个?\s*KV\s*头|KV\s*头(?:数)?{_IS}(?P<n4>{NUMBER})|(?P<n5>{NUMBER})\s*query groups|(?:heads?|头)\s*[(（]\s*(?:of which |including |GQA,? )?(?P<n6>{NUMBER})\s*(?:for )?(?:KV|key)"),
    Pattern("kv_heads", rf"(?:heads?|头)\s*[,，(（]?\s*(?P<n>{NUMBER}) (?:of (?:them|which|these) )(?:are |being |serve as )?(?:for )?(?:KV|key)"),
    Pattern("kv_heads", r"\bMQA\b|multi[- ]query attention|多查询注意力", value=1),
    Pattern("heads", rf"{_N}\s*(?:self[- ])?(?:attention |query |MHA |Q )?heads?\s*(?:[×x*]|of|at)\s*(?:width |size |dim(?:ension)? |d_?k )?(?:=\s*)?(?P<m>\d[\d,]*)|(?P<n1>{NUMBER})\s*个?\s*(?:注意力|查询)?头\s*[×x*]\s*(?P<m1>\d[\d,]*)", second="head_dim"),
    Pattern("heads", rf"{_N}\s*(?:self[- ])?(?:attention |query |MHA |Q )?heads?\b[^.;\d]{{0,30}}?(?:dim(?:ension)?s?|size|width|d_?k|d_?h)(?: of (?:each|every) heads?)?{_IS}(?P<m>{NUMBER})|(?P<n1>{NUMBER})\s*个?\s*(?:注意力|查询)?头[^。；;\d]{{0,12}}?(?:维度|维数|维|d_?k){_IS}(?P<m1>{NUMBER})", second="head_dim"),
    Pattern("heads", rf"(?:number of )?(?:attention |query |MHA )?heads?{_IS}(?P<n>{NUMBER})[^.;\d]{{0,40}}?(?:dim(?:ension)?|size|d_?k)(?: (?:of|per) (?:each |every )?heads?)?{_IS}(?P<m>{NUMBER})", second="head_dim"),
    Pattern("head_dim", rf"(?:head[ _-](?:dim(?:ension)?|size)|dim(?:ension)? (?:of|per) (?:each |every )?(?:attention )?heads?|per[- ]head dim(?:ension)?|(?<!\w)d[_ ]?k|(?<!\w)d[_ ]?(?:head|h)){_IS}{_N}|每(?:个)?(?:注意力)?头(?:的)?(?:维度|维数|维){_IS}(?P<n1>{NUMBER})|头维度{_IS}(?P<n2>{NUMBER})"),
    Pattern("heads", rf"{_N}\s*(?:self[- ])?(?:attention |query |MHA |Q )?heads?\b(?![- ](?:groups?|partitions?|splits?))|(?:number of |num_)?(?:attention[ _]|query[ _])?heads?{_IS}(?P<n1>{NUMBER})|(?P<n2>{NUMBER})\s*个?\s*(?:注意力|查询)?头(?![部条])|(?:注意力|查询)?头(?:数|的数量)?{_IS}(?P<n3>{NUMBER})"),
    Pattern("vocab_size", rf"vocab(?:ulary)?(?:[ _]size)?\s*(?:has|have|holds|counts)?{_IS}{_N}|(?P<n1>{NUMBER})[- ]?(?:token |word |entry )?vocab(?:ulary)?|词(?:汇)?表(?:的)?(?:大小|规模)?{_IS}(?P<n2>{NUMBER})|(?P<n3>{NUMBER}) (?:tokens|entries|words) in the vocab(?:ulary)?", binary=False),
    Pattern("layers", rf"{_N}[ -]?(?:transformer |decoder |hidden |identical |dense |MoE |self-attention |attention )*(?:layers?|blocks)\b(?! (?:per|in (?:each|the first)|on each))|(?:number of |num_)?(?:hidden[ _]|transformer |decoder )?layers?{_IS}(?P<n1>{NUMBER})|(?<![\w.])(?P<n2>\d+) ?L\b|(?<![A-Za-z])L\s*=\s*(?P<n3>\d{{1,3}})(?![,.]?\d|\s?[kK])|(?<![前第])(?P<n4>{NUMBER})\s*层(?!的维)|层数{_IS}(?P<n5>{NUMBER})|depth{_IS}(?P<n6>{NUMBER})"),
    Pattern("hidden_size", rf"(?:dim(?:ension)? of (?:each|every) token|hidden|d[_ ]model|(?:model|embedding|embed|token|residual)(?=[ _](?:size|dim|width))){_SIZE}?(?: \(?d_?model\)?)?{_IS}{_N}|(?<![A-Za-z])[hHdD]\s*=\s*(?P<n1>\d{{3,}})|(?P<n4>{NUMBER})[- ](?:dim(?:ensional)? )?hidden(?! layers?)|(?:residual |model |network )?width{_IS}(?P<n5>{NUMBER})|(?P<n6>{NUMBER})[- ](?:wide|dimensional)\b|隐藏(?:状态)?(?:{_ZH_SIZE})?{_IS}(?P<n2>{NUMBER})|(?:模型|token|嵌入|词元)\s*(?:的)?(?:维度|宽度|维){_IS}(?P<n3>{NUMBER})"),
)  # fmt: skip

WORKLOAD: tuple[Pattern, ...] = (
    Pattern("", rf"vocab(?:ulary)?[^.;,\d]{{0,20}}{NUMBER}(?:\s*(?:tokens|entries|words))?|{NUMBER}[- ]?(?:token |word |entry )?vocab(?:ulary)?|词(?:汇)?表[^。；，\d]{{0,8}}{NUMBER}"),
    Pattern("", r"batch[_ ]size\s*/\s*\w+|seq[_ ]len\s*/\s*\w+|micro[- ]?batch(?:es)?(?:[ _]size)?\s*(?:of|=|:)?\s*\d*"),
    Pattern("", rf"tokens (?:per|in (?:a|each|one)|of (?:a|each)) batch{_IS}{NUMBER}(?:\s*tokens)?|[=≈]\s*{NUMBER}(?:\.\d+)?\s?[KM]?\s*tokens"),
    Pattern("batch_size", rf"{_N}\s*(?:sequences?|requests?|prompts?|samples?)\s*(?:[×x*]|,?\s*(?:each\s)?(?:of|with))\s*{_M}\s*tokens(?! (?:are|is) generated)", second="seq_len"),
    Pattern("batch_tokens", rf"batch(?:[ _-]?size)?s?{_IS}{_N}\s*tokens\b(?!\s*(?:per|each|in each) (?:sequence|request|prompt|sample))"),
    Pattern("batch_size", r"(?:served|processed|handled|run) (?:one by one|one at a time|one after (?:the other|another))|逐条(?:处理|服务)", value=1),
    Pattern("batch_size", rf"(?:global |inference |total |decode )?batch(?:[ _-]?size)?s?{_IS}{_N}|batch(?:es)? (?:of|consists? of|contains?|holds?|has) (?P<n1>{NUMBER})|批(?:量|次|处理)?(?:的)?(?:大小)?{_IS}(?P<n2>{NUMBER})|(?P<n3>{NUMBER}) (?:concurrent )?(?:sequences|requests|prompts) (?:at a time|per batch|in (?:a|each|one) batch|in parallel)|(?<![A-Za-z])B\s*=\s*(?P<n4>\d+)|(?P<n5>{NUMBER}) (?:concurrent |simultaneous |independent )?(?:requests?|prompts?|sequences?|samples?)(?= (?:are batched|at once|are (?:processed|served|run) together|of (?:length )?\d|in flight|with \d|form a batch))|(?P<n6>{NUMBER})\s*(?:个|条)(?:并发)?(?:请求|序列|提示|样本)|(?P<n7>{NUMBER}|one|a single) (?:sequence|prompt|request)s?(?= at a time|$|\s*[.;])|(?:requests|sequences|prompts) per batch{_IS}(?P<n8>{NUMBER})"),
    Pattern("seq_len", rf"(?:inputs?|prompts?|ISL|输入)(?: (?:tokens|length))?\s*(?:/|,|and|与|和|、)\s*(?:outputs?|answers?|OSL|输出)(?: (?:tokens|lengths?))?[^\d.;。]{{0,14}}{_N}(?: tokens)?\s*(?:/|,|and|与|和|、)\s*{_M}", second="output_len"),
    Pattern("seq_len", rf"\b(?:inputs?|prompts?|requests?|lengths?)\s*:\s*{_N}(?!,?\d)(?=\s*(?:,|and|or|tokens)[^.;]{{0,40}}\btokens)"),
    Pattern("seq_len", rf"\bprompts? (?:are|average|of)(?: about)? {_N} tokens\s*[;,]\s*(?:answers?|outputs?|replies|responses)(?: (?:are|average|of)(?: about)?)? {_M}", second="output_len"),
    Pattern("seq_len", rf"(?<=[;,]\s)\s*{_N}\s+tokens(?=\s*(?:[.;,]|$))"),
    Pattern("seq_len", rf"{_N}(?:-token)? (?:input|prompt)s?(?: tokens)?\s*(?:/|,|and|\+)\s*{_M}(?:-token)? (?:output|generated|answer)s?(?: tokens)?", second="output_len"),
    Pattern("output_len", rf"(?:output|generation|generated|response|decode)[ _](?:seq(?:uence)? )?(?:len(?:gth)?s?|tokens){_IS}{_N}|(?:generat\w+|decod\w+|produc\w+|outputs?)\s+(?P<n1>{NUMBER})(?: (?:new|output))? tokens|(?P<n2>{NUMBER}) (?:output|generated|new) tokens(?! (?:per|in each|of each) (?:request|prompt|turn|sequence))|(?P<n5>{NUMBER}) tokens (?:(?:are|is|being) )?(?:generated|decoded|produced)|(?:输出|生成)(?:序列)?长度{_IS}(?P<n3>{NUMBER})|(?:生成|输出)\s*(?P<n4>{NUMBER})\s*个?\s*(?:token|词元)"),
    Pattern("seq_len", rf"(?:(?:input |prompt )?(?:seq(?:uence)?s?|context|prompts?|inputs?|prefill)[ _-]?(?:len(?:gth)?s?)|seq(?:uence)?|(?:maximum |max )(?:context|sequence)){_IS}(?:up to )?{_N}|(?P<n1>{NUMBER})[- ](?:tokens? )(?:prompts?|sequences?|contexts?|inputs?)|(?:prompts?|sequences|contexts?|inputs) of (?:length )?(?P<n2>{NUMBER})|(?:(?:输入|最大)?序列|上下文|输入|提示(?:词)?|prompt)\s*(?:的)?长度{_IS}(?P<n3>{NUMBER})|(?P<n4>{NUMBER})[- ](?:context|token)\b(?! (?:dim|embedding|size|width|vocab))|(?P<n8>{NUMBER}) (?:new |input |prompt )?tokens (?:per|each|in each|for each|in every) (?:sequence|prompt|request|sample)|(?:sequences|prompts|requests|samples) (?:have|has|contain|hold|with) (?P<n9>{NUMBER}) tokens|(?<![A-Za-z])S\s*=\s*(?P<n5>\d{{2,}})|每(?:个|条)序列\s*(?P<n6>{NUMBER})\s*个?\s*token|(?:input|prompt) tokens{_IS}(?P<n7>{NUMBER})|(?P<na>{NUMBER}) (?:input|prompt|context) tokens|(?:prompts?|sequences?|inputs?|requests?|contexts?|samples?) (?:have|has|contain|of|with|are|is|from|in|between)\s*(?:length )?[{{(\[]?\s*(?P<nb>{NUMBER})(?! (?:layers|heads|devices|GPUs))|context{_IS}(?P<nc>{NUMBER})|(?<![\d.,])(?P<nd>\d[\d,]*\s?[kK]|\d{{3}}[\d,]*)[- ]tokens?\b(?! (?:slices?|chunks?|segments?|budget|dim|embedding|size|width|vocab))|(?<!输出)(?<!生成)(?<!片)(?<!块)长度(?:分(?:为|别为)?|有|包括)?{_IS}(?P<nf>{NUMBER})|(?:输入|提示|上下文)(?:为|是|约)?\s*(?P<ne>{NUMBER})\s*(?:个)?\s*(?:token|词元)"),
)  # fmt: skip

FEATURES: tuple[tuple[str, object, str], ...] = (
    ("gated", True, r"swi ?glu|ge ?glu|re ?glu|gated (?:MLP|FFN|feed|experts?)|three[- ]matri\w+|three matrices|三(?:个)?矩阵|门控(?:MLP|FFN|前馈)"),
    ("gated", False, r"two[- ]matri\w+|two matrices|(?:two|2)[- ]layer (?:MLP|FFN)|(?<!not )non[- ]gated|ungated|两(?:个)?矩阵|(?<![A-Za-z])gelu|(?<![A-Za-z])relu\b"),
    ("activation", "gelu", r"(?<![A-Za-z])ge(?:lu|glu)"), ("activation", "relu", r"(?<![A-Za-z])re(?:lu|glu)\b"), ("activation", "silu", r"silu|swi(?:sh|glu)"),
    ("norm", "rmsnorm", r"rms ?norm"), ("norm", "layernorm", r"layer ?norm(?:ali[sz]ation)?|层归一化"),
    ("position", "rope", r"\bro ?pe\b|rotary|旋转位置"), ("position", "learned", r"learned (?:absolute )?position|可学习位置"), ("position", "alibi", r"alibi"),
    ("weight_dtype", "fp16", r"(?<![bB])fp ?16|(?<![bB])float16|half[- ]precision|半精度"), ("weight_dtype", "bf16", r"bf ?16|bfloat16"), ("weight_dtype", "fp8", r"fp ?8\b|float8"),
    ("weight_dtype", "fp32", r"fp ?32|float32|单精度"), ("weight_dtype", "int8", r"\bint ?8\b|w8a8"), ("weight_dtype", "int4", r"\bint ?4\b|w4a16"),
    ("tied", True, r"tied (?:input|embeddings?|word)|(?:shares?|sharing|shared) (?:input and output )?embeddings?|共享(?:词)?嵌入"),
    ("qkv_bias", True, r"(?:qkv|q, ?k,? (?:and )?v)[ -]bias"), ("qk_norm", "head", r"qk[- ]?norm|query[- ]key norm"),
    ("kind", "moe", r"\bmoe\b|mixture[- ]of[- ]experts?|混合专家"), ("kind", "dense", r"\bdense\b|fully[- ]connected|稠密"),
    ("gate", "sigmoid_topk", r"sigmoid (?:gat|rout|scor)"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """One fact: its value and the words it was read from."""

    name: str
    value: object
    evidence: Evidence
    stated_as: str


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.I)


def find_facts(passages: Iterable[Passage]) -> dict[str, Found]:
    """Shape facts and features of the passages; the first statement of each wins, except the larger of two lengths.

    `kind_of_layers` is what the passage that gives the depth calls the model: dense or a mixture of experts.
    """
    out: dict[str, Found] = {}
    for p in passages:
        own = _shape_of(p)
        if "layers" not in out and any(f.name == "layers" for f in own):
            out.update(("kind_of_layers", f) for f in own[::-1] if f.name == "kind")
        for found in own:
            out.setdefault(found.name, found)
    return out


@lru_cache(maxsize=2048)
def _shape_of(p: Passage) -> tuple[Found, ...]:
    """Every shape fact and feature of one passage."""
    return (*_numbers(p, PATTERNS), *_features(p))


@lru_cache(maxsize=2048)
def _workload_of(p: Passage) -> tuple[Found, ...]:
    return tuple(_numbers(p, WORKLOAD))


def find_workload(passages: Iterable[Passage]) -> dict[str, list[Found]]:
    """batch_size, seq_len, output_len: every value that is stated, in order."""
    out: dict[str, list[Found]] = {}
    for p in passages:
        for found in _workload_of(p):
            out.setdefault(found.name, []).append(found)
            if found.name == "seq_len":
                out[found.name] += _listed(p, found)
    return out


def _listed(p: Passage, first: Found) -> Iterator[Found]:
    """ "sequence lengths 4K, 16K and 64K": the further values of a list."""
    at = p.text.find(first.stated_as) + len(first.stated_as)
    while m := re.match(
        rf"\s*(?:,\s*and|,|，|、|and|or|和|与|或|/|以及)\s*(?P<n>\d+(?:,\d{{3}})*\s?[kK]?)(?![,.]?\d)(?!\s*(?:layers|heads|output|generated|new\b|decode|requests?|sequences|prompts|samples|tokens (?:are|is|were) (?:generated|produced)|个?输出|输出|{_DEV}|[A-Z]\d))\b",
        p.text[at:],
    ):
        try:
            yield Found("seq_len", whole(m["n"]), p.quote(at + m.start("n"), at + m.end("n")), m["n"])
        except ToolError:
            return
        at += m.end()


def _each(title: str, cell: str) -> list[tuple[str, str]]:
    """ "Experts / active: 32 / 4" is two cells, "Heads × dim: 16 × 128" too."""
    for sign in ("/", "×", "x", "*", ",", "、"):
        parts = rf"\s+{re.escape(sign)}\s+" if sign in "x*" else rf"\s*{sign}\s*"
        titles = re.split(parts, title.strip())
        cells = re.split(parts, re.sub(r"(?<=\d)\s*(?:tokens?|个?词元|个)\s*$", "", cell.strip()))
        if len(titles) == len(cells) > 1 and all(re.match(r"\d", c) for c in cells):
            return [(spelled_title(_completed(t, titles[0])), c) for t, c in zip(titles, cells, strict=True)]
    return [(spelled_title(title), cell)]


_ALONE = {"dim": "head dim", "active": "active experts", "activated": "active experts", "size": "head dim", "length": "sequence length", "len": "sequence length", "seq": "sequence length", "kv": "KV heads", "prompt": "prompt length", "input": "input length", "output": "output length", "激活": "激活专家", "维度": "头维度", "长度": "序列长度"}  # fmt: skip


def _completed(title: str, first: str) -> str:
    """What a bare word of a combined column title means."""
    return _ALONE.get(title.lower(), title) if title != first else title


_SYMBOLS = {
    "l": "layers", "nlayer": "layers", "nlayers": "layers", "d": "hidden size", "dmodel": "hidden size", "h": "heads", "nh": "heads", "nhead": "heads",
    "nheads": "heads", "hkv": "KV heads", "nkv": "KV heads", "hk": "KV heads", "dh": "head dim", "dk": "head dim", "dhead": "head dim", "dff": "MLP hidden size",
    "f": "MLP hidden size", "v": "vocabulary", "|v|": "vocabulary", "e": "experts", "ne": "experts", "k": "top-k", "dexpert": "expert hidden size", "de": "expert hidden size",
}  # fmt: skip
"""Symbols that head a table's column or row of shapes, as papers use them."""


_REMARK = re.compile(r"\s*[(（](?![^)）]*\d)(?:SwiGLU|GELU|GeGLU|ReLU|SiLU|per layer|每层)[^)）]*[)）]", re.I)
"""A remark behind a title that is no part of it."""
_ENTRY = re.compile(r"^\s*[-*]?\s*(?P<k>[A-Za-z][\w -]{1,40})\s*[:=]\s*(?P<v>\S.{0,40}?)\s*,?\s*$")


def _listing(raw: str) -> list[str]:
    """The lines of a "key: value" listing, one by one; none where the passage is prose."""
    lines = [m for line in raw.splitlines() if (m := _ENTRY.match(line))]
    return [f"{m['k'].replace('_', ' ')}: {m['v']}" for m in lines] if len(lines) > 3 else []


def spelled_title(title: str) -> str:
    """ "$d_{model}$" hidden size; anything but a known symbol as it is."""
    plain = re.sub(r"lvert|rvert", "|", re.sub(r"[\s_{}$\\]", "", title)).lower()
    return _SYMBOLS.get(plain, title)


def _numbers(p: Passage, patterns: Iterable[Pattern]) -> Iterator[Found]:
    spaced = re.sub(r"(?<=[A-Za-z]{2})_(?=[A-Za-z]{2})", " ", p.text)  # "hidden_size", "experts_per_layer"
    texts = [*(_listing(p.raw) or [spaced]), *_labelled_number(p), *p.terms.spelled(p.text)]
    if p.cells:
        texts = [f"{_REMARK.sub('', t)}: {c}" for title, cell in p.cells for t, c in _each(title, cell)]
    for original in texts:
        text = original
        for pattern in patterns:
            for m in _compiled(pattern.regex).finditer(text):
                yield from _values(p, pattern, m, whole_row=original is not spaced)
                text = text[: m.start()] + "\x00" * (m.end() - m.start()) + text[m.end() :]


_ANY_NUMBER = re.compile(rf"(?<![A-Za-z\d.,_^-])(?:{NUMBER})(?![\d.])")


def _labelled_number(p: Passage) -> list[str]:
    """ "Token dimension: each token is a vector of 1024" is "Token dimension: 1024": a label, and one number in what it says."""
    label = p.label.split(" / ")[-1]
    if not p.body or p.kind not in ("bullet", "paragraph") or re.search(r"\d", label):
        return []
    numbers = [m for m in _ANY_NUMBER.finditer(p.said) if m[0][0].isdigit()]
    if len(numbers) != 1:
        return []
    unit = re.match(r"\s*[A-Za-z]+", p.said[numbers[0].end() :])
    return [f"{label}: {numbers[0][0]}{unit[0] if unit else ''}"]


def _values(p: Passage, pattern: Pattern, m: re.Match[str], *, whole_row: bool) -> Iterator[Found]:
    if not pattern.name:
        return
    quote = p.quote() if whole_row else p.quote(m.start(), m.end())
    groups = m.groupdict()
    first = next((v for k, v in groups.items() if k[0] == "n" and v), None)
    second = next((v for k, v in groups.items() if k[0] == "m" and v), None)
    try:
        if pattern.value is not None:
            yield Found(pattern.name, pattern.value, quote, m[0].strip())
        elif first and _plausible(pattern.name, value := whole(first, binary=pattern.binary)):
            yield Found(pattern.name, value, quote, m[0].strip())
        if second and _plausible(pattern.second, value := whole(second)):
            yield Found(pattern.second, value, quote, m[0].strip())
    except ToolError:
        return


_LEAST = {"heads": 2, "hidden_size": 16, "intermediate_size": 16, "expert_width": 16, "vocab_size": 16}


def _plausible(name: str, value: int) -> bool:
    """ "One FFN per layer" is no width of one, "the attention of a single head" no number of heads."""
    return value >= _LEAST.get(name, 1 if name in ("batch_size", "seq_len", "layers") else 0)


_OF_THE_CACHE = re.compile(r"[ -]*(?:for (?:the )?)?(?:KV|key[- ]value|cache|activations?|缓存)", re.I)


def _features(p: Passage) -> Iterator[Found]:
    """Features in the order of the text; a precision of the cache or of activations is not that of the weights."""
    hits = []
    for name, value, regex in FEATURES:
        for m in _compiled(regex).finditer(p.text):
            if name != "weight_dtype" or not _OF_THE_CACHE.match(p.text, m.end()):
                hits.append(
                    (m.start() if name == "weight_dtype" else -1, Found(name, value, p.quote(m.start(), m.end()), m[0]))
                )
                break
    yield from (found for _, found in sorted(hits, key=lambda h: h[0]))


SHAPE_NAMES = frozenset(x for pattern in PATTERNS for x in (pattern.name, pattern.second) if x)
