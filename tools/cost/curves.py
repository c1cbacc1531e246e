"""The constants of the cost model as one value. They live in knowledge/curves/, each with its source."""

from __future__ import annotations

import math
import re

from pydantic import ConfigDict, Field

from tools.cost.calibration import Calibration
from tools.cost.operators import Operators, Provenance
from tools.spec.base import Frozen
from tools.spec.hardware import Cluster, Device


class DeviceCurve(Frozen):
    """Fractions of the datasheet that kernels of one device generation reach, and latencies they cannot go below."""

    name: str
    arch: tuple[str, ...]
    """Prefixes of `Device.arch`, lower case, that use this curve."""
    gemm: dict[str, float]
    """Large dense GEMM: fraction of the dense peak, by compute dtype."""
    memory: float
    """Large copies: fraction of the memory bandwidth."""
    gather_memory: float
    """Embedding rows, dispatch and combine: fraction of the memory bandwidth."""
    cache_bytes: float
    """Last-level cache: activations that one kernel writes and the next reads stay there if they are small enough."""
    cache_speed: float
    """Bandwidth of that cache over the memory's."""
    kernel_latency_s: float
    """Shortest time of one kernel inside a captured graph, launch gap included."""
    launch_s: float = 0.0
    """Part of a kernel's time, measured alone, that disappears in a captured graph, where the next kernel's launch and
    prologue overlap the end of the one before."""
    relatives: tuple[str, ...] = ()
    """Measured devices of this generation, whose operator tables serve its other members."""
    tile_n: int
    """Columns of a GEMM tile: n is rounded up to it."""
    overlap: float
    """Exponent p of (t_compute^p + t_memory^p)^(1/p): how well loads hide behind math (infinity: perfectly)."""
    source: str
    measured: bool = True
    """False: no measurements of this generation, taken from its nearest relative."""


class KernelCurve(Frozen):
    """How one kind of kernel falls short of its generation's large GEMMs and copies, whatever the generation."""

    compute: float = 1.0
    """Fraction of the FLOP/s that the generation's large dense GEMMs reach."""
    memory: float = 1.0
    """Fraction of the bytes/s that its large copies reach."""
    latency_s: float = 0.0
    """Time beyond the shortest kernel's that it takes however little it does: its prologue, its reduction, its quantisation,
    and the smaller kernels that come with it."""
    position_s: float = 0.0
    """Per position of a sequence, where a recurrence works them off one chunk after another."""


class LinkCurve(Frozen):
    """α–β efficiency of one kind of link."""

    name: str
    kinds: tuple[str, ...]
    """Prefixes of `Device.link`, lower case."""
    ring: float
    """Fraction of the one-way bandwidth that ring algorithms reach for large messages (bus bandwidth)."""
    one_shot: float
    """Fraction that peers reach when everybody reads from everybody at once; 0: not possible on this link."""
    in_network: float = 0.0
    """Speed-up of all-reduce when the switch reduces (NVLS); 0: the switch cannot."""
    latency_s: float
    """Of starting one collective."""
    hop_s: float
    """Of each further hop of a ring."""
    one_shot_latency_s: float = 0.0
    peer_s: float = 0.0
    """Of each further peer that is read at once, where all share one bus."""
    measured: str = ""
    """Device whose measured collectives serve this kind of link."""
    source: str


class EngineCurve(Frozen):
    """What a serving engine adds to the kernels, and how it schedules."""

    name: str
    step_s: float
    """Scheduling, input preparation and sampling per step that no kernel hides."""
    per_sequence_s: float
    """The same, per sequence of the step."""
    prefill_s: float = 0.0
    """Admission, tokenisation, first-token round trip per request (in TTFT only)."""
    launch_s: float = 0.0
    """Host time per kernel of a pass that is not a captured graph (prefill): the first token cannot come sooner."""
    eager: float = 1.0
    """Time of a prefill pass over its kernels': it is no captured graph, and its permutations, quantisations and gaps, which
    the kernels' tables leave out, grow with its tokens."""
    handoff_s: float = 0.0
    """Of a request from a prefill to a decode worker, besides its KV cache: routing, connection, admission."""
    attn_dp_wait_steps: float = 0.0
    """Steps that an attention-DP scheduler holds a prompt back to balance ranks, where a benchmark turns that on."""
    before: tuple[int, int] | None = None
    """Holds for versions below this one (major, minor); None: the current ones."""
    mixed: bool
    """Prefill chunks ride in the same step as decodes (chunked prefill); False: a step is one or the other."""
    reserve_output: bool = False
    """KV for the whole output is reserved when a request starts (no eviction)."""
    memory_fraction: float = 0.9
    """Fraction of what weights and activations leave that becomes KV cache, for engines without accounting rules."""
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 1024
    source: str


