"""The words people use for each fact, English and Chinese, in one place.

A blank in a pattern stands for any run of blanks, `_` and `-`, so one pattern serves prose ("time to first token"), headings
and keys (`time_to_first_token`). ASCII edges do not match inside a longer word. Longest match wins.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Side = Literal["both", "pre", "post", "noun"]
"""noun: behind its number ("40 users"), or before it only as a label ("users: 40")."""


@dataclass(frozen=True, slots=True)
class Term:
    """`path` takes an amount of `dimension`; `side` is where the word stands relative to its number."""

    path: str
    dimension: str
    words: str
    side: Side = "both"
    transform: Literal["", "inverse", "complement"] = ""
    needs: str = ""
    """What the number has to count by its own noun ("tokens"), where the word alone says too little ("file")."""


_DEV = r"(?:gpus?|npus?|dcus?|cards?|accelerators?|devices?|dies?|加速卡|显卡|智算卡|计算卡|卡|芯片|chips?)"
_NODE = r"(?:nodes?|servers?|machines?|hosts?|vms?|box(?:es)?|workstations?|blades?|sleds?|trays?|chassis|服务器|节点|机器|主机)"
NODE_WORD = _NODE
GROUP_WORD = r"(?:racks?|cabinets?|pods?|sites?|data ?cent(?:er|re)s?|availability zones?|islands?|机柜|机架|机房|数据中心|可用区)"
"""What several nodes stand in."""
_TIME_WORD = r"(?: ?(?:latency|delay|time|slo|limit|target|budget|延迟|时延|响应时间|时间|耗时))?"
_LEN = r"(?:len(?:gth)?s?|tokens?(?: len(?:gth)?| count)?|size|长度|token ?数|token)"

# people by what they do ("adjusters", "pathologists"); things of the trade that are named alike are none
_THINGS = (
    r"layers|servers|numbers|parameters|routers|containers|clusters|orders|answers|papers|letters|headers|others|adapters|transformers|drivers|controllers|processors|accelerators|vectors|"
    r"tensors|errors|factors|registers|buffers|filters|workers|providers|constants|variants|instants|operators|characters|trainers|powers|towers|computers|chapters|quarters|meters|cent(?:er|re)s|"
    r"monitors|sensors|connectors|mirrors|doors|floors|colors|trees|fees|degrees|guarantees|plants|restaurants|assistants|retrievers|embedders|rerankers|pointers|timers|triggers|encoders|decoders|"
    r"indicators|divisors|offers|tiers|covers|posters|folders|shelters|participants|grants|identifiers|brokers|ledgers|vouchers|newsletters|matters"
)
_WHO = rf"(?!(?:{_THINGS})\b)[a-z]{{3,}}(?:ers|ors|ists|ians|ants|ees)"

TERMS: tuple[Term, ...] = (
    # ---- hardware
    Term("hardware.num_nodes", "count", rf"(?:[hd]gx )(?:boards?|systems?|boxes|servers?|nodes?|machines?)|(?:number of|num|n|total)? ?{_NODE}(?: ?(?:count|num|number|数量?|个数|台数))?|nnodes|台(?:{_NODE})?|机器数|台数|(?:(?<=[0-9一二两三四五六七八九十])|(?<=[0-9一二两三四五六七八九十] ))机(?![间内房器型制会构架箱柜])"),
    Term("hardware.num_nodes", "count", rf"(?<!-)(?<![x×]) ?(?:gpu|npu|inference|compute|worker|ai) {_NODE}"),
    Term("hardware.num_groups", "count", GROUP_WORD, side="noun"),
    Term("hardware.devices_per_node", "count",
         rf"{_DEV} ?(?:per|/|each) ?{_NODE}|(?:num|n)? ?{_DEV} per {_NODE}|每(?:台|机|个?节点|台服务器|台机器|个?服务器)(?:的)?(?:{_DEV}|gpu)(?:数量?)?"
         rf"|单机(?:{_DEV}|gpu)数量?|单(?:机|节点|(?:台)?服务器)(?:的)?卡数|nproc per node|per {_NODE} count|(?:num|number|count|数量) ?per {_NODE}|local world size|单节点 ?(?:{_DEV}|gpu)数?|{_DEV} in (?:each|a) {_NODE}|per {_NODE}(?=:)"),
    Term("hardware.device_count", "count",
         rf"(?:hardware|cluster) (?:count|size)|(?:total|number of|num|n|available|max)* ?{_DEV}(?: ?(?:count|num|number|total|数量?|总数|个数))?|world size|total {_DEV}|总卡数|卡数|[张块片颗]{_DEV}?|(?:{_DEV}|gpu)(?:数量?|总数)"),
    Term("hardware.device_count", "count", r"of (?:them|these|those|either|each|both)", side="post"),
    Term("hardware.devices_per_node", "count", r"each|apiece", side="post"),
    Term("hardware.devices_per_node", "count", rf"per {_NODE}|to (?:a|an|each|every) {_NODE}", side="post"),
    Term("hardware.memory_bytes", "bytes",
         rf"(?:gpu|video|device|card|npu|hbm|graphics|single card|per gpu|per card|accelerator|单卡|每卡|每张卡|gpu 单卡)* ?(?:video )?(?:memory|mem)(?! ?(?:bandwidth|bw|带宽))(?: (?:capacity|size|total|per {_DEV}))*"
         rf"|v ?ram(?: (?:capacity|size|per {_DEV}))?|hbm(?:\d\w?)?(?: (?:capacity|size))?|(?:单卡|每卡|每张卡)?(?:的)?显存(?:容量|大小)?|(?:单卡|卡)内存(?:容量)?"),
    Term("ignore.host_memory", "bytes",
         rf"(?:system|host|cpu|{_NODE}|main|max cpu) (?:memory|mem|ram)(?: (?:usage|size|capacity|total))?|(?:of )?(?:ddr\d? )?ram|(?:系统|主机|服务器|cpu)?内存(?!带宽)|主存|ddr\d?"),
    Term("ignore.disk", "bytes", r"disks?|ssds?|nvme|storage|hard drives?|硬盘|磁盘|存储|固态|local disk"),
    Term("hardware.memory_bandwidth", "bytes/s",
         r"(?:gpu|device|single card|单卡|每卡|npu|card)? ?(?:v ?ram|memory|mem|hbm\w*|video memory|显存|访存|内存) ?(?:bandwidth|bw|带宽)|带宽|bandwidth|bw"),
    Term("hardware.inter_node_bandwidth", "bytes/s",
         rf"(?:inter|cross|across)(?:[- ]{_NODE})?[- ]?{_NODE}(?: (?:network|link|interconnect|fabric))?(?: ?(?:bandwidth|bw|speed))?|between (?:the )?{_NODE}|network ?(?:bandwidth|bw|speed)?|(?:host|server|node) (?:up)?links?|nics?|hcas?"
         r"|infiniband|ib|roce(?: ?v2)?|ethernet|rdma|connectx(?: ?\d)?|(?:cx)[ -]?[5678]|(?:compute |cluster |inter |scale out )?fabric(?: ?(?:bandwidth|bw))?|scale out(?: (?:bandwidth|bw))?|网络(?:带宽)?|网卡(?:带宽)?|以太网"
         r"|(?:机间|节点间|跨节点|跨机|机器间|服务器间|节点之间|机器之间)(?:的)?(?:互联|互连|通信|网络)?(?:带宽)?|[hn]dr|efa"),
    Term("hardware.intra_node_bandwidth", "bytes/s",
         rf"(?:intra|within)(?:[- ](?:a |the )?)?{_NODE}(?: (?:network|link|interconnect))?(?: ?(?:bandwidth|bw|speed))?|nv ?links?(?: ?\d(?:\.0)?(?![\d.]))?(?: ?(?:bandwidth|bw|带宽))?|nv ?switch|hccs|xgmi|infinity fabric"
         rf"|scale up(?: (?:bandwidth|bw))?|(?:{_DEV}[- ]to[- ]{_DEV}|p2p|inter[- ]?(?:gpu|npu|card|device)|{_DEV} interconnect)(?: ?(?:fabric|links?|network))?(?: ?(?:bandwidth|bw))?|(?:interconnect|互联|互连)(?: ?(?:bandwidth|bw|带宽))?"
         r"|(?:机内|节点内|卡间|单机内|卡与卡之间)(?:的)?(?:互联|互连|通信)?(?:带宽)?|link (?:bandwidth|bw)|(?:card|gpu|npu|device|chip|die|accelerator)(?: to (?:card|gpu|npu|device|chip|die|accelerator))? ?(?:links?|interconnects?)(?: (?:bandwidth|bw|speed))?"),
    Term("hardware.pcie_bandwidth", "bytes/s", r"pci-?e(?: ?(?:bandwidth|bw|带宽))?"),
    Term("hardware.peak_flops", "flop/s",
         r"(?:peak |single card |gpu |device |theoretical |dense |tensor )*(?:compute|computing|processing|computational|calculation)(?: ?(?:power|performance|capacity|capability|throughput))?|(?:peak )?[tp]?flops?(?: ?per (?:gpu|card|device))?|tops|peak performance"
         r"|(?:单卡|峰值|理论|稠密|每卡)*(?:计算)?算力|(?:峰值)?(?:计算性能|浮点性能)|tensor core"),
    Term("hardware.mfu", "fraction", r"mfu(?: ?(?:utili[sz]ation|rate|利用率))?|(?:model )?flops? utili[sz]ation|(?:compute|computing|computation|算力|计算)(?: power)? ?(?:efficiency|utili[sz]ation(?: rate)?|利用率|效率)"),
    Term("hardware.mbu", "fraction", r"mbu(?: ?(?:utili[sz]ation|利用率))?|(?:(?:v ?ram|memory|mem|hbm|显存|访存) ?)?(?:bandwidth|bw|带宽) ?(?:utili[sz]ation(?: rate)?|efficiency|利用率|效率)"),
    Term("hardware.mbu", "fraction", r"(?<=% )of (?:the |its |peak |theoretical |published )*(?:(?:v ?ram|hbm|memory|mem|dram) )?(?:bandwidth|bw)|(?<=%)的(?:显存|内存|峰值)?带宽", side="post"),
    Term("hardware.mfu", "fraction", r"(?<=% )of (?:the |its |peak |theoretical |published )*(?:(?:dense )?(?:flops?|tflops|compute))|(?<=%)的(?:峰值)?算力", side="post"),
    Term("ignore.power", "power", r"power|tdp|功耗"),
    Term("ignore.price", "money/h", r"price|cost|budget|价格|成本|预算|租金|费用"),
    # ---- model
    Term("model.num_hidden_layers", "count", r"(?:num|n|number of|total)? ?(?:hidden |transformer |decoder |model )?(?:layers?|blocks)(?: (?:num|count|number))?|层(?:数)?|depth|l(?= ?= ?[0-9])"),
    Term("model.first_k_dense_replace", "count", r"first k dense replace|(?:first |leading )?dense layers|(?:前几层|稠密层)(?:数)?"),
    Term("model.hidden_size", "count",
         r"hidden (?:size|dim(?:ension)?s?|width|state size)|token dim(?:ension)?s?|(?:model|embedding|embed|residual) ?(?:dim(?:ension)?s?|size|width)|d ?model|n ?embd|dim(?:ension)?s? (?:of|per) (?:each |every |a |the )?token|every token has|each token has"
         r"|隐藏(?:层)?(?:维度|大小|维|尺寸|size)|(?:模型|嵌入|词向量|token)(?: ?的)? ?(?:维度|维)|每(?:个)? ?token(?: ?的)?(?:维度|维|有)?(?=[^/每输])|embedding dimension|hidden"),
    Term("model.hidden_size", "count", r"width", side="pre"),
    Term("model.num_attention_heads", "count",
         r"(?:num|n|number of|total)? ?(?:attention|attn|query|q|mha)? ?heads?(?: ?(?:num|count|number))?|(?:注意力|查询|q)? ?头(?:数|的数量)?|head num"),
    Term("model.num_key_value_heads", "count",
         r"(?:num|n|number of|gqa)? ?(?:kv|key[- ]?value|key/value|k/v) ?(?:heads?|groups?|头(?:数)?)(?: ?(?:num|count))?|(?:gqa|mqa)(?: (?:groups?|heads?|num groups))|num query groups|(?:kv|键值) ?头(?:数)?|(?:gqa|mqa)(?=[^A-Za-z0-9]{0,3}[0-9]+ ?kv)"),
    Term("model.num_key_value_heads", "count", r"kv(?! ?(?:cache|heads?|groups?|d ?type|precision|size|bytes|per))", side="post"),
    Term("model.head_dim", "count",
         r"(?:attention |attn |mha |q )?heads? (?:dim(?:ension)?s?|size|width)|d ?k|d head|dim(?:ension)?s?(?: ?(?:of|per|for))+ ?(?:each |every |a )?(?:attention )?head|(?:each|every|per|a) (?:attention )?heads? (?:has |have |is |with |of )*(?:a )?(?:dim(?:ension)?s?|size)(?: of)?|(?<=heads )(?:of|with|having|x|each of|,)? ?dim(?:ension)?s?|(?<=heads, )(?:each )?(?:of |with )?dim(?:ension)?s?|(?<=heads each )(?:of )?dim(?:ension)?s?|(?<=heads )[x×](?= ?[0-9])"
         r"|每(?:个)?(?:注意力)?头(?:的)?(?:维度|维数|大小)?(?:为|是)?|(?:单)?头(?:的)?维度|head ?维度|(?:each|every|per) (?:attention )?head|(?<=heads )(?:of|each)"),
    Term("model.intermediate_size", "count",
         r"(?:ffn|mlp|feed ?forward|dense)? ?(?:intermediate|inner)(?: ffn| hidden)?(?: ?(?:size|dim(?:ension)?s?|width))?|(?:ffn|mlp|feed ?forward)(?: (?:network|layer|hidden|inner|intermediate))* ?(?:size|dim(?:ension)?s?|width|维度|大小)?|d ff|n inner|(?:前馈|中间)(?:网络|层)?(?:隐藏)?(?:层)?(?:的)?(?:维度|大小|维)|hidden (?:size|dim(?:ension)?) of (?:the )?(?:ffn|mlp|feed ?forward)"),
    Term("model.moe_intermediate_size", "count",
         r"(?:moe|experts?|routed expert)(?: ffn)? ?(?:intermediate|hidden|inner|ffn)* ?(?:size|dim(?:ension)?s?|width)|hidden (?:size|dim(?:ension)?) of (?:the |each )?(?:moe|experts?)|moe ffn|experts? (?:ffn|mlp|width)|d ?experts?|(?:moe|每个专家|专家) ?(?:的)?(?:ffn)? ?(?:隐藏|中间)?(?:层)?(?:维度|大小|维|隐藏维)|intermediate (?:size|dim) (?:of|per) (?:each )?experts?"),
    Term("model.num_experts", "count", r"(?:num|n|number of|total|mixture of)? ?(?:local|routed|routing|moe)? ?experts?(?: ?(?:num|count|number))?|(?:路由)?专家(?:数|个数|数量|总数)?"),
    Term("model.n_shared_experts", "count", r"(?:num|n|number of)? ?(?:shared|always[- ]on|always[- ]active|common) experts?(?: num)?|experts? shared|共享专家(?:数|个数|数量)?"),
    Term("model.num_experts_per_tok", "count",
         r"(?:moe )?top ?k(?: ?(?:gate|gating|experts?|routing|router|选择))?|(?:num|n)? ?experts? (?:used )?per ?tok(?:en)?|(?:num|n|number of)? ?(?:active|activated|selected|chosen) experts?(?: per token)?|k experts|(?:每(?:个)? ?token ?)?(?:激活|选择|路由到?|选)(?:的)? ?(?:路由)?专家(?:数|数量)?|每(?:个)? ?token ?(?:激活|选择|路由到?|选)|激活(?=[^\d]{0,2}\d+ ?个专家)|experts (?:are )?(?:active|activated|selected|chosen)(?: per token)?|top"),
    Term("model.vocab_size", "count", r"vocab(?:ulary)? ?(?:size|大小)?|词(?:汇)?表(?:的)?(?:大小|规模)?"),
    Term("model.declared_parameters", "count",
         r"(?:num|n|number of|total|model|weight)? ?(?:parameters?|params?)(?: ?(?:count|num|size|total|b|billion))?|model (?:size|scale|weights?)|weights?|(?:模型|总)?(?:参数|权重)(?:量|规模|总量|数量?|总数)?"),
    Term("model.declared_parameters", "count", r"(?:dense |moe |language |large |llm |参数的?)*(?:model|模型|llm)", side="post"),
    Term("model.declared_active_parameters", "count", r"(?:active|activated)(?: ?(?:parameters?|params?))?|激活(?:的)?(?:参数)?(?:量)?"),
    Term("model.declared_weight_bytes", "bytes", r"(?:fp16|bf16|fp8|int8|int4)? ?(?:model )?(?:weights?|checkpoint|model size)(?: (?:size|memory|footprint))?|(?:模型)?权重(?:大小|体积|占用)?|模型(?:文件)?大小"),
    Term("model.declared_kv_bytes_per_token", "bytes", r"(?:fp16|bf16|fp8|int8)? ?kv ?(?:cache)? ?(?:size |bytes |memory )?(?:per|/) ?token(?: size)?|每(?:个)? ?token(?: ?的)? ?kv(?: ?cache)?(?:大小|占用)?"),
    Term("ignore.activation_memory", "bytes", r"(?:fp16|bf16)? ?activations?(?: memory)? (?:per token|size|memory)|激活(?:值)?(?:显存|内存)"),
    Term("model.max_position_embeddings", "count", r"max(?:imum)? position(?: embeddings?)?s?|n positions|n ctx|最大位置(?:编码)?"),
    # ---- workload
    Term("workload.batch_size", "count", r"(?:global |decode |prefill |static |inference )?batch(?:es)?(?: ?size)?|bs|批(?:次|量|处理)?(?:大小)?|(?:sequences|samples|requests) (?:in|per) (?:each |a |every )?batch|sequences|(?:条|个)序列(?!长)"),
    Term("workload.isl", "count",
         rf"isl|(?:average |avg |mean |typical )?(?:input|prompt|prefill|source|request)(?: ?(?:seq(?:uence)?|text|context))? ?{_LEN}|(?:seq(?:uence)?|context|tokens) in(?:put)?|prompts?|inputs?|输入(?:序列|文本|上下文|提示)?(?:的)? ?{_LEN}?|(?:提示词?|prompt)(?:的)? ?{_LEN}?"),
    Term("workload.isl", "count", r"in(?! (?!and|out|tokens?|/)[A-Za-z])", side="noun"),
    Term("workload.isl", "count", r"(?:sends?|submits?|uploads?|pastes?|reads|carr(?:y|ies)|contains?|comprises?|sending|submitting|uploading|pasting|carrying|drags? along|brings?(?: along)?)", side="pre", needs="tokens"),
    Term("workload.isl", "count", r"(?:提问|(?<![询访疑学顾])问(?![题答])|每(?:段|条|篇|份|封|通|单|则|件)(?:文本|数据|内容|录音|评论)?)", side="pre", needs="tokens"),
    Term("workload.osl", "count", r"(?:gets?|receives?|returns?|writes?|produces?|getting|receiving|returning|writing)(?: back)?|speaks? for|(?<!问)答(?![案复题])|产出|写出|吐出|得到", side="pre", needs="tokens"),
    Term("workload.osl", "count", r"gets? back|generates?|generating", side="pre"),
    Term("workload.osl", "count", r"(?:(?:tokens?|words?) )?(?:coming |going |sent |sending |streamed )?(?:back|in return)", side="post"),
    Term("workload.isl", "count", r"(?:每次|单次)?(?:对话|聊天|会话|历史)(?:的)?(?:历史|记录|上下文|轮次)?(?=\s*(?:约|大约|大概)?\s*\d)|(?:chat|conversation|dialog(?:ue)?) histor(?:y|ies)", side="pre"),
    Term("workload.osl", "count",
         rf"osl|(?:average |avg |mean |typical )?(?:output|generation|generated|gen|completion|response|decode|reply|answer)(?: ?(?:seq(?:uence)?|text))? ?{_LEN}|(?:seq(?:uence)?|tokens) out(?:put)?|(?:max )?(?:new|generated) tokens|(?:outputs?|completions?|responses?|repl(?:y|ies)|answers?|generations?|gen(?! ?[0-9]))|(?:输出|生成|回复|回答|答案|答复)(?:序列|文本)?(?:的)? ?{_LEN}?|out|max tokens"),
    Term("workload.isl", "count", r"(?:documents?|files?|articles?|transcripts?|contracts?|papers?|books?|reports?|messages?|tickets?|e?mails?|questions?|queries|codebases?|passages?|文档|文章|材料|合同|原文|论文|问题|报告|代码库)(?:的)?(?:长度)?", needs="tokens"),
    Term("workload.osl", "count", r"(?:summar(?:y|ies)|translations?|abstracts?|results?|摘要|总结|译文|结果)(?:的)?(?:长度)?", needs="tokens"),
    Term("workload.seq_len", "count", r"(?:max(?:imum)? |min(?:imum)? )?(?:seq(?:uence)?|text)s? ?(?:len(?:gth)?s?)(?: range)?|序列(?:的)?长度(?:范围)?|长度范围|tokens per sequence|total (?:sequence )?length|seqlen|seq"),
    Term("workload.max_context", "count", r"(?:max(?:imum)? |supported |longest )?(?:contexts?|ctx)(?: ?(?:lengths?|windows?|len|size))?|max(?:imum)? (?:model|total|seq(?:uence)?) ?(?:len(?:gth)?|tokens)|max len(?:gth)?|(?:最大|最长)?上下文(?:长度|窗口)?(?:最长|最大)?|最大(?:序列)?长度|最长序列"),
    Term("workload.concurrency", "count",
         r"(?:max(?:imum)? |target |peak |average )?(?:concurren(?:cy|t)|simultaneous|parallel|online|active|in ?flight)(?: ?(?:users?|requests?|sessions?|streams?|clients?|sequences?|level|connections?|chats?|conversations?))?|cc(?= ?[:=])|conc|在途(?:请求)?(?:数)?|(?:并发|并行)(?:请求|用户|会话)?(?:数|量|度|路数)?|(?:同时|在线)(?:在线)?(?:用户|人)?(?:数)?|用户数|num concurrent"),
    Term("workload.concurrency", "count", rf"users?|people|persons?|devs|developers?|engineers?|lawyers?|doctors?|analysts?|coders?|employees|colleagues|students?|律师|医生|员工|同事|学生|客服|坐席|开发者|clients|agents|callers|members|testers|seats|sessions|streams|chats|conversations|{_WHO}|路(?:并发)?|用户|(?<!联系)(?<!负责)(?<!经办)(?<!提交)(?<!申请)人", side="noun"),
    Term("workload.concurrency", "count",
         r"at once|at (?:a|the same|any(?: given)?|one) (?:time|moment)|simultaneously|concurrently|in parallel|in ?flight|side by side|together|of us|(?:个人?|位|名|条|路|人)?(?:一起|同时)(?:在线|使用|用|访问|请求|提问)?", side="post"),
    Term("done.active_share", "fraction", r"(?:active|busy|online|concurren\w+|simultaneous|in use)(?: users?)? (?:share|ratio|fraction|rate|percent(?:age)?)|(?:并发|在线|活跃|同时在线)(?:率|比例|占比)"),
    Term("workload.request_rate", "requests/s",
         r"qps|rps|(?:target )?(?:requests?|queries|req) ?(?:per|/) ?s(?:ec(?:ond)?)?|(?:request|arrival|query|target request)s? (?:rate|throughput)|(?:load|traffic|arrival)|(?:请求|到达)(?:速率|率|量)|每秒请求(?:数|量)?|吞吐|throughput|流量"),
    Term("workload.prefix_hit_rate", "fraction", r"prefix ?(?:cache|caching)?(?: ?hit)?(?: ?(?:rate|ratio))?|(?:kv )?cache hit(?: ?(?:rate|ratio))?|of (?:the |each |every )?(?:prompts?|inputs?|tokens?)(?: tokens)? (?:is |are |already )*(?:cached|served from (?:the )?cache|reused|shared)|cache hits?|(?:cache |prefix |prompt )?re-?use(?:d)?(?: (?:rate|ratio|fraction|share))?|(?:cached|shared) (?:prefix )?(?:share|fraction|ratio)|(?:前缀)?(?:缓存)?(?:复用)?命中率|前缀(?:缓存|复用|命中)(?:率)?"),
    Term("workload.draft_acceptance", "fraction", r"(?:draft|mtp|speculative|eagle)? ?(?:token )?accept(?:ance|ed)?(?: ?(?:rate|ratio))?|接受率"),
    Term("workload.peak_factor", "count", r"peak (?:factor|multiplier|to (?:average|mean)(?: ratio)?)|burst(?:iness)?(?: factor)?|(?:高峰|峰值|忙时)(?:系数|倍数|因子)|峰谷比"),
    # ---- requirements
    Term("requirements.ttft_s", "s",
         rf"ttft|(?:the )?time to (?:the )?first token|(?:first|1st)[- ]?(?:token|word|byte|character|letter|chunk)s?{_TIME_WORD}|prefill{_TIME_WORD}|prompt processing{_TIME_WORD}|首(?:个)? ?(?:token|字|词|包|tok|词元)(?:的)? ?(?:返回)?{_TIME_WORD}|(?:预填充|首次响应|首响){_TIME_WORD}|(?:repl(?:y|ies)|answers?|responses?|output|streaming|generation|text)(?: (?:should|must|has to|have to|needs? to|ought to|shall|will|can|to))? (?:starts?|begins?)(?: (?:streaming|appearing|to appear|to stream))?|(?:看到|出现|返回|收到|输出|吐出)(?:第一个|首个) ?(?:字|词|token)|第一个 ?(?:字|token)(?:的)?{_TIME_WORD}|(?:开始|起)(?:回复|回答|输出|出字|吐字|生成)"),
    Term("requirements.tpot_s", "s",
         rf"tpot|itl|tbt|(?:the )?(?:mean |average )?time per (?:output |generated )?token|inter[- ]?token{_TIME_WORD}|token[- ]to[- ]token{_TIME_WORD}|token (?:gap|spacing|interval|cadence)|[吐出]字(?:间隔|时延|延迟)?|next[- ]tokens?{_TIME_WORD}|(?:decode|decoding|generation){_TIME_WORD}(?: per token)?|(?:per|each|every)[- ](?:output )?token{_TIME_WORD}|(?:latency|time|delay) per (?:output |generated )?token|"
         rf"(?:每(?:个)?|单(?:个)?|逐)(?:输出|生成)? ?(?:token|字|词元?)(?:的)?{_TIME_WORD}|time between (?:two |consecutive |successive |output )*tokens?|(?:gap )?between (?:(?:each|the|any|two|consecutive|successive|adjacent|output|generated|following|subsequent|pairs? of) )*tokens?|(?:token ?间|字间|解码|生成)(?:的)?(?:延迟|时延|间隔){_TIME_WORD}|字间|(?:subsequent|further|following|later|remaining) tokens?|(?:every|each|any) (?:further|following|subsequent|additional|next|later|other|more) (?:one|token|word)|(?:further|following|subsequent|later) ones|(?:非首(?:个)?|增量) ?(?:token|字|词元?)(?:的)?{_TIME_WORD}|non[- ]?first[- ]?tokens?(?: latency)?|后续(?:每)?(?:个)? ?(?:token|字)|token 间隔"),
    Term("requirements.tpot_s", "s", r"a token(?! (?:budget|limit|bucket))|afterwards?|thereafter|from then on|after that", side="post"),
    Term("requirements.tpot_s", "tokens/s",
         r"(?:decode|decoding|generation|streaming|token|per[- ]user|user|output|single[- ]stream)s? (?:speed|rate|throughput)(?: per user)?|(?:per|each|every) (?:user|request|stream|session)|[吐出]字(?:的)?(?:速度|速率)?|(?:生成|输出|解码|单用户|单路)(?:的)?(?:速度|速率)|(?:每|单)(?:个|一个|一)?(?:用户|路|请求|会话)|tokens? per second per user|interactivity|speed|(?:streams?|streamed|streaming|types?|typing|decodes?|decoding|comes? out)(?: out)?(?: at)?|feels? (?:slower|faster)(?: than)?", transform="inverse"),
    Term("requirements.e2e_latency_s", "s",
         r"(?:e2e|end[- ]to[- ]end|total|overall|request|full|complete|response|inference|total inference|端到端|总|整体|请求|完整)(?: ?(?:inference|request|response|generation|推理|响应))?(?:的)? ?(?:latency|time ?out|delay|completion time|response time|time|延迟|时延|耗时|响应时间|时间|超时)|latency|延迟|时延|timeout|响应时间|e2e|end[- ]to[- ]end|端到端|(?:must|should|shall|has to|have to|needs? to|to) be (?:finished|completed?|done|ready|delivered|returned)|(?:full|complete|whole|entire|finished) (?:answer|response|reply|completion|request|result)s?|(?:完整|全部|整个)(?:的)?(?:回答|回复|响应|答案|请求|结果|输出)"),
    Term("requirements.e2e_latency_s", "s", r"and be (?:finished|completed?|done|ready)", side="pre"),
    Term("requirements.throughput_per_device", "tokens/s",
         rf"(?:(?:output|input|total|token|decode|prefill) )?throughput ?(?:per|/) ?(?:single )?{_DEV}|(?:tokens?|tps|tok/s|tokens/s) ?(?:per|/) ?{_DEV}|per[- ]?{_DEV} (?:(?:output|input|total|token) )?throughput|single[- ]card throughput|(?:单卡|每卡|每张卡|每个? ?gpu|单 ?gpu|每张 ?gpu)(?:的)?(?:平均)?(?:输出|输入|总)?(?:吞吐(?:量|率)?|token ?吞吐)?"),
    Term("requirements.throughput_total", "tokens/s",
         r"(?:total|overall|aggregate|system|cluster|output|input|token|target|min(?:imum)?|minimal|decode|generation)* ?(?:throughput|token rate|tokens? per second)|(?:系统|集群|整体|总|输出|生成|聚合|输入)*(?:吞吐(?:量|率)?)|tps|tokens? ?(?:per|/) ?s(?:ec(?:ond)?)?"),
    Term("requirements.memory_usage_limit", "fraction",
         r"(?:max(?:imum)? |total |peak )?(?:gpu |device |card |v ?ram |npu )?(?:memory|mem|vram) (?:usage|util(?:i[sz]ation)?|occupancy|used)(?: (?:percent(?:age)?|limit|cap|fraction|ratio|max))?|显存(?:水位|占用(?:率)?|使用率?|利用率|使用上限|上限)", transform="complement"),
    Term("requirements.memory_reserve", "fraction", r"(?:memory |vram |显存)?(?:reserved?|headroom|safety margin|margin|预留|余量|冗余)(?: (?:ratio|fraction|memory))?|(?:reserve|keep|leave)(?: at least)?|(?:显存)?预留"),
    Term("requirements.balance_epsilon", "fraction", r"(?:gpu |device |memory |load )*balanc(?:e|ing)(?: (?:epsilon|tolerance|threshold|deviation))?|imbalance(?: (?:ratio|limit|tolerance))?|epsilon|(?:负载)?(?:不)?均衡(?:度|误差|容差|偏差|阈值)?|偏差"),
    Term("requirements.utilisation_target", "fraction", r"(?:gpu|device|npu|card|hardware|cluster|resource)? ?utili[sz]ation(?: ?(?:target|rate|percent|goal))*|(?:gpu|硬件|资源|集群|卡)? ?利用率(?:目标)?"),
    # ---- engine limits (keys and flags)
    Term("engine.limits.max_num_seqs", "count", r"max num seqs|max running requests|最大(?:并发)?序列数"),
    Term("engine.limits.max_batch_size", "count", r"max(?:imum)? batch ?size|最大(?:批|batch)(?: ?size|大小)?"),
    Term("engine.limits.max_num_batched_tokens", "count", r"max(?: num)? batch(?:ed)? tokens|max num tokens|max prefill tokens|每批最大 ?token ?数"),
    Term("engine.limits.chunked_prefill_size", "count", r"chunk(?:ed)?(?: prefill)? ?size"),
    Term("engine.limits.gpu_memory_utilization", "fraction", r"gpu memory utilization|mem(?:ory)? fraction static"),
    Term("engine.limits.block_size", "count", r"(?:kv )?(?:block|page) size"),
)  # fmt: skip

# Hugging Face config keys that become `model.<key>` as they stand when the document looks like such a config.
HF_KEYS = frozenset(
    [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_experts_per_tok",
        "moe_top_k",
        "moe_intermediate_size",
        "n_shared_experts",
        "num_shared_experts",
        "shared_expert_intermediate_size",
        "first_k_dense_replace",
        "moe_layer_freq",
        "decoder_sparse_step",
        "mlp_only_layers",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_group",
        "topk_group",
        "topk_method",
        "scoring_func",
        "routed_scaling_factor",
        "norm_topk_prob",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "hidden_act",
        "activation_function",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "n_layer",
        "n_head",
        "n_embd",
        "n_inner",
        "n_positions",
        "n_ctx",
        "ffn_hidden_size",
        "num_layers",
        "multi_query",
        "parallel_attn",
        "new_decoder_architecture",
        "alibi",
        "architectures",
        "model_type",
        "torch_dtype",
        "dtype",
        "partial_rotary_factor",
        "rotary_dim",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "quantization_config",
        "use_qk_norm",
        "qkv_bias",
        "bias",
        "logit_scale",
        "residual_multiplier",
        "embedding_multiplier",
        "attention_multiplier",
        "ep_size",
        "num_nextn_predict_layers",
        "swiglu_limit",
        "no_rope_layers",
        "interleave_moe_layer_step",
        "intermediate_size_mlp",
        "attention_chunk_size",
        "attention_head_dim",
        "attention_in_multiplier",
        "attention_k_eq_v",
        "attention_out_bias",
        "attention_out_multiplier",
        "attention_output_gate",
        "attn_layer_indices",
        "attn_layer_offset",
        "attn_layer_period",
        "attn_output_gate",
        "attn_type_list",
        "add_full_attention_sink_bias",
        "add_swa_attention_sink_bias",
        "attention_value_scale",
        "block_configs",
        "block_auto_adjust_ff_dim",
        "block_dim",
        "block_ff_dim",
        "block_ffn_dim_multiplier",
        "block_multiple_of",
        "clip_qkv",
        "compress_ratios",
        "conv_L_cache",
        "conv_bias",
        "conv_kernel",
        "dense_intermediate_size",
        "enable_moe_block",
        "expert_intermediate_size",
        "expert_layer_offset",
        "expert_layer_period",
        "full_attention_interval",
        "full_attn_idxs",
        "global_head_dim",
        "hc_mult",
        "hidden_activation",
        "hidden_size_per_layer_input",
        "hybrid_layer_pattern",
        "hybrid_override_pattern",
        "index_block_size",
        "index_head_dim",
        "index_local_blocks",
        "index_n_heads",
        "index_topk",
        "index_topk_blocks",
        "index_topk_freq",
        "index_topk_pattern",
        "indexer_rope_interleave",
        "index_skip_topk_offset",
        "indexer_types",
        "key_multiplier",
        "layernorm_epsilon",
        "layers_block_type",
        "lm_head_multiplier",
        "linear_attn_config",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "lm_head_bias",
        "logits_scaling",
        "mamba_conv_bias",
        "mamba_d_conv",
        "mamba_d_head",
        "mamba_d_ssm",
        "mamba_d_state",
        "mamba_dt_rank",
        "mamba_expand",
        "mamba_head_dim",
        "mamba_hidden_act",
        "mamba_n_groups",
        "mamba_n_heads",
        "mamba_norm_before_gate",
        "mamba_num_heads",
        "mamba_proj_bias",
        "mamba_rms_norm",
        "mla_use_nope",
        "mlp_hidden_act",
        "mlp_layer_types",
        "mlp_multipliers",
        "moe_latent_size",
        "moe_layer_end_index",
        "moe_layer_interval",
        "moe_layer_start_index",
        "moe_num_shared_experts",
        "moe_renormalize",
        "moe_router_activation_func",
        "moe_shared_expert_intermediate_size",
        "moe_topk",
        "n_groups",
        "no_rope_layer_interval",
        "norm_eps",
        "num_dense_layers",
        "num_experts_per_token",
        "num_global_key_value_heads",
        "num_kv_shared_layers",
        "per_layer_config",
        "projectors_bias",
        "position_embedding_type",
        "qk_layernorm",
        "rope_parameters",
        "routed_expert_hidden_size",
        "shared_intermediate_size",
        "sliding_window_pattern",
        "sliding_window_size",
        "sparse_attention_config",
        "ssm_state_size",
        "ssm_in_multiplier",
        "ssm_multipliers",
        "ssm_out_multiplier",
        "swa_head_dim",
        "swa_num_attention_heads",
        "swa_num_key_value_heads",
        "swa_rope_theta",
        "swa_v_head_dim",
        "swiglu_alpha",
        "tie_embedding",
        "top_k_experts",
        "use_bidirectional_attention",
        "use_cla",
        "use_conv_bias",
        "use_double_wide_mlp",
        "use_expert_bias",
        "use_parallel_residual",
        "use_routing_bias",
        "vocab_size_per_layer_input",
        "zero_expert_num",
    ]
)
# More of them, of single families; they do not tell that a document is such a config, and count once it is known to be one.
HF_MORE = frozenset(
    [
        "afn",
        "attention_layers",
        "attn_config",
        "attn_layer_indices",
        "attn_scale",
        "attn_temperature_tuning",
        "dim_model_base",
        "do_layer_norm_before",
        "enable_bias",
        "expansion_ratio",
        "expert_selection_fn",
        "ffn_config",
        "floor_scale",
        "gating",
        "global_attn_every_n_layers",
        "layer_rope_theta",
        "linear_head_dim",
        "linear_num_heads",
        "local_rope_theta",
        "moe_apply_router_weight_on_input",
        "moe_k",
        "moe_layers",
        "moe_routed_scaling_factor",
        "moe_router_logit_softcapping",
        "moe_router_score_function",
        "moe_use_aux_free",
        "mup_enabled",
        "no_bias",
        "num_attention_heads_per_layer",
        "num_dense_layers",
        "num_expert_group",
        "num_ln_in_parallel_attn",
        "original_max_position_embeddings",
        "prefix_dense_intermediate_size",
        "prefix_dense_sliding_window_pattern",
        "qk_norm",
        "rope_interleave",
        "rope_local_base_freq",
        "rotary_emb_base",
        "rotary_pct",
        "route_scale",
        "router_jitter_noise",
        "router_scaling_factor",
        "scale_depth",
        "scale_emb",
        "scale_embedding",
        "score_function",
        "shared_expert_combination_strategy",
        "short_conv_kernel_size",
        "use_bias",
        "use_post_norm",
        "use_qkv_bias",
        "window_size",
        "word_embed_proj_dim",
    ]
)
HF_MARKS = frozenset(
    {"architectures", "model_type", "rms_norm_eps", "rope_theta", "hidden_act", "torch_dtype", "tie_word_embeddings"}
)
HF_NOISE = frozenset(
    [
        "chunk_size_feed_forward",
        "mamba_ssm_dtype",
        "mamba_ssm_cache_dtype",
        "transformers_version",
        "use_cache",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "attention_dropout",
        "hidden_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "auto_map",
        "pretraining_tp",
        "output_attentions",
        "aux_loss_alpha",
        "seq_aux",
        "router_aux_loss_coef",
        "output_router_logits",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "gradient_checkpointing",
        "return_dict",
        "classifier_dropout",
        "unk_token_id",
        "sep_token_id",
        "_commit_hash",
        "initializer_cutoff_factor",
    ]
)
# HF spellings → the one name that facts carry
HF_SAME = {
    "moe_topk": "num_experts_per_tok", "moe_k": "num_experts_per_tok", "num_experts_per_token": "num_experts_per_tok", "top_k_experts": "num_experts_per_tok",
    "num_local_experts": "num_experts", "n_routed_experts": "num_experts", "moe_num_experts": "num_experts", "moe_top_k": "num_experts_per_tok",
    "n_layer": "num_hidden_layers", "num_layers": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size",
    "n_inner": "intermediate_size", "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size", "num_shared_experts": "n_shared_experts",
}  # fmt: skip

ENGINES: tuple[tuple[str, str], ...] = (
    ("vllm-ascend", r"vllm[ -]?ascend"), ("vllm", r"vllm"), ("sglang", r"sg ?lang"),
    ("trtllm", r"tensorrt[ -]?llm|trt[ -]?llm"), ("lmdeploy", r"lm ?deploy|turbomind"), ("mindie", r"mind ?ie"),
    ("tgi", r"tgi|text generation inference"), ("deepspeed", r"deepspeed(?:[ -]?(?:mii|inference|fastgen))?"), ("megatron", r"megatron(?:[ -]?lm|[ -]?core)?"),
    ("llama.cpp", r"llama\.cpp"), ("ollama", r"ollama"), ("xllm", r"xllm"), ("ktransformers", r"k ?transformers"), ("dynamo", r"nvidia dynamo"),
)  # fmt: skip

DTYPES: tuple[tuple[str, str], ...] = (
    ("nvfp4", r"nv ?fp4"), ("mxfp4", r"mx ?fp4"), ("fp8", r"(?:八|8)[ -]?(?:比特|位)浮点|8[ -]?bits? float\w*|(?:w8a8[ -]?)?fp8(?:[ _-]?(?:e4m3|e5m2)(?:fn)?)?|float8(?:_e4m3fn)?|e4m3"),
    ("int4", r"四比特|awq(?:[ -]*(?:4[ -]?bits?|int4|w4a16))?|gptq(?:[ -]*(?:4[ -]?bits?|int4))?|int ?4|w4a(?:16|8)|4[ -]?bits?|4比特|q4(?:_k_m|_0)?"),
    ("int8", r"八比特|int ?8|w8a(?:8|16)|8[ -]?bits?|8比特|smooth ?quant|q8(?:_0)?"),
    ("fp4", r"fp4"), ("bf16", r"bf16|bfloat16|bf ?16"), ("fp16", r"fp16|float16|half(?:[ -]precision)|fp ?16|半精度|16[ -]?bits?"),
    ("fp32", r"fp32|float32|full[ -]precision|全精度|单精度"),
)  # fmt: skip

NAME_LABELS: tuple[tuple[str, str], ...] = (
    ("hardware.device", r"(?:gpu|npu|device|accelerator|card|显卡|加速卡|芯片|硬件|卡|chip|hardware)(?: ?(?:type|model|name|sku|kind|型号|类型|名称))?|型号|sku|accelerator type"),
    ("model.name", r"(?:llm |base |served |target |the )?model(?: ?(?:name|id|path|or path|name or path))?|(?:部署)?(?:模型|大模型)(?:名称|名|型号|路径)?|llm|checkpoint|_name_or_path"),
    ("engine.name", r"(?:inference |serving |推理)?(?:engine|framework|backend|runtime|server|stack|software|框架|引擎|后端)(?: ?(?:name|名称))?|serving(?: with)?"),
    ("engine.version", r"(?:engine |framework |vllm |sglang )?version|版本(?:号)?"),
    ("model.weight_dtype", r"(?:weights?|model|权重|模型|inference|compute|推理|参数)? ?(?:precision|d ?type|data ?type|quanti[sz]ation|quant|精度|量化|数据类型|量化方式|format)|weights?|权重|torch dtype|精度要求"),
    ("model.kv_dtype", r"(?:quantization )?kv(?: ?cache)?(?: ?(?:precision|d ?type|data type|quanti[sz]ation|quant|精度|量化))?|kv ?缓存(?:精度|量化)?"),
    ("model.activation_dtype", r"(?:quantization )?activations?(?: (?:precision|dtype))?|激活(?:值)?(?:精度)?"),
    ("objective", r"objective|(?:optimi[sz]ation )?(?:goal|target|objective)|优化目标|目标|optimi[sz]e(?: for)?|priority|preference|优先级|偏好"),
    ("workload.mode", r"mode|task|stage|job(?: type)?|scenario|任务(?:类型)?|场景|模式|use ?case"),
    ("baseline", r"baseline|current (?:strategy|setup|deployment|config(?:uration)?)|基线|当前(?:策略|部署|方案)|现有(?:策略|方案)"),
)  # fmt: skip

UNBOUNDED = (
    r"ample|unlimited|unbounded|without (?:any )?limits?|no (?:upper )?limits?|not limited|as many .{0,30}(?:as (?:is |are )?(?:needed|necessary|required)|as (?:you|we|it) (?:needs?|likes?|wants?|takes?))|sufficient|abundant|plenty|any number|unconstrained|limitless|infinite|enough"
    r"|充足|充裕|充分|不限|无限(?:制)?|不受限|没有(?:数量)?(?:限制|上限)|不设上限|足够|管够|随意|任意(?:数量|多)?|无上限"
)
OBJECTIVES: tuple[tuple[str, str], ...] = (
    ("fewest_devices", r"(?:(?<!the )as few|fewest|minimum(?= hardware)|minimi[sz]e (?:the )?(?:number of )?|minimum number of|(?<!at )least|smallest number of|minimal|(?:smallest|minimum|minimal|lowest) number of(?: \S+){1,4}?) ?(?:gpus?|npus?|cards?|devices?|accelerators?|hardware|resources)(?: as possible)?|最少(?:的)?(?:卡|gpu|npu|资源|机器|张)|(?:卡|gpu|资源|机器|卡数)(?:数)?(?:越少越好|尽(?:量|可能)少)|尽(?:量|可能)少(?:的|用)?(?:卡|gpu|npu|资源|机器|张)|省卡|用(?:卡|的卡)最少|how (?:few|many) (?:gpus?|cards?|npus?)|how few\b|越少越好|尽(?:量|可能)少用|需要(?:几|多少)(?:张|块|台)|多少张卡|lowest cost|cheapest|成本最低|最低成本|越(?:便宜|省)越好|能(?:少|省)(?:用)?(?:几|多少)?(?:张|台|块|个|卡|点)?(?:卡|机器|节点)?就(?:少|省)|(?:as few|the fewer) (?:of them|machines|nodes|servers)? ?(?:as possible|the better)"),
    ("min_latency", r"(?:lowest|minimal|minimum|minimi[sz]e|smallest|best|reduce|low) (?:possible )?(?:the )?(?:end[- ]to[- ]end )?(?:latency|delay|response time|ttft|tpot)|latency[- ](?:as low as possible|first|optimi[sz]ed|is (?:the )?(?:priority|key))|as fast as possible|(?:延迟|时延)(?:越低越好|越小越好|尽(?:量|可能)(?:低|小)|最(?:低|小)|优先)|最(?:低|小)(?:的)?(?:延迟|时延)|min_?latency|最小化(?:延迟|时延)|(?:延迟|时延)(?:压|降|做|控制|优化)(?:到|得|至)?(?:最低|最小|尽(?:量|可能)(?:低|小)|越低越好)|latency$"),
    ("total_throughput", r"throughput\W{0,3} ?(?:(?:should be |to be )?as (?:high|large|much) as possible|is (?:the )?(?:priority|key|goal)|first|optimi[sz]ed)|(?:highest|max(?:imum|imal)?|maximi[sz]e|best|most|higher) (?:possible )?(?:the )?(?:total |overall |aggregate |output |token |system |decode )*(?:throughput|tokens? per second|tok(?:en)?s?/s)|as (?:much|many) (?:throughput|tokens)|(?:总|整体|系统)?吞吐(?:量|率)?(?:越(?:大|高)越好|尽(?:量|可能)(?:大|高)|最(?:大|高)|优先|最大化)|最大化(?:总|整体|系统|输出)?吞吐|最(?:大|高)(?:的)?(?:总|整体)?吞吐|total_?throughput|throughput$"),
    ("knee", r"(?:good |best |reasonable )?(?:trade ?-?off|balance) between (?:latency and throughput|throughput and latency)|(?:吞吐|延迟|时延)(?:和|与)(?:吞吐|延迟|时延)(?:的)?(?:平衡|折中)|兼顾(?:吞吐|延迟|时延)(?:和|与)(?:吞吐|延迟|时延)|knee"),
)  # fmt: skip

IRRELEVANT = (
    (r"与(?:本次)?部署无关|与.{0,6}无关|无关内容|可忽略|请?忽略(?:此|该|本)(?:段|节|部分)|not relevant|irrelevant|unrelated|nothing to do with|please disregard|can be ignored", "the text itself says that it has no bearing on the deployment"),
    (r"值班|机房搬迁|食堂|团建|会议纪要|考勤|放假|周报|停车|采购流程|报销|行政", "organisational, no bearing on the plan"),
    (r"^\W*(?:not in scope|out of scope|excluded|not included|not part of this)\b|^\W*(?:不在(?:本次)?范围|不包含|不包括)", "said to be out of scope"),
    (r"质保|保修|维保|付款|交货期|\bwarranty\b|\bpayment terms\b|\binvoice", "commercial terms, no bearing on the plan"),
    (r"on[- ]?call|duty roster|rota\b|meeting notes|lunch|parking|vacation|contact (?:person|info)|phone|slack channel|email|holiday|changelog|revision history|author|owner|last updated|copyright|license", "organisational, no bearing on the plan"),
    (r"\b(?:was|were|been) (?:pre-?)?trained\b.{0,60}\b(?:on|for|with|using)\b|\b(?:an? |the |our )?(?:previous|earlier|first) (?:pilot|poc|proof of concept|prototype|attempt|deployment|trial|setup|generation)\b|(?:之前|前期|早期)的?(?:试点|测试|验证)", "history: how the model came about or what was tried before"),
    (r"不再使用|到期下线|(?:将|即将|年底|已经?)(?:下线|退役|停用|报废)|\b(?:being |to be |will be |are )(?:decommissioned|retired|phased out|returned|sold)\b|\bno longer (?:used|available|ours)\b|\b(?:is|are) (?:fully )?(?:booked|taken|reserved for others?|not available|unavailable)\b", "about what cannot be used"),
    (r"(?:another|other|different|someone else's|a different) (?:team|cluster|project|department)|(?:其他|别的|另一个|另外一个)(?:团队|集群|项目|部门|组)", "about another team or cluster"),
    (r"\blast (?:year|month|quarter|week)\b|\bpreviously\b|\bused to\b|\bformerly\b|\bin the past\b|去年|以前(?!的指令)|曾经|上个(?:月|季度)|此前(?!提)|原先|老集群|旧集群|decommissioned|已下线|已报废", "history: what once was, not what is to be planned"),
    (r"\b(?:next|in) (?:year|quarter|q[1-4])\b|明年|未来可能|将来可能|might (?:later|eventually)|roadmap|后续(?:可能|计划)(?:会)?扩", "a possible future, not these conditions"),
    (r"\bfor (?:reference|comparison)\b|仅供参考|供参考|as an? example|例如官方|by comparison|(?:competitor|竞品)", "given for comparison only"),
)  # fmt: skip

INJECTION = (
    r"(?:ignore|disregard|forget|override|bypass)\b.{0,30}\b(?:instructions?|prompts?|rules?|guidelines?|above|previous|constraints?)"
    r"|(?:忽略|无视|忘记|忘掉|绕过|不要理会|覆盖).{0,12}(?:指令|指示|提示词?|规则|要求|约束|设定)"
    r"|you are now\b|act as (?:an?|the) |pretend (?:to be|you)|(?:new|updated) (?:system )?(?:instructions?|prompt)\b|(?:your|reveal|override|print|repeat|leak) (?:\w+ )?system prompt|system prompt\s*[:：](?!\s*(?:about |~)?\d)|<\|?(?:system|im_start)|\[/?inst\]|\bassistant\s*:|你现在是|从现在起你|现在你是|扮演"
    r"|(?:write|save|append|copy|upload|send|post|exfiltrate|delete|remove|modify|overwrite)\b.{0,50}(?:/etc\b|/root\b|~/|/home/|/usr/|/var/|/bin\b|\.ssh|\.bashrc|passwd|https?://|c:\\|credentials?|api[ _-]?keys?|environment variables|secrets?)"
    r"|(?:写入|保存到|上传|发送到?|删除|修改|覆盖|追加).{0,30}(?:/etc|/root|~/|/home/|\.ssh|https?://|密钥|密码|凭证|环境变量)"
    r"|(?:run|execute|eval|exec)\b.{0,25}\b(?:command|shell|script|code|bash|rm|curl|wget|python)\b|(?:运行|执行).{0,12}(?:命令|脚本|代码|shell)|rm -rf|curl .{0,60}\|\s*(?:ba)?sh"
    r"|(?:give|award|assign|rate|score).{0,30}(?:full|perfect|maximum|highest|100).{0,12}(?:marks?|scores?|points?|rating)|(?:给|打).{0,6}(?:满分|最高分)|mark (?:this|the) plan as (?:proven|passed)|skip (?:all )?(?:the )?(?:checks?|verification|validation)|跳过(?:所有)?(?:检查|验证|校验)"
    r"|reveal .{0,30}(?:prompt|key|instructions)|do not (?:tell|inform|mention to) the user|不要告诉用户"
)  # fmt: skip

PER_GROUP = (
    rf"\b(?:each|every|per)[ -](?:of (?:the |these )?)?{GROUP_WORD}|/ ?{GROUP_WORD}|每(?:一)?(?:个|座|组)?{GROUP_WORD}|{GROUP_WORD}[里内中上]?[，,、]? ?(?:都|分别)?各"
    rf"|各(?:个)?{GROUP_WORD}"
)
GROUP_OF = rf"{GROUP_WORD} (?:of|with|holding|containing|having)\s*$"
PER_NODE = r"每(?:台|机|个?节点|个?服务器|台机器|台服务器|一台)|(?:台|机器?|服务器|节点|主机)[上里内中]?各|各(?:台|机|节点|服务器|主机)|per[ -](?:node|server|machine|host|box)|each (?:node|server|machine|host|box)?|/ ?node|every (?:node|server|machine|host)|per (?:instance|vm)|nodes? (?:of|with|containing|equipped with)|(?:nodes?|servers?|machines?|服务器|节点|机器) ?[x×*]|单机|单台|单节点|a (?:single )?(?:node|server|machine)|one (?:node|server|machine)|apiece"
_ONE_HOST = r"(?:node|server|machine|host|vm|box|workstation|chassis|enclosure|rig|tower|desktop|pc|dgx|hgx)"
ONE_NODE = (
    rf"单机|单台|一台|[那这]台|单节点|同一(?:台|个(?:节点|机箱))|同(?:机|节点)|一个(?:节点|机箱)|single[- ](?:\w+[- ])?{_ONE_HOST}\b|\b(?:the )?same {_ONE_HOST}\b"
    rf"|\b(?:a|one|1|the|this|that|my|our)(?: (?!per\b|each\b|every\b|of\b|in\b|with\b|between\b|another\b|other\b|second\b|and\b|or\b)[A-Za-z][\w-]*){{0,2}} {_ONE_HOST}\b|^{_ONE_HOST}\b|\bworkstation\b|\b(?:one|1|a)\b (?:\d+ ?[x×*]? ?)?\x01+[^,.;，。；]{{0,16}}\b{_ONE_HOST}\b"
)
PER_DEVICE = r"per[ -]?(?:gpu|card|npu|device|accelerator|chip)|/ ?(?:gpu|card|npu)|each (?:gpu|card|npu|device)|单卡|每卡|每张|每块|每个? ?gpu|single[- ]card|each\b"
SHARED_LINK = (
    r"(?:one|a|single|1|一[个张块条]|单)[ -]*(?:port|nic|card|cable|link|uplink|hca|网口|网卡|端口|网线)s? ?(?:per|for (?:each|every)|on (?:each|every)|in (?:each|every)) ?(?:server|node|host|machine|box)"
    r"|\bshar(?:e|es|ed|ing)\b|共享|共用|每台(?:服务器|机器)?(?:只有|仅有?|有|配)?[一1](?:个|张|块)(?:网卡|网口|端口)|整机"
)
PORTS = (
    r"(?P<en>\d|one|two|four|eight|dual|single)[ -]*(?:(?:\d+ ?[GT]\w*|ethernet|ib|network|roce) )?(?:ports?|nics?|hcas?|uplinks?) ?(?:per|for (?:each|every)|on (?:each|every)|in (?:each|every)) ?(?:server|node|host|machine|box)"
    r"|每(?:台(?:服务器|机器)?|个?节点|机)(?:只有|仅有?|有|配)?(?P<zh>[1-9一二两三四八双单])(?:个|张|块|条)?(?:口|网卡|网口|端口)"
)
CORRECTED = r"^\W*(?:sorry|oops|scratch that|my mistake)\b|\bmake (?:that|it) (?=\d)|\bI mis(?:read|counted|typed|remembered)\b|[写说记看数]错了|\bcorrection\b|\bcorrected\b|\berratum\b|更正|修正[:：一]|勘误|改为|改成|\bnot\b.{0,24}\bas (?:i|we) (?:wrote|said)|instead of the"
PLANNED = r"那就(?:用|上|选)?|(?:还是|改|就)(?:用|上|选|换)|换成|\b(?:so|then) (?:let'?s|we(?:'ll)?) (?:go with|take|use)|\blet'?s (?:go with|take|use)\b|\b(?:plan(?:ned|ning)?|size|sized|design(?:ed)?|dimension(?:ed)?|budget(?:ed)?|provision(?:ed)?) (?:for|on|with)\b|按.{0,10}(?:规划|设计|测算|算|来)|以.{0,10}为准"
WISHED = r"\b(?:dream|wish|some ?day|one day|ideal(?:ly)?|stretch|nice to have|aspiration\w*|would love|hope(?:fully)?)\b|理想|梦想|将来|愿景|最好能"
PER_USER = r"per[ -]?(?:user|request|stream|session|person|client|sequence)|/ ?(?:user|request)|each (?:user|request|stream)|every user|每(?:个)?(?:用户|请求|路|会话)|单(?:用户|路|请求|流)|single[- ](?:user|stream)|(?:for )?(?:each|every one|any) of (?:us|them|the users)|every(?:one|body)\b|人均|per head"
BIDIRECTIONAL = r"bi[- ]?dir(?:ectional)?|both directions|双向|两个方向|total duplex|full[- ]?duplex|aggregate"
RESERVED = r"head ?room|\breserv\w*|\bset aside\b|\bkept? free\b|\bkeep\b.{0,24}\bfree\b|\bleave\b(?! out)|\bsafety margin\b|预留|保留|余量|留给|留出|不可用于"
# where a link leads, said in other words than its name
ACROSS_NODES = (
    rf"\b(?:across|between|among|outside|out of|beyond|from|leaving)[ -](?:the |our |all |different |separate |each |any )?(?:two )?{NODE_WORD}\b|\bto the (?:outside|rest|network|switch|spine|leaf)\b|\boutside world\b"
    r"|\buplinks?\b|机间|节点间|跨机|跨节点|(?:机器|服务器|节点|主机)之间|对外|出口"
)
INSIDE_NODES = rf"\b(?:inside|within|in|of|on)[ -](?:the |a |an |each |one |its |every |same )*{NODE_WORD}\b|\ball[- ]to[- ]all\b|\bneighbou?rs?\b|\bpeers?\b|\bon[- ]board\b|机内|节点内|卡间|相邻|板内"
UNIDIRECTIONAL = r"uni[- ]?dir(?:ectional)?|one[- ]?(?:way|direction)|each direction|per direction|单向"
SPARSE = r"spars(?:e|ity)|稀疏"
# "95% of them", not "90% of them are cached"
_OF_ALL = r"(?: ?的| of (?:the |all |our |these )?)? ?(?:requests?|queries|users|time|cases|them|calls|replies|answers|responses|turns|sessions|chats|messages|conversations|jobs|customers|请求|用户|情况)(?![^,.;，。]{0,24}(?:cache|hit|shared|reuse|prefix|命中|缓存))"
STATS = (
    ("p99", rf"ninety[- ]ninth(?: percentile)?|99 (?:times )?(?:in|out of) (?:a hundred|100)|t?p ?99(?:\.\d)? ?线?|99 ?(?:分位)?线|99th(?: percentile)?|99 ?(?:百分位|分位)|99 ?(?:%|per ?cent)(?={_OF_ALL})|(?<=for )99 ?(?:%|per ?cent)|99分位"), ("p95", rf"ninety[- ]fifth(?: percentile)?|95 (?:times )?(?:in|out of) (?:a hundred|100)|19 (?:times )?(?:in|out of) 20|t?p ?95 ?线?|95 ?(?:分位)?线|95th(?: percentile)?|95 ?(?:百分位|分位)|95 ?(?:%|per ?cent)(?={_OF_ALL})|(?<=for )95 ?(?:%|per ?cent)|95分位"),
    ("p90", rf"ninetieth(?: percentile)?|(?:9|nine) (?:times )?(?:in|out of) (?:10|ten)|九成(?:的)?(?:请求|用户|情况)|t?p ?90 ?线?|90 ?(?:分位)?线|90th(?: percentile)?|90 ?(?:百分位|分位)|90 ?(?:%|per ?cent)(?={_OF_ALL})|(?<=for )90 ?(?:%|per ?cent)|90分位"), ("p50", r"t?p ?50 ?线?|50 ?(?:分位)?线|50th(?: percentile)?|50 ?百分位|median|中位数|50分位"),
    ("mean", r"mean|averages?|avg|平均|均值"), ("max", r"worst(?:[- ]case)?|最坏|最差"),
)  # fmt: skip
MINIMUM = r"\bmin(?:imum)?\b|最(?:小|短|少|低)|下限|floor|at least|至少"
MAXIMUM = r"\bmax(?:imum)?\b|最(?:大|长|高|多)|上限|up to|longest|\bpeak|\bat most\b|\bno more than\b|\bnever (?:above|more than|over)\b|不超过|\bp9[059]\b|\b9[059]th percentile|9[059] ?(?:百?分位)"
MEAN = r"\b(?:mean|average|avg|typical(?:ly)?|usual(?:ly)?|about|around)\b|平均|均值|典型|通常|一般"


_PIECE = re.compile(r"\(\?<[=!][^)]*\)|\[[^\]]*\]| \?| ")
_BLANKS = {" ?": r"[\s_-]*", " ": r"[\s_-]+"}


def flexible(words: str) -> str:
    """A lexicon pattern as a regular expression: a blank becomes a separator, but in look-behinds and classes one blank."""
    return _PIECE.sub(
        lambda m: _BLANKS.get(m.group(), m.group().replace("- ]", r"\-\s_]").replace(" )", r"[\s_-])")), words
    )


@cache
def compiled(words: str, edges: bool = True) -> re.Pattern[str]:
    body = flexible(words)
    if not edges:
        return re.compile(body, re.I)
    start, end = r"(?:(?<![A-Za-z])|(?=[^\x00-\x7f]))", r"(?:(?<![A-Za-z])|(?![A-Za-z]))"
    return re.compile(rf"{start}(?:{body}){end}", re.I)


@cache
def search(words: str) -> re.Pattern[str]:
    """A marker as a plain case-insensitive regular expression."""
    return re.compile(words, re.I)


def stats_in(text: str) -> list[tuple[int, str]]:
    """(offset, stat) of every percentile or mean named in `text`."""
    found: dict[int, str] = {}
    for name, words in STATS:
        for match in re.finditer(rf"(?:(?<![A-Za-z0-9.])|(?=[^\x00-\x7f]))(?:{words})(?![A-Za-z0-9])", text, re.I):
            found.setdefault(match.start(), name)
    return sorted(found.items())
