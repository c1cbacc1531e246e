"""Distils measured operator times into the efficiency tables of knowledge/curves/operators.npz.

Source: the Apache-2.0 package aiconfigurator-core 0.12 (12.6 million operator times, parquet), unpacked anywhere:

    pip download --no-deps "aiconfigurator-core==0.12.*" && unzip -q aiconfigurator_core-*.whl -d DIR
    pip install pandas pyarrow scipy
    python benchmarks/distil_operators.py DIR/aiconfigurator_core/systems/data

Only operator times are read, never its end-to-end points. For each (kind, device, framework, dtype) the newest version's
rows are reduced to a table on a logarithmic grid: the least-squares fit of ln(efficiency) by multilinear interpolation,
with a light smoothness prior that fills grid points without data. Residuals are written beside the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from scipy.sparse import coo_matrix, vstack
from scipy.sparse.linalg import spsolve

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.cost.tables import corners, interpolate  # noqa: E402

DEVICES = {
    "a100_sxm": "a100_sxm_80gb", "h100_sxm": "h100_sxm_80gb", "h200_sxm": "h200_sxm_141gb", "b200_sxm": "b200_sxm_180gb",
    "b300_sxm": "b300_sxm_288gb", "gb200": "gb200_nvl72_186gb", "gb300": "gb300_nvl72_288gb", "l40s": "l40s_48gb",
    "rtx_pro_6000_server": "rtx_pro_6000_server_96gb",
}  # fmt: skip
GEMM_DTYPES = {  # measured name: (weight bytes, activation bytes, dtype of the matrix unit, our name)
    "bfloat16": (2, 2, "bf16", "bf16"), "fp8": (1, 1, "fp8", "fp8"), "fp8_block": (1, 1, "fp8", "fp8_block"),
    "nvfp4": (0.5625, 0.5625, "fp4", "nvfp4"), "int8_wo": (1, 2, "bf16", "int8"), "int4_wo": (0.53, 2, "bf16", "int4"),
    "w4a16_mxfp4": (0.53, 2, "bf16", "mxfp4"), "w4a8_mxfp4_mxfp8": (0.53, 1, "fp8", "mxfp4_fp8"),
}  # fmt: skip
SKEW = "power_law_1.01"
"""Routing skew of the measured MoE times that we take as typical."""
SCALE = 50
"""Tables are stored as SCALE x ln(efficiency), rounded: 1 % at worst."""
POW2 = [2.0**i for i in range(24)]
GRIDS: dict[str, dict[str, list[float]]] = {
    "gemm": {
        "m": [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 16384],
        "n": [*POW2[7:15], 65536.0], "k": [*POW2[7:15], 65536.0],
    },
    "context": {"isl": POW2[4:18], "heads": POW2[0:14], "head_dim": [64, 128, 256]},
    "generation": {"context": POW2[0:18], "kv_heads": POW2[0:15], "group": [1, 2, 4, 8, 16], "head_dim": [64, 128, 256]},
    "mla_context": {"isl": POW2[4:17], "heads": POW2[0:14]},
    "mla_generation": {"context": POW2[0:17], "batch": POW2[0:11], "heads": [1, 4, 16, 32, 64, 128]},
    "moe": {"rows": [2.0**i for i in range(-6, 13)], "experts": POW2[0:9], "width": POW2[17:27:2]},
    "all_reduce": {"bytes": POW2[8:29], "ranks": [2, 4, 8]},
    "nccl": {"bytes": POW2[9:30], "ranks": [2, 4, 8]},
}  # fmt: skip


def device(system: str) -> dict:
    text = (ROOT / "knowledge" / "hardware" / f"{DEVICES[system]}.yaml").read_text(encoding="utf-8")
    d = yaml.safe_load(text)
    peaks = {k: v["value"] * 1e12 for k, v in d["peak_dense_tflops"].items()}
    return {
        "id": d["id"], "peak": peaks, "bandwidth": d["memory"]["bandwidth_gbs"]["value"] * 1e9,
        "link": d["link"]["one_way_gbs"]["value"] * 1e9,
    }  # fmt: skip


def newest(
    root: Path, system: str, kind: str, name: str, at_least: int = 50
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(framework, version, rows): per framework the newest version with at least so many usable rows."""
    base = root / system / kind
    for framework in sorted(p.name for p in base.iterdir()) if base.exists() else []:
        versions = sorted(
            (base / framework).iterdir(),
            key=lambda p: [int(x) if x.isdigit() else 0 for x in p.name.replace("rc", ".").split(".")],
        )
        for v in reversed(versions):
            path = v / f"{name}_perf.parquet"
            rows = pq.read_table(path).to_pandas() if path.exists() else pd.DataFrame()
            if len(rows) and name == "moe":
                rows = rows[(rows.distribution == SKEW) & ~rows.kernel_source.str.contains("nongated")]
            if len(rows) >= at_least:
                yield framework, v.name, rows
                break