class Band(Frozen):
    """Residual quantile of one metric: a relative half-width, and the signed median."""

    band: float
    """For a device whose operators were measured."""
    nearest: float = 0.0
    """For one priced by the tables of its generation."""
    datasheet: float = 0.0
    """For one of a generation that nobody measured."""
    bias: float = 0.0
    rows: int = 0
    source: str = ""


class MoECurve(Frozen):
    """Routing is not uniform: the busiest expert rank sets the pace."""

    skew: float
    """Relative excess of the busiest rank's load over balls-into-bins, at high expert parallelism."""
    source: str


class ColdStart(Frozen):
    """A closed-loop benchmark starts with all requests at once, and similar lengths keep them in step for a while."""

    share: float
    """Part of the last request's burst TTFT that the mean over such a run keeps."""
    source: str


class Curves(Frozen):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    operators: Operators | None = Field(default=None, exclude=True, repr=False)
    """Measured operators; None: everything from the datasheet curves below."""
    devices: tuple[DeviceCurve, ...]
    kernels: dict[str, KernelCurve]
    """By kind of kernel (`Work.kind`; gemm_quantised: activations below 16 bits; mla_decode: decode attention on latents)."""
    links: tuple[LinkCurve, ...]
    engines: tuple[EngineCurve, ...]
    moe: MoECurve
    cold_start: ColdStart
    bands: dict[str, Band]
    calibration: Calibration | None = None
    """This cluster's own measurements; None: the curves as committed."""

    def device(self, device: Device) -> DeviceCurve:
        """Curve of the device's generation; the last one in the list serves what nothing matches."""
        arch = device.arch.lower()
        return next((c for c in self.devices if arch.startswith(c.arch)), self.devices[-1])

    def calibrated(self, c: Calibration) -> Curves:
        """The curves of the cluster that `c` was measured on."""
        times = ("step_s", "per_sequence_s", "prefill_s", "launch_s")
        engines = tuple(
            e.model_copy(update={t: getattr(e, t) * c.step.factor for t in times})
            if not c.engines or e.name in c.engines
            else e
            for e in self.engines
        )
        return self.model_copy(update={"engines": engines, "calibration": c})

    def calibration_of(self, device: Device) -> Calibration | None:
        c = self.calibration
        return c if c is not None and device.id in c.devices else None

    def relative(self, device: Device) -> tuple[str, Provenance]:
        """(measured device whose operator tables price `device`, how near it is)."""
        if self.operators is None:
            return "", "datasheet"
        return self.operators.relative(device, self.device(device).relatives)

    def link(self, kind: str) -> LinkCurve:
        return next((c for c in self.links if kind.lower().startswith(c.kinds)), self.links[-1])

    def at_version(self, engine: str, version: str) -> Curves:
        """The curves with `engine` as it was at `version` ("0.12.0"; what has no number is taken as current)."""
        found = re.search(r"(\d+)\.(\d+)", version)
        if found is None:
            return self
        now = (int(found[1]), int(found[2]))
        older = [
            c.model_copy(update={"before": None})
            for c in self.engines
            if c.name == engine and c.before is not None and now < c.before
        ]
        return self.model_copy(update={"engines": (*older, *self.engines)}) if older else self

    def engine(self, name: str) -> EngineCurve:
        found = next((c for c in self.engines if c.name == name and c.before is None), None)
        if found is None and any(c.name == name.split("-")[0] for c in self.engines):
            # A plugin ("vllm-ascend") keeps its engine's scheduler.
            parent = self.engine(name.split("-")[0])
            return parent.model_copy(
                update={"name": name, "source": f"as {parent.name}, whose scheduler it is; not measured"}
            )
        return found or self._typical(name)

    def _typical(self, name: str) -> EngineCurve:
        """An engine that nobody measured: the geometric mean of the measured ones' overheads, scheduled as vLLM."""
        current = [c for c in self.engines if c.before is None]
        base = next((c for c in current if c.name == "vllm"), current[0])
        fields = ("step_s", "per_sequence_s", "prefill_s", "launch_s", "eager")
        mean = {f: math.exp(sum(math.log(max(getattr(c, f), 1e-9)) for c in current) / len(current)) for f in fields}
        source = f"not measured: mean of {', '.join(c.name for c in current)}"
        return base.model_copy(update={**mean, "name": name, "source": source})

    def band(self, metric: str, cluster: Cluster) -> Band:
        """Band of `metric` on this device, by how its kernels are priced."""
        band, (relative, provenance) = self.bands[metric], self.relative(cluster.device)
        own = self.calibration_of(cluster.device)
        if own is not None and metric in own.bands:
            b = own.bands[metric]
            return band.model_copy(update={"band": b.band, "bias": 0.0, "rows": b.rows, "source": own.source})
        if provenance == "measured":
            return band
        if provenance == "nearest generation":
            wider, why = max(band.nearest, band.band), f"priced as {relative}"
        else:
            wider, why = max(band.datasheet, band.band), "no measured relative: datasheet curve"
        return band.model_copy(update={"band": wider, "source": f"{band.source}; {why}"})
