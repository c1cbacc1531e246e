"""What the search answers and what a run publishes."""

from __future__ import annotations

from typing import Any, Literal

from tools.spec.base import Frozen
from tools.spec.deployment import Assumption, Deployment, Objective
from tools.spec.finding import Cause, Finding
from tools.spec.hardware import Cluster
from tools.spec.strategy import Phase, Strategy
from tools.spec.term import Breakdown, Prediction


class StageMemory(Frozen):
    """Bytes per rank of one pipeline stage (its fullest rank)."""

    stage: int
    group: str = ""
    """Device group of these ranks where a stage has several: "attention", "experts", "pool" (both: "attention+pool")."""
    ranks: int
    layers: int
    weights_bytes: float
    kv_bytes: float
    activation_bytes: float
    overhead_bytes: float
    reserve_bytes: float
    capacity_bytes: float
    terms: Breakdown

    @property
    def where(self) -> str:
        """ "stage 0", or "stage 0, experts" where a stage has several device groups."""
        return f"stage {self.stage}" + (f", {self.group.replace('+', ' and ')}" if self.group else "")

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes + self.reserve_bytes

    @property
    def free_bytes(self) -> float:
        return self.capacity_bytes - self.total_bytes


class ModuleParts(Frozen):
    """How one module is divided: d distinct shards, shard i in c copies; Σ copies = devices that host it x shards per device."""

    module: str
    weight: str
    global_dims: dict[str, int]
    local_dims: dict[str, int]
    axis: str
    """Axes that split it, in words: "heads over tp(8)"."""
    collective: str
    """What restores it: "all-reduce after o_proj over tp"; "" if nothing has to."""
    num_shards: int
    copies: int
    devices: int
    layers: int
    matches: bool
    sentence: str


class Estimate(Frozen):
    """Predicted performance of one strategy at one operating point. Times in seconds; bands relative."""

    strategy: Strategy
    feasible: bool
    findings: tuple[Finding, ...]
    ttft_s: float
    tpot_s: float
    ttft_percentiles: dict[str, float]
    tpot_percentiles: dict[str, float]
    e2e_s: float
    output_tok_s: float
    total_tok_s: float
    input_tok_s: float
    num_devices: int
    concurrency: int
    """Requests in flight over the whole deployment."""
    batch: int
    """Decode sequences per replica."""
    request_rate: float
    max_batch: int
    """Most sequences per replica that memory and engine limits allow."""
    capacity_tok_s: float | None = None
    """Output tokens/s at full batch; under a stated rate more than what is served."""
    burst_ttft_s: float
    """TTFT of the last request when all `concurrency` requests arrive at once."""
    predictions: tuple[Prediction, ...]
    memory: tuple[StageMemory, ...]
    breakdown: dict[str, Breakdown]
    """"ttft" and "tpot": where the time of one prefill and of one decode step goes."""
    utilisation: dict[str, float]
    """compute, memory, network, busy: shares of 0..1."""
    time_imbalance: float
    memory_imbalance: float
    """max/mean over devices, of step time and of bytes."""

    @property
    def output_tok_s_per_device(self) -> float:
        return self.output_tok_s / self.num_devices


class Change(Frozen):
    """The nearest change of the conditions that makes a plan possible; `deployment` is the conditions with it applied."""

    description: str
    kind: Literal[
        "devices",
        "ttft",
        "tpot",
        "throughput",
        "weight_dtype",
        "kv_dtype",
        "context",
        "memory",
        "rate",
        "engine",
        "batch",
    ]
    value: float | str
    deployment: Deployment


class Infeasible(Frozen):
    """Proven: the whole space was enumerated and every strategy breaks something. `binding` names it with its numbers."""

    cause: Cause
    binding: Finding
    findings: tuple[Finding, ...]
    nearest: tuple[Change, ...]
    num_searched: int
    closest: Estimate | None = None


class WhatIf(Frozen):
    """Marginal value of one change: "one more device", "TTFT limit +20 %", "fp8 weights"."""

    description: str
    strategy: str
    objective_value: float
    relative_gain: float


Setting = Literal["stated", "same_price", "fewest_devices"]


