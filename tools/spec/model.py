"""What a transformer is, as far as its operator graph needs to know. Names follow Hugging Face configs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tools.spec.base import Frozen

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "fp4"]

BITS: dict[str, float] = {
    "fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0,
    # group-quantised formats: 4-bit values plus their scales (AWQ/GPTQ g128: fp16 scale + 4-bit zero = 20/128;
    # mxfp4: one e8m0 byte per 32 values; nvfp4: one e4m3 byte per 16 values)
    "int4": 4.0 + 20 / 128, "mxfp4": 4.0 + 8 / 32, "nvfp4": 4.0 + 8 / 16, "fp4": 4.0,
}  # fmt: skip


def dtype_bytes(dtype: str) -> float:
    """Bytes per element, scales of group-quantised formats included."""
    return BITS[dtype] / 8


class MLA(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): KV is a latent of `kv_lora_rank` plus a shared RoPE key."""

    q_lora_rank: int | None = None
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128


Picks = Literal["own", "shared", "none"]


class Indexer(Frozen):
    """Picks the positions that a query attends to: small heads of its own score all cached keys, of which there is one per
    position.

    Without `block` the heads' scores are added up and attention reads the `top_k` best positions (DeepSeek sparse attention,
    DeepSeek-V3.2). With it there is a head for every KV head, which reads the `top_k` blocks of so many positions that hold
    the best ones (MiniMax-M3)."""

    num_heads: int
    head_dim: int
    top_k: int
    block: int | None = None
    local_blocks: int = 0
    """Blocks up to the query's own that are always among them."""
    interleaved: bool = False
    """How its queries and keys rotate, see `Position.interleaved`."""


class Temperature(Frozen):
    """What queries are multiplied by so that attention stays sharp far into a context: 1 + strength · ln(1 + ⌊(p + shift) / every⌋)
    at position p (Llama-4, Ministral-3)."""

    strength: float
    every: int
    shift: int = 0
    turned_too: bool = True
    """In layers that rotate as well; else in the others only (Llama-4)."""


class Attention(Frozen):
    """One attention block. `num_kv_heads == num_heads` is MHA, 1 is MQA, between is GQA; `mla` set is MLA."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int | None = None
    """Width of values where it is not that of keys (MiMo-V2)."""
    mla: MLA | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "plain", "layer", "heads", "full"] = "none"
    """`head`: RMSNorm over d_k of each head (Qwen3); `plain`: the same without weights (Llama-4); `layer`: LayerNorm over it, all
    heads with the same weights (Persimmon); `heads`: with weights per head (Command-R+); `full`: RMSNorm over heads x d_k
    (MiniMax-M2, OLMo-2)."""
    norm_if_turned: bool = False
    """Only layers that rotate norm their queries and keys (Llama-4)."""
    norm_after_rope: bool = False
    """Queries and keys are normed after they rotate (Hunyuan), not before."""
    clip_qkv: float | None = None
    """Queries, keys and values are clamped to ± this (DBRX, OLMo)."""
    sliding_window: int | None = None
    """Window of the layers that slide; which layers do is `ModelSpec.sliding_layers`."""
    chunk_size: int | None = None
    """Chunked attention (Llama-4): a token sees only its own chunk; layers as in `ModelSpec.sliding_layers`."""
    indexer: Indexer | None = None
    sinks: bool = False
    """A learned logit per head joins the softmax's denominator (gpt-oss)."""
    values_are_keys: bool = False
    """One projection for both: values are the keys as they were before their norm and RoPE (Gemma-4's full attention)."""
    value_norm: bool = False
    """Values go through an RMSNorm per head that has no weights (Gemma-4)."""
    value_scale: float = 1.0
    """Values are multiplied by this (MiMo-V2)."""
    output_gate: bool = False
    """Each head's output is multiplied by the sigmoid of a second query projection (Qwen3-Next)."""
    gate_fn: Literal["sigmoid", "softplus"] = "sigmoid"
    gate_per_head: bool = False
    """The gate is one number per head (Laguna)."""
    context_norm: bool = False
    """An RMSNorm over all heads together before the output projection (BitNet)."""
    temperature: Temperature | None = None
    softcap: float | None = None
    scale: float | None = None
    """Multiplier of the scores; None means head_dim ** -0.5 (for MLA: (nope + rope) ** -0.5)."""


