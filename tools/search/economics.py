"""Cost and energy of a strategy, and of the best one on each kind of device that the conditions name.

price per million tokens = devices · price per hour / (tokens/s · 3600 / 10⁶)      tokens/J = tokens/s / (devices · rated watts)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tools.cost.curves import Curves
from tools.cost.estimate import estimate
from tools.engines.rules.devices import engine_on
from tools.search.explain import binding_of
from tools.search.objective import choose_objective
from tools.search.rank import explore, order
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster, Device
from tools.spec.plan import Candidate, Economics, Estimate, Setting, Unit


def economics(deployment: Deployment, e: Estimate, setting: Setting = "stated") -> Economics:
    """Figures of one estimate; what price or power is not known stays None."""
    d, n = deployment, e.num_devices
    device = d.cluster.device
    # An estimate under a stated rate is judged at the peak; devices are paid for on average.
    mean = d.workload.peak_factor if d.workload.request_rate is not None else 1.0
    output, total = e.output_tok_s / mean, e.total_tok_s / mean
    price, power = d.prices.get(device.id), device.power_watts
    per_hour = None if price is None else price * n
    watts = None if power is None else power * n

    def million(tok_s: float) -> float | None:
        return None if per_hour is None or tok_s <= 0 else per_hour / (tok_s * 3600 / 1e6)

    return Economics(
        device=device.id, setting=setting, num_devices=n, strategy=e.strategy.label(d.model.moe is not None),
        feasible=e.feasible, ttft_s=_finite(e.ttft_s), tpot_s=_finite(e.tpot_s), output_tok_s=output, total_tok_s=total,
        capacity_tok_s=e.capacity_tok_s, price_per_device_hour=price, price_per_hour=per_hour, currency=d.currency,
        price_per_million_output=million(output), price_per_million_total=million(total), power_watts=watts,
        output_tokens_per_joule=output / watts if watts else None,
        total_tokens_per_joule=total / watts if watts else None,
    )  # fmt: skip


def fleet_economics(d: Deployment, c: Candidate) -> Economics:
    """Figures of groups of devices together: prices and rated power summed over the devices of every kind."""
    used: dict[str, int] = {}
    for u in c.units:
        for cluster in unit_stages(u):
            used[cluster.device.id] = used.get(cluster.device.id, 0) + u.strategy.group * u.strategy.dp
    kinds = {cluster.device.id: cluster.device for u in c.units for cluster in u.clusters}
    known = all(kinds[k].power_watts for k in used)
    watts = sum(n * (kinds[k].power_watts or 0.0) for k, n in used.items()) if known else None
    priced = all(k in d.prices for k in used)
    per_hour = sum(n * d.prices[k] for k, n in used.items()) if priced else None
    n = c.estimate.num_devices
    one = Device.model_construct(id=" + ".join(f"{m} x {k}" for k, m in used.items()), power_watts=watts and watts / n)
    cluster = d.cluster.model_copy(update={"device": one})
    prices = {one.id: per_hour / n} if per_hour is not None else {}
    return economics(d.model_copy(update={"cluster": cluster, "prices": prices}), c.estimate)


def unit_stages(u: Unit) -> tuple[Cluster, ...]:
    """The cluster of every stage of a unit."""
    kinds = {c.device.id: c for c in u.clusters}
    return tuple(kinds[k] for k in u.strategy.stage_devices) or (u.clusters[0],) * u.strategy.pp


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def compare_devices(
    deployment: Deployment, curves: Curves, *, planned: Estimate | None = None
) -> tuple[Economics, ...]:
    """The best strategy on the planned cluster and on each other one: with the devices stated, with those that the same
    money pays, and, where a rate or concurrency is stated, with the fewest that serve it.

    `planned`: the estimate of the planned cluster's strategy, if it is known already.
    """
    out = [economics(deployment, planned)] if planned is not None else [best_on(deployment, curves, "stated")]
    if not deployment.other_clusters:
        return tuple(out)
    for setting, changed in _settings(deployment):
        out.append(best_on(changed, curves, setting))
    return tuple(out)


def _settings(d: Deployment) -> Iterator[tuple[Setting, Deployment]]:
    mine, w = d.cluster, d.workload
    for other in d.other_clusters:
        yield "stated", on_cluster(d, other)
    price, n = d.prices.get(mine.device.id), mine.num_devices
    for other in d.other_clusters:
        theirs = d.prices.get(other.device.id)
        if price and theirs and n is not None:
            paid = math.floor(n * price / theirs + 1e-9)
            if paid >= 1 and paid != other.num_devices:
                yield "same_price", on_cluster(d, other.model_copy(update={"num_devices": paid}))
    if n is not None and (w.request_rate is not None or w.concurrency is not None):
        for cluster in (mine, *d.other_clusters):
            ample = on_cluster(d, cluster.model_copy(update={"num_devices": None}))
            yield "fewest_devices", ample.model_copy(update={"objective": None})


def on_cluster(d: Deployment, cluster: Cluster) -> Deployment:
    """The same conditions on other devices: the engine's own back end there, 16-bit floats that they have."""
    floats = cluster.peak_flops

    def there(dtypes: tuple) -> tuple:
        return tuple("fp16" if t == "bf16" and "bf16" not in floats and "fp16" in floats else t for t in dtypes)

    engine = d.engine.model_copy(update={"name": engine_on(cluster.device, d.engine.name)})
    return d.model_copy(
        update={
            "cluster": cluster, "engine": engine, "weight_dtypes": there(d.weight_dtypes), "other_clusters": (),
            "kv_dtypes": there(d.kv_dtypes), "baseline": None, "alternatives": (),
        }
    )  # fmt: skip