class Economics(Frozen):
    """What the best strategy on one kind of device delivers, costs and draws. All predicted but price and power.

    Prices are of devices alone, power is the devices' rated limit (hosts, network and cooling left out): the energy
    figure is a lower bound on tokens per joule.
    """

    device: str
    setting: Setting
    """stated: the number of devices given; same_price: as many as the planned cluster's price pays; fewest_devices: the
    fewest that serve the stated load within the requirements."""
    num_devices: int
    strategy: str = ""
    feasible: bool
    why: str = ""
    """What binds where nothing is feasible."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    output_tok_s: float | None = None
    """Of the load that is served; at the mean of the load where a peak factor is stated."""
    total_tok_s: float | None = None
    capacity_tok_s: float | None = None
    """Output tokens/s at full batch."""
    price_per_device_hour: float | None = None
    price_per_hour: float | None = None
    currency: str = "USD"
    price_per_million_output: float | None = None
    price_per_million_total: float | None = None
    power_watts: float | None = None
    """Rated limit of all devices together; None: the catalogue does not know it."""
    output_tokens_per_joule: float | None = None
    total_tokens_per_joule: float | None = None


class Flip(Frozen):
    """One uncertain input, moved within its band, that makes another strategy the best."""

    input: str
    change: float
    """Factor on what it stands for (1.2: takes 20 % longer, or is 20 % more)."""
    winner: str
    top_value: float | None
    """Objective of the plan then; None: it breaks a requirement or cannot serve the load."""
    winner_value: float
    why: str


class Experiment(Frozen):
    """What to measure to know which of two strategies is better."""

    first: Strategy
    second: Strategy
    load: str
    metric: str
    predicted: tuple[float, float]
    """Of first and second, in `unit`."""
    unit: str
    decides: str


class Sensitivity(Frozen):
    """How sure the choice is: the runner-up's distance, and what within the error bands would turn it."""

    top: str
    runner_up: str = ""
    gap: float = 0.0
    """How much less of the objective the runner-up reaches, relative."""
    band: float
    """Relative half-width by which each input was moved."""
    varied: tuple[str, ...] = ()
    compared: int
    """Strategies that were priced again at every change."""
    flips: tuple[Flip, ...] = ()
    experiment: Experiment | None = None

    @property
    def stable(self) -> bool:
        return not self.flips


class Unit(Frozen):
    """Devices with a strategy of their own beside others in one plan: all replicas on one kind of device, or one pipeline over
    several kinds."""

    name: str
    clusters: tuple[Cluster, ...]
    """The kinds of devices it runs on; several: its pipeline's stages name theirs."""
    share: float
    """Of the requests, what a router sends here."""
    in_flight: int | None = None
    """Of a stated number of requests in flight, how many are here."""
    phases_run: tuple[Phase, ...] = ("prefill", "decode")
    """One of them: a pool whose requests come from, or go on to, the other unit."""
    estimate: Estimate
    """Predicted under its share of the load."""

    @property
    def strategy(self) -> Strategy:
        return self.estimate.strategy


class Candidate(Frozen):
    rank: int
    estimate: Estimate
    objective_value: float
    reason: str = ""
    """Why it is where it is relative to the best one: the number that decided."""
    units: tuple[Unit, ...] = ()
    """Where it is several strategies side by side: each with its share of the requests. `estimate` is then of all together,
    its `strategy` that of the unit with most devices."""


class Fleet(Frozen):
    """One way to group the kinds of devices: the candidate it gives, or why it gives none."""

    groups: tuple[str, ...]
    """Device ids, joined by + where one pipeline has stages on several kinds; devices of other kinds stay idle."""
    candidate: Candidate | None = None
    why: str = ""


class Pooled(Frozen):
    """Prefill and decode on pools of their own: rates in closed form, means the slower of closed form and simulation,
    percentiles of simulated requests. `dp` of a strategy is its number of workers."""

    prefill: Strategy
    decode: Strategy
    num_devices: int
    concurrency: int
    """Requests in flight over both pools."""
    ttft_s: float
    tpot_s: float
    request_rate: float
    output_tok_s: float
    prefill_busy: float
    """Share of the prefill pool's time that is used."""
    meets: bool
    """Every requirement, and the connector joins the pools."""
    ttft_percentiles: dict[str, float] = {}
    tpot_percentiles: dict[str, float] = {}
    num_simulated: int = 0
    """Requests behind the percentiles."""
    gain: float | None = None
    """Output tokens/s over those of the best single pool, minus 1."""
    least_gain: float = 0.0
    """Gain from which on two pools are better even where both predictions are off by their band, in opposite directions."""
    findings: tuple[Finding, ...] = ()