class LinearAttention(Frozen):
    """Attention whose state does not grow with the context: a matrix of key_dim x value_dim per head, which every token
    decays and adds to.

    gated_delta: one decay per head and the delta rule (Gated DeltaNet, arXiv 2412.06464; Qwen3-Next). kda: one decay per
    key channel, gates of low rank (Kimi Delta Attention, arXiv 2510.26692). mamba2: no delta rule, keys and queries
    shared by groups of heads (state-space duality, arXiv 2405.21060). mamba1: every channel is a head of one value, all read
    one key and query that follow from the convolved channels, and decay each key channel by itself (arXiv 2312.00752; with
    Jamba's norms, arXiv 2403.19887). short_conv: no recurrence, a gated convolution of every channel (LFM2, arXiv 2511.23404).
    """

    kind: Literal["gated_delta", "kda", "mamba1", "mamba2", "short_conv"]
    num_key_heads: int
    """Heads of keys and queries; the value heads share them in equal groups (mamba2: its groups of B and C)."""
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4
    """Positions of the causal convolution that queries, keys and values go through."""
    conv_bias: bool = False
    gate_rank: int | None = None
    """kda: width between the two projections of the decay and of the output gate, None where each is one; mamba1: of the
    step size."""
    decay_bound: float | None = None
    """kda: the log of what a step leaves of the state is bound · sigmoid(rate · x) instead of -rate · softplus(x) (Ling-2.5)."""
    scales: tuple[float, float, float, float, float] | None = None
    """mamba2: constants that its projections are multiplied by: gate, value, key, query, step size (Falcon-H1)."""
    out_scale: float = 1.0
    output_norm: bool = True
    """mamba2: whether the gated output is normed before it is projected."""

    @property
    def one_key(self) -> bool:
        """Mamba with one group: all value heads read the same key and query, which every rank then has. A short convolution has
        none, its channels are dealt out one by one."""
        return self.kind in ("mamba1", "mamba2", "short_conv") and self.num_key_heads == 1

    @property
    def dealt_heads(self) -> int:
        """Heads that ranks can be given: groups of value heads with their key, or value heads where all share one key."""
        return self.num_value_heads if self.one_key else self.num_key_heads


class RopeScaling(Frozen):
    """What stretches RoPE to longer contexts; formulas in `tools.graph.rope`."""

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope", "proportional"]
    factor: float = 1.0
    rotated: float = 1.0
    """proportional: the part of the pairs that turn at all, at the frequencies they would have if all did."""
    original: int = 4096
    """Positions the model was trained with before it was stretched."""
    attention_factor: float = 1.0
    """Multiplies cos and sin (YaRN's temperature, LongRoPE's)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """YaRN's ramp begins and ends at whole pairs."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    long_attention_factor: float | None = None
    """Instead of `attention_factor` beyond `original` positions (Phi-3.5-MoE)."""


class Position(Frozen):
    kind: Literal["rope", "learned", "alibi", "none"] = "rope"
    theta: float = 10000.0
    rotary_dim: int | None = None
    """Leading dims of d_k that rotate; None means all (GPT-J 64, phi-2 32, GLM-4.5 half)."""
    interleaved: bool = False
    """True: pairs (0,1),(2,3)… (GPT-J, DeepSeek); False: pairs (i, i + d/2) (Llama)."""
    scaling: RopeScaling | None = None
    sliding_theta: float | None = None
    """Base of the layers that slide, which nothing stretches; None: they rotate as the others do."""
    sliding_rotary_dim: int | None = None
    """`rotary_dim` of the layers that slide, where it is another (Laguna)."""
    max_positions: int = 4096
    learned_offset: int = 0
    """Rows skipped at the start of a learned table (OPT: 2)."""
    rope_layers: tuple[bool, ...] | None = None
    """Per layer, whether it rotates at all; None means every layer (Llama-4 and Cohere leave some without)."""


class MLP(Frozen):
    intermediate_size: int
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai", "xielu"] = "silu"
    """xielu: two learned scalars bend it, one on either side of zero (arXiv 2411.13010; Apertus)."""
    bias: bool = False
    inner_norm: bool = False
    """An RMSNorm before the down projection (BitNet)."""
    gate_scale: float = 1.0
    """A constant on the gate before its activation (Falcon-H1)."""
    out_scale: float = 1.0