def best_on(d: Deployment, curves: Curves, setting: Setting) -> Economics:
    """The best feasible strategy of `d`, or what stands in its way."""
    try:
        space, seen = explore(d, curves)
        ranked = order(space, choose_objective(d))
        if ranked:
            return economics(d, estimate(d, ranked[0].strategy(d), curves), setting)
        why = binding_of(d, curves, seen).message
    except ToolError as error:
        why = " ".join(str(error).split())
    n = d.cluster.num_devices or 0
    price = d.prices.get(d.cluster.device.id)
    return Economics(
        device=d.cluster.device.id, setting=setting, num_devices=n, feasible=False, why=why, currency=d.currency,
        price_per_device_hour=price, price_per_hour=None if price is None or not n else price * n,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Devices that can be taken, best first, and the rule that ordered them in words."""

    ranked: tuple[Economics, ...]
    words: Callable[[Economics], str]


def choice(rows: Sequence[Economics]) -> Choice | None:
    """Which device to take; None where there is nothing to choose between, or none serves the load.

    By price where every device has one: for a stated load the lowest price per hour that serves it, else the lowest
    price per million output tokens. Without prices by the fewest devices, else by output tokens/s per device. Of devices
    whose stated number serves the load none that needs more than that is taken.
    """
    devices = list(dict.fromkeys(r.device for r in rows))
    able = [r for r in rows if r.feasible]
    if len(devices) < 2 or not able:
        return None
    enough = {r.device for r in able if r.setting == "stated"} or set(devices)
    fewest = [r for r in able if r.setting == "fewest_devices" and r.device in enough]
    priced = all(any(r.device == d and r.price_per_device_hour is not None for r in rows) for d in devices)
    stated = [r for r in able if r.setting == "stated"] or able
    if priced and fewest:
        return _ordered(fewest, lambda r: r.price_per_hour or math.inf, lambda r: (
            f"{r.device} serves the load with {r.num_devices} devices for {r.price_per_hour:.4g} {r.currency} an hour"
        ))  # fmt: skip
    if priced:
        return _ordered(stated, lambda r: r.price_per_million_output or math.inf, lambda r: (
            f"{r.device} costs {r.price_per_million_output:.4g} {r.currency} per million output tokens"
        ))  # fmt: skip
    if fewest:
        return _ordered(fewest, _least_then_fastest, lambda r: f"{r.device} needs {r.num_devices} devices")
    return _ordered(stated, lambda r: -(r.output_tok_s or 0.0) / r.num_devices, lambda r: (
        f"{r.device} gives {(r.output_tok_s or 0.0) / r.num_devices:.4g} output tokens/s per device"
    ))  # fmt: skip


def _least_then_fastest(r: Economics) -> tuple[int, float]:
    return r.num_devices, -(r.capacity_tok_s or r.output_tok_s or 0.0)


def _ordered(rows: list[Economics], key: Callable[[Economics], Any], words: Callable[[Economics], str]) -> Choice:
    """Every device at its best, best first."""
    best: dict[str, Economics] = {}
    for r in sorted(rows, key=key):
        best.setdefault(r.device, r)
    return Choice(tuple(best.values()), words)


def verdict(rows: Sequence[Economics]) -> str:
    """The choice in one sentence with the numbers, those that cannot at all by name; "" where there is none to make."""
    devices = list(dict.fromkeys(r.device for r in rows))
    if len(devices) < 2:
        return ""
    found = choice(rows)
    if found is None:
        return "none of the devices named serves the load within the requirements"
    said = [found.words(r) for r in found.ranked]
    for device in devices:
        if all(r.device != device for r in found.ranked):
            there = next((r.num_devices for r in rows if r.device == device and r.setting == "stated"), 0)
            more = next((r for r in rows if r.device == device and r.setting == "fewest_devices" and r.feasible), None)
            said.append(f"{device} cannot" + (f" with {there} ({more.num_devices} would)" if more and there else ""))
    return "; ".join(said)


def on_best_device(d: Deployment, curves: Curves) -> Deployment:
    """The conditions on the device that `choice` takes of those they name to choose from; the others stand beside it."""
    found = choice(compare_devices(d, curves)) if d.other_clusters else None
    if found is None or found.ranked[0].device == d.cluster.device.id:
        return d
    best = found.ranked[0].device
    cluster = next(c for c in d.other_clusters if c.device.id == best)
    others = tuple(c for c in (d.cluster, *d.other_clusters) if c.device.id != best)
    return on_cluster(d, cluster).model_copy(
        update={"other_clusters": others, "baseline": d.baseline, "alternatives": d.alternatives}
    )