class SearchResult(Frozen):
    objective: Objective
    best: Candidate | None
    ranked: tuple[Candidate, ...]
    """Feasible candidates, best first, at most the number asked for."""
    pareto: tuple[Candidate, ...]
    baseline: Candidate
    """The stated baseline or the default one; priced even when it does not fit (then feasible is False)."""
    asked: tuple[Candidate, ...] = ()
    """Strategies the conditions ask about by name."""
    refused: tuple[Finding, ...] = ()
    """Those among them that cannot be laid out at all, and why."""
    infeasible: Infeasible | None = None
    num_enumerated: int
    num_legal: int
    num_fitting: int
    num_feasible: int
    seconds: float = 0.0
    what_ifs: tuple[WhatIf, ...] = ()
    fleets: tuple[Fleet, ...] = ()
    """Where there are several kinds of devices: every way to group them, feasible ones first, best first."""
    pooled: Pooled | None = None
    """The best two pools over the same devices, beside the best single one; None: not asked, or not possible."""
    devices_table: tuple[dict[str, Any], ...] = ()
    """For ample devices: devices x throughput of the best strategy at that size."""


class PlanUnit(Unit):
    """A unit as it is published: proven, placed, counted."""

    phases: dict[str, dict[str, Any]] = {}
    rank_map: tuple[dict[str, Any], ...] = ()
    """As the plan's. Ranks count through all units; in the unit's DAGs and launch files they count from `first_rank`."""
    first_rank: int = 0
    parts: tuple[ModuleParts, ...] = ()


class Plan(Frozen):
    """`plan.json`. `status` proven or infeasible; everything under `predictions` is predicted, the rest is proven."""

    schema_version: Literal["1"] = "1"
    status: Literal["proven", "infeasible"]
    headline: str
    at_risk: tuple[str, ...] = ()
    deployment: Deployment
    objective: Objective
    strategy: Strategy | None
    pools: dict[str, Strategy] = {}
    """Phase → strategy where prefill and decode have devices of their own; `strategy` is then the prefill's."""
    units: tuple[PlanUnit, ...] = ()
    """Where the plan uses other devices than the main kind: its groups of devices, each with its strategy and its share of
    the requests. `strategy`, `phases`, and `parts` are then those of the one with most devices, `estimate` is of all."""
    phases: dict[str, dict[str, Any]] = {}
    """prefill / decode: batch, tokens, digest of the per-device graph, proof."""
    num_devices: int = 0
    rank_map: tuple[dict[str, Any], ...] = ()
    """One row per stage and replica: ranks, node, axes."""
    parts: tuple[ModuleParts, ...] = ()
    estimate: Estimate | None = None
    runner_up: Estimate | None = None
    baseline: Estimate | None = None
    asked: tuple[Estimate, ...] = ()
    what_ifs: tuple[WhatIf, ...] = ()
    sensitivity: Sensitivity | None = None
    economics: tuple[Economics, ...] = ()
    """Cost and energy: the plan first, then the other devices that the conditions name, each under the same conditions."""
    infeasible: Infeasible | None = None
    assumptions: tuple[Assumption, ...] = ()
    conflicts: tuple[dict[str, Any], ...] = ()
    ignored: tuple[dict[str, Any], ...] = ()
    """Sections of the inputs that the plan does not need: section, why."""
    degraded: tuple[str, ...] = ()
    """Nodes that the built-in policy answered because the LLM did not."""
    findings: tuple[Finding, ...] = ()
    fleets: tuple[Fleet, ...] = ()
    """Every way to group several kinds of devices, feasible ones first, best first."""
    pooled: Pooled | None = None
    """The best prefill and decode pools over the main kind of devices, beside the plan."""
    search: dict[str, Any] = {}
    proposal: dict[str, Any] = {}
    """What the LLM or the policy proposed, its justification, and its regret against the search's best."""
    knowledge: tuple[dict[str, Any], ...] = ()
    """Passages that were used: id, file:line, title."""