def peak(dev: dict, dtype: str) -> float | None:
    return dev["peak"].get(dtype) or (dev["peak"].get("bf16") if dtype == "fp16" else None)


# ------------------------------------------------------------------------------- rows → (coordinates, ideal seconds)


def gemm(d: pd.DataFrame, dev: dict, dtype: str):
    wb, ab, unit, _ = GEMM_DTYPES[dtype]
    p = peak(dev, unit)
    if p is None:
        return None
    ideal = np.maximum(
        2.0 * d.m * d.n * d.k / p, (ab * d.m * d.k + wb * d.n * d.k + 2.0 * d.m * d.n) / dev["bandwidth"]
    )
    return [d.m, d.n, d.k], ideal


def context(d: pd.DataFrame, dev: dict, kv: str):
    p = peak(dev, "fp8" if kv == "fp8" and "fp8" in dev["peak"] else "bf16")
    b, s, h, g, hd = d.batch_size, d.isl, d.num_heads, d.num_key_value_heads, d.head_dim
    flops = 4.0 * b * h * hd * s * s / 2
    ideal = np.maximum(flops / p, b * s * hd * (4.0 * h + 4.0 * g) / dev["bandwidth"])
    return [s, b * h, hd], ideal


def generation(d: pd.DataFrame, dev: dict, kv: str):
    kb = 1.0 if kv == "fp8" else 2.0
    b, t, h, g, hd = d.batch_size, d.step + 1.0, d.num_heads, d.num_key_value_heads, d.head_dim
    ideal = np.maximum(
        4.0 * b * h * hd * t / dev["peak"]["bf16"], b * hd * (2 * kb * g * t + 4.0 * h) / dev["bandwidth"]
    )
    return [t, b * g, h / g, hd], ideal


def mla_context(d: pd.DataFrame, dev: dict, kv: str):
    b, s, h = d.batch_size, d.isl, d.num_heads
    flops = 2.0 * b * h * (192 + 128) * s * s / 2
    ideal = np.maximum(flops / dev["peak"]["bf16"], b * s * h * 2.0 * (192 * 2 + 128 * 2) / dev["bandwidth"])
    return [s, b * h], ideal


def mla_generation(d: pd.DataFrame, dev: dict, kv: str):
    kb = 1.0 if kv == "fp8" else 2.0
    b, t, h = d.batch_size, d.step + 1.0, d.num_heads
    flops = 2.0 * b * h * (576 + 512) * t
    ideal = np.maximum(flops / dev["peak"]["bf16"], b * (kb * 576 * t + 2.0 * h * (576 + 512)) / dev["bandwidth"])
    return [t, b, h], ideal


def moe(d: pd.DataFrame, dev: dict, dtype: str):
    wb, ab, unit, _ = GEMM_DTYPES[dtype]
    p = peak(dev, unit)
    if p is None:
        return None
    e, inter = d.num_experts / d.moe_ep_size, d.inter_size / d.moe_tp_size
    rows = d.num_tokens * d.topk / d.moe_ep_size
    touched = np.minimum(e * (1.0 - (1.0 - d.topk / d.num_experts) ** d.num_tokens), np.maximum(rows, 1.0))
    flops, weights = 6.0 * rows * d.hidden_size * inter, 3.0 * touched * d.hidden_size * inter * wb
    ideal = np.maximum(flops / p, (weights + rows * (ab + 2.0) * d.hidden_size) / dev["bandwidth"])
    return [rows / e, e, d.hidden_size * inter], ideal