class MoE(Frozen):
    """Routed experts of a layer, plus shared ones. `gate` says how scores become weights.

    softmax_topk: softmax over all experts, take top-k (renormalised if norm_topk_prob). topk_softmax: top-k of the
    logits, softmax over those (Mixtral, gpt-oss). sigmoid_topk: sigmoid, selection by score + correction bias, within the
    best `topk_group` of `n_group` groups, weights renormalised and scaled (DeepSeek-V3). topk_sigmoid: top-k of the logits +
    correction bias, sigmoid of those (Kolibri). sparsemixer: the weight of each
    choice is a softmax over the experts within its reach that were not chosen before (Phi-MoE, arXiv 2409.12136).
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    latent_size: int | None = None
    """Width of the space that routed experts work in: tokens are projected there before they are dispatched and back after
    they are combined (LatentMoE, Nemotron-3-Super); None means hidden."""
    gate: Literal["softmax_topk", "topk_softmax", "sigmoid_topk", "topk_sigmoid", "sparsemixer"] = "softmax_topk"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    correction_bias: bool = False
    router_bias: bool = False
    jitter: float = 0.01
    """sparsemixer: experts further than twice this below the choice, relative to it, are out of reach."""
    expert_bias: bool = False
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"] = "silu"
    shared_intermediate_size: int = 0
    """Total width of the shared expert(s); 0 means none."""
    beside_mlp: bool = False
    """The layer has its dense MLP too; both read the residual stream, each between norms of its own, and are added (Gemma-4)."""
    router_norm: bool = False
    """The router reads what enters the FFN half un-normed, through an RMSNorm of its own, scaled by hidden ** -0.5 (Gemma-4)."""
    expert_scale: bool = False
    """The weight of a chosen expert is multiplied by a learned scalar of that expert (Gemma-4)."""
    shared_gate: bool = False
    """A sigmoid gate of one logit multiplies the shared expert's output (Qwen2-MoE)."""
    input_scaled: bool = False
    """Gate weight multiplies the expert's *input* (Llama-4)."""
    output_scale: float = 1.0
    """What routed and shared experts add up to is multiplied by this (Command-A MoE: their mean)."""
    output_norm: bool = False
    """A norm over what they add up to (A.X-K1)."""
    redundant: int = 0
    """Further copies of experts that a deployment holds (DeepSeek-V3, arXiv 2412.19437 §3.4): slot num_experts + i is a copy
    of expert i mod num_experts, and the tokens of an expert take turns over its copies."""

    nodes: int = 1
    """Groups of devices that a deployment deals the experts out to in equal runs; above 1, prefill sends a token to each of
    them once, and on to its experts from there (DeepEP's normal kernels, arXiv 2412.19437 §3.2.2)."""

    @property
    def num_slots(self) -> int:
        """Experts with all their copies: what expert parallelism deals out."""
        return self.num_experts + self.redundant


class LayerInputs(Frozen):
    """A second embedding with a vector per layer: its sum with a projection of the first one joins the residual stream at the
    end of every layer (Gemma-3n, Gemma-4 E2B and E4B)."""

    width: int


Lending = Literal["own", "lent", "borrowed"]


class LayerKind(Frozen):
    """What distinguishes one layer from the next: its FFN, how it mixes tokens, and whether its attention slides and
    rotates."""

    ffn: Literal["dense", "moe", "none"] = "dense"
    sliding: bool = False
    rope: bool = True
    mixer: Literal["attention", "linear", "both", "none"] = "attention"
    """both: attention and linear attention read the same input, and their outputs are added."""
    kv: Lending = "own"
    """Whose keys and values it attends to: its own, its own that later layers read too, or those of such a layer of its type."""
    picks: Picks = "own"
    """Where attention has an indexer: whether the layer's own picks the positions to attend to, or an earlier layer's, or it
    attends to all."""

    @property
    def attends(self) -> bool:
        """Whether it has attention over all or the last positions."""
        return self.mixer in ("attention", "both")

    @property
    def recurs(self) -> bool:
        """Whether it has linear attention."""
        return self.mixer in ("linear", "both")