def collective(d: pd.DataFrame, dev: dict, op: str):
    """message_size counts 2-byte elements: the whole buffer of an all-reduce, the gathered side of the others."""
    n, size = d.num_gpus, 2.0 * d.message_size
    factor = 2.0 if op == "all_reduce" else 1.0
    return [size, n], factor * (n - 1) / n * size / dev["link"]


# ------------------------------------------------------------------------------------------------------------- fitting


def fit(kind: str, points: list[np.ndarray], log_eff: np.ndarray, smooth: float = 0.02) -> np.ndarray:
    """Grid values whose multilinear interpolation is nearest to the data, second differences kept small."""
    grids = [np.log(np.array(g, float)) for g in GRIDS[kind].values()]
    shape = tuple(len(g) for g in grids)
    index, fraction = corners(grids, points)
    rows, cols, vals = [], [], []
    for corner in range(1 << len(grids)):
        w, at = np.ones(len(log_eff)), []
        for axis, (i, f) in enumerate(zip(index, fraction, strict=True)):
            up = corner >> axis & 1
            w = w * (f if up else 1.0 - f)
            at.append(np.minimum(i + up, shape[axis] - 1))
        rows.append(np.arange(len(log_eff)))
        cols.append(np.ravel_multi_index(at, shape))
        vals.append(w)
    size = int(np.prod(shape))
    a = coo_matrix(
        (np.concatenate(vals), (np.concatenate(rows), np.concatenate(cols))), shape=(len(log_eff), size)
    ).tocsr()
    prior = vstack([smoothness(shape, axis) for axis in range(len(shape)) if shape[axis] > 1])
    weight = smooth * len(log_eff) / size
    normal = (
        a.T @ a
        + weight * prior.T @ prior
        + 1e-9 * coo_matrix((np.ones(size), (range(size), range(size))), shape=(size, size))
    ).tocsc()
    return np.minimum(spsolve(normal, a.T @ log_eff).reshape(shape), 0.15)


def smoothness(shape: tuple[int, ...], axis: int):
    """First and second differences along one axis (first ones light: they only fill what has no data)."""
    flat = np.arange(int(np.prod(shape))).reshape(shape)
    lo, hi = np.take(flat, range(shape[axis] - 1), axis).ravel(), np.take(flat, range(1, shape[axis]), axis).ravel()
    first = coo_matrix(
        (
            np.concatenate([-np.full(len(lo), 0.1), np.full(len(hi), 0.1)]),
            (np.tile(np.arange(len(lo)), 2), np.concatenate([lo, hi])),
        ),
        shape=(len(lo), flat.size),
    )
    if shape[axis] < 3:
        return first
    a, b, c = (np.take(flat, range(i, shape[axis] - 2 + i), axis).ravel() for i in range(3))
    n = np.arange(len(a))
    second = coo_matrix(
        (
            np.concatenate([np.ones(len(a)), -2 * np.ones(len(b)), np.ones(len(c))]),
            (np.tile(n, 3), np.concatenate([a, b, c])),
        ),
        shape=(len(a), flat.size),
    )
    return vstack([first, second])