class ModelSpec(Frozen):
    """A decoder-only transformer. `layers()` is the only place that knows which layer is which kind."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    attention: Attention
    sliding_attention: Attention | None = None
    """What layers that slide have instead, where their heads are others (Gemma-4, MiMo-V2)."""
    position: Position = Position()
    mlp: MLP | None = None
    moe: MoE | None = None
    moe_layers: tuple[bool, ...] | None = None
    """Per layer, whether its FFN is the MoE; None means all when `moe` is set, none otherwise."""
    sliding_layers: tuple[bool, ...] | None = None
    """Per layer, whether sliding/chunked attention applies; None means none (all, when sliding_window is set)."""
    linear: LinearAttention | None = None
    linear_layers: tuple[bool, ...] | None = None
    """Per layer, whether linear attention takes the place of attention; None means none."""
    beside_attention: bool = False
    """In these layers it stands beside attention instead, and the two outputs are added (Falcon-H1)."""
    mixer_layers: tuple[bool, ...] | None = None
    """Per layer, whether it mixes tokens at all; None means every layer (Nemotron-H has layers that are an FFN alone)."""
    ffn_layers: tuple[bool, ...] | None = None
    """Per layer, whether it has an FFN; None means every layer (Nemotron-H has layers that are a mixer alone)."""
    kv_layers: tuple[Lending, ...] | None = None
    """Per layer, whose keys and values it attends to; None means each its own (Gemma-4 E2B and E4B: the last ones borrow)."""
    borrower_mlp_size: int | None = None
    """FFN width of layers that borrow keys and values, where it is another."""
    layer_inputs: LayerInputs | None = None
    indexer_layers: tuple[Picks, ...] | None = None
    """Per layer, whose indexer picks its positions; None means its own. Some share what the last one before them picked
    (GLM-5.2), some attend to everything (MiniMax-M3's first ones)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_affine: bool = True
    """Whether norms have weights (OLMo-1: none)."""
    norm_offset: float = 0.0
    """Added to the norm's weight (Gemma: 1)."""
    embedding_norm: bool = False
    """A norm directly after the embedding (BLOOM)."""
    block: Literal["sequential", "parallel", "sandwich", "post", "summed"] = "sequential"
    """parallel: attention and MLP read the same norm and are added together (GPT-J, Falcon-7B, phi-2).
    sandwich: norms before and after each half (Gemma-2/3). post: norms only after each half (OLMo-2).
    summed: a norm over each residual sum and none at the end (GPT-1)."""
    parallel_norms: int = 1
    """Norms in a parallel block (Falcon-40B/180B and GPT-NeoX: 2)."""
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    layer_scale: bool = False
    """What a layer hands on is multiplied by a learned scalar (Gemma-4)."""
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    weight_dtype: DType = "bf16"
    """Native dtype of the released checkpoint's matrices."""
    quantized_experts_only: bool = False
    """Native quantisation covers the routed experts only (gpt-oss: mxfp4 experts, bf16 attention)."""
    quant_group: int | None = None
    """Block or group size of the quantisation along both/contracted dims (block-FP8: 128)."""
    declared_parameters: float | None = None
    declared_active_parameters: float | None = None
    max_context: int | None = None
    unsupported: tuple[str, ...] = ()
    """Why the operator graph of this model is refused, if it is ("linear attention layers")."""
    doubt: str | None = None
    """What is not known of its blocks and was read by likeness, if anything."""
    architecture: str | None = None
    """HF architecture class, for engines' legality rules."""
    sources: tuple[str, ...] = ()
    confidence: Literal["high", "medium", "low"] = "high"

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.mlp is None and self.moe is None:
            raise ValueError(f"{self.name}: a model needs an mlp or a moe")
        for label in (
            "moe_layers",
            "sliding_layers",
            "linear_layers",
            "mixer_layers",
            "ffn_layers",
            "indexer_layers",
            "kv_layers",
        ):
            flags = getattr(self, label)
            if flags is not None and len(flags) != self.num_hidden_layers:
                raise ValueError(f"{label} has {len(flags)} entries for {self.num_hidden_layers} layers")
        self._pickers_consistent()
        self._lenders_consistent()
        own = self.sliding_attention
        if own and (own.mla or self.attention.mla or own.num_heads != self.attention.num_heads):
            raise ValueError(
                f"layers that slide have {own.num_heads} heads, the others {self.attention.num_heads}; both need plain attention "
                "with equally many query heads"
            )
        if self.mixer_layers and self.ffn_layers:
            empty = [
                i for i, halves in enumerate(zip(self.mixer_layers, self.ffn_layers, strict=True)) if not any(halves)
            ]
            if empty:
                raise ValueError(f"layers {empty} have neither a mixer nor an FFN")
        return self

    def _lenders_consistent(self) -> None:
        lent: set[bool] = set()
        for kind in self.layers() if self.kv_layers else ():
            lent |= {kind.sliding} if kind.kv == "lent" else set()
            if kind.kv == "borrowed" and kind.sliding not in lent:
                raise ValueError("a layer borrows keys and values, and no layer of its type before it lends any")

    def _pickers_consistent(self) -> None:
        picked = [x for x in self.indexer_layers or () if x != "none"]
        if picked and picked[0] == "shared":
            raise ValueError("the first layer that shares positions has no layer before it that picks some")
        ix, kv = self.attention.indexer, self.attention.num_kv_heads
        if ix and ix.block and ix.num_heads != kv:
            raise ValueError(
                f"an indexer of {ix.num_heads} heads picks blocks for {kv} KV heads; there must be one each"
            )

    def layer_kind(self, index: int) -> LayerKind:
        moe = self.moe is not None and (self.moe_layers is None or self.moe_layers[index])
        ffn: Literal["dense", "moe", "none"] = "moe" if moe else "dense"
        if self.ffn_layers is not None and not self.ffn_layers[index]:
            ffn = "none"
        if self.mixer_layers is not None and not self.mixer_layers[index]:
            return LayerKind(ffn=ffn, rope=self.position.kind == "rope", mixer="none")
        windowed = self.attention.sliding_window is not None or self.attention.chunk_size is not None
        recurs = self.linear is not None and self.linear_layers is not None and self.linear_layers[index]
        if recurs and not self.beside_attention:
            return LayerKind(ffn=ffn, rope=self.position.kind == "rope", mixer="linear")
        sliding = windowed and (self.sliding_layers is None or self.sliding_layers[index])
        rope = self.position.kind == "rope" and (self.position.rope_layers is None or self.position.rope_layers[index])
        listed = self.indexer_layers if self.attention.indexer else None
        picks: Picks = listed[index] if listed else "own"
        kv: Lending = self.kv_layers[index] if self.kv_layers else "own"
        mixer: Literal["attention", "both"] = "both" if recurs else "attention"
        return LayerKind(ffn=ffn, sliding=sliding, rope=rope, mixer=mixer, picks=picks, kv=kv)

    def layers(self) -> tuple[LayerKind, ...]:
        return tuple(self.layer_kind(i) for i in range(self.num_hidden_layers))

    def attention_of(self, kind: LayerKind) -> Attention:
        """Attention of a layer of this kind."""
        return self.sliding_attention if kind.sliding and self.sliding_attention else self.attention

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention there is: one, or that of full layers and that of layers that slide."""
        return (self.attention, self.sliding_attention) if self.sliding_attention else (self.attention,)

    @property
    def cache_heads(self) -> tuple[int, ...]:
        """Heads along which tp can split the cache, of every attention there is (MLA: the latent is copied, so heads as
        such)."""
        return tuple(a.num_heads if a.mla else a.num_kv_heads for a in self.attentions)


class Quantization(Frozen):
    """The dtypes a plan runs with."""

    weights: DType = "bf16"
    kv_cache: DType = "bf16"
    activations: DType = Field(default="bf16")


def with_nodes(model: ModelSpec, nodes: int) -> ModelSpec:
    """The model as a deployment dispatches it: tokens go to `nodes` groups of devices first."""
    if model.moe is None or model.moe.nodes == nodes:
        return model
    return model.model_copy(update={"moe": model.moe.model_copy(update={"nodes": nodes})})


def with_redundant(model: ModelSpec, copies: int) -> ModelSpec:
    """The model as a deployment holds it: with `copies` further copies of its experts."""
    if model.moe is None or model.moe.redundant == copies:
        return model
    return model.model_copy(update={"moe": model.moe.model_copy(update={"redundant": copies})})