class Distiller:
    def __init__(self, root: Path):
        self.root = root
        self.arrays: dict[str, np.ndarray] = {}
        self.meta: dict[str, dict] = {}

    def add(self, kind: str, key: str, made, rows: pd.DataFrame, version: str) -> None:
        if made is None or len(rows) < 12:
            return
        coords, ideal = made
        ok = (rows.latency.to_numpy() > 0) & np.isfinite(np.asarray(ideal))
        points = [np.log(np.maximum(np.asarray(c, float)[ok], 1e-12)) for c in coords]
        log_eff = np.log(np.asarray(ideal, float)[ok] / (rows.latency.to_numpy()[ok] * 1e-3))
        values = fit(kind, points, log_eff)
        grids = [np.log(np.array(g, float)) for g in GRIDS[kind].values()]
        error = np.abs(log_eff - interpolate(grids, values, points))
        self.arrays[key.replace("/", "__")] = np.clip(np.round(values * SCALE), -32000, 32000).astype(np.int16)
        self.meta[key] = {
            "kind": kind, "version": version, "rows": int(ok.sum()), "residual": round(float(np.median(error)), 4),
            "residual_p90": round(float(np.quantile(error, 0.9)), 4),
        }  # fmt: skip
        print(
            f"{key:55s} {version:12s} {ok.sum():7d} rows  median {np.median(error):.3f}  p90 {np.quantile(error, 0.9):.3f}",
            flush=True,
        )

    def system(self, system: str) -> None:
        dev = device(system)
        for fw, v, d in newest(self.root, system, "gemm", "gemm"):
            for dtype in set(d.gemm_dtype) & set(GEMM_DTYPES):
                rows = d[d.gemm_dtype == dtype]
                self.add("gemm", f"gemm/{dev['id']}/{fw}/{GEMM_DTYPES[dtype][3]}", gemm(rows, dev, dtype), rows, v)
        for fw, v, d in newest(self.root, system, "moe", "moe", at_least=2000):
            for dtype in set(d.moe_dtype) & set(GEMM_DTYPES):
                rows = d[d.moe_dtype == dtype]
                rows = rows.groupby(
                    [
                        c
                        for c in rows.columns
                        if c
                        in (
                            "num_tokens",
                            "hidden_size",
                            "inter_size",
                            "topk",
                            "num_experts",
                            "moe_tp_size",
                            "moe_ep_size",
                        )
                    ],
                    as_index=False,
                ).latency.min()
                self.add("moe", f"moe/{dev['id']}/{fw}/{GEMM_DTYPES[dtype][3]}", moe(rows, dev, dtype), rows, v)
        self.attention(system, dev)
        self.comm(system, dev)

    def attention(self, system: str, dev: dict) -> None:
        for sub, name, kind, make in (
            ("attention", "context_attention", "context", context), ("attention", "generation_attention", "generation", generation),
            ("mla", "context_mla", "mla_context", mla_context), ("mla", "generation_mla", "mla_generation", mla_generation),
        ):  # fmt: skip
            for fw, v, d in newest(self.root, system, sub, name):
                for kv in sorted(set(d.kv_cache_dtype)):
                    rows = d[d.kv_cache_dtype == kv]
                    # Shapes of a few tokens measure launch overhead, not the kernel.
                    rows = rows[rows.step >= 15] if "generation" in kind else rows[rows.isl >= 16]
                    if "window_size" in d:
                        rows = rows[(rows.window_size == 0) & (rows.head_dim != 192)]
                    if "attn_dtype" in d and kind == "context":
                        rows = rows[
                            rows.attn_dtype
                            == ("fp8" if kv == "fp8" and (rows.attn_dtype == "fp8").any() else "bfloat16")
                        ]
                    ours = "fp8" if kv == "fp8" else "bf16"
                    self.add(kind, f"{kind}/{dev['id']}/{fw}/{ours}", make(rows, dev, ours), rows, v)

    def comm(self, system: str, dev: dict) -> None:
        for fw, v, d in newest(self.root, system, "comm", "custom_allreduce"):
            rows = d[~d.kernel_source.str.contains("eager")]
            self.add("all_reduce", f"all_reduce/{dev['id']}/{fw}/bf16", collective(rows, dev, "all_reduce"), rows, v)
        for _, v, d in newest(self.root, system, "comm", "nccl"):
            for op in sorted(set(d.op_name)):
                rows = d[(d.op_name == op) & (d.nccl_dtype == "half")]
                ours = {"alltoall": "all_to_all"}.get(op, op)
                self.add("nccl", f"{ours}/{dev['id']}/nccl/bf16", collective(rows, dev, ours), rows, v)


def main(root: Path) -> None:
    distiller = Distiller(root)
    for system in DEVICES:
        if (root / system).exists():
            distiller.system(system)
    out = ROOT / "knowledge" / "curves"
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "operators.npz", **distiller.arrays)
    about = {
        "source": "aiconfigurator-core 0.12 (Apache-2.0, ai-dynamo/aiconfigurator), operator times only",
        "script": "benchmarks/distil_operators.py",
        "scale": SCALE,
        "unit": "scale x natural logarithm of efficiency (ideal seconds on the datasheet / measured seconds)",
        "coordinates": {k: list(g) for k, g in GRIDS.items()},
        "grids": GRIDS,
        "datasheet": {d: device(s) for s, d in DEVICES.items() if (root / s).exists()},
        "tables": dict(sorted(distiller.meta.items())),
    }
    (out / "operators.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    print(f"{len(distiller.arrays)} tables, {(out / 'operators.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
