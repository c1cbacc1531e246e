"""Kubernetes: a Deployment per replica on one node, a LeaderWorkerSet where a replica spans nodes; and read back.

The container runs the same command as `serve.sh`; what differs per pod comes from variables that LeaderWorkerSet sets
(LWS_GROUP_SIZE, LWS_WORKER_INDEX, LWS_LEADER_ADDRESS).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from tools.engines.export.base import (
    Launcher,
    LaunchFile,
    Request,
    continued,
    layer_partition_lines,
    model_and_address,
    on_npus,
    one_line,
    vendor,
)
from tools.engines.export.yaml_text import documents
from tools.spec.base import ToolError

IMAGES = {
    ("vllm", "nvidia"): "vllm/vllm-openai:v0.33.0", ("vllm", "amd"): "vllm/vllm-openai-rocm:v0.33.0",
    ("sglang", "nvidia"): "lmsysorg/sglang:v0.5.23", ("sglang", "amd"): "lmsysorg/sglang:v0.5.23-rocm",
}  # fmt: skip
"""Images of the releases that the rules describe; a registry of one's own is usual, so check the tag."""
RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "huawei": "huawei.com/Ascend910"}
ENGINES = ("vllm", "sglang")
TOKEN_SECRET = "hf-token"
READY_FAILURES = 360
"""Probes of 10 s each before a pod counts as failed: an hour for loading weights."""


def resource_name(name: str) -> str:
    """A model's name as a DNS label: lower case letters, digits and dashes, at most 50 of them."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    return label if label and label[0].isalpha() else f"model-{label}".strip("-")


def manifest_file(launcher: Launcher, r: Request, image: str | None) -> LaunchFile:
    """`<engine>/k8s.yaml`: workload and Service. Raises ToolError where no image is known for the device."""
    of = vendor(r.device)
    chosen = image or IMAGES.get((launcher.engine, of))
    if chosen is None or of not in RESOURCES:
        raise ToolError(f"no container image of {launcher.engine} for {of} devices is known; pass image=")
    name = f"{resource_name(r.model.name)}-{launcher.engine}"
    workload = (_leader_worker_set if r.multi_node else _deployment)(launcher, r, name, chosen)
    head = "".join(f"# {one_line(row)}\n" for row in _header(r, asked=image is not None))
    return LaunchFile(
        name=f"{launcher.engine}/k8s.yaml", text=head + documents([workload, _service(r, name)]), executable=False
    )


def _header(r: Request, *, asked: bool) -> list[str]:
    """What the manifest is for, and what a cluster's own settings have to add."""
    rows = [
        f"{r.model.name}: {r.strategy.label(moe=r.model.moe is not None)} with {r.rules.label}",
        r.rules.world(r.strategy),
        f"secret {TOKEN_SECRET}, key token: for checkpoints behind a licence (optional)",
    ]
    if not asked:
        rows.append("the image is the release that flags and rules were read from; check that its tag fits your driver")
    if r.multi_node:
        rows.append(
            "between nodes NCCL takes the pods' network; for RDMA add the resource of your device plugin (rdma/…), or "
            "hostNetwork"
        )
    return rows + [f"note: {n}" for n in r.notes]


def shell(launcher: Launcher, r: Request) -> str:
    """What the container runs: variables, then the command of `serve.sh`."""
    rows = ["set -eu", *model_and_address(r)]
    before: list[str] = []
    across: list[str] = []
    if r.multi_node:
        rows += [
            "NNODES=$LWS_GROUP_SIZE", "RANK=$LWS_WORKER_INDEX", "MASTER_ADDR=$LWS_LEADER_ADDRESS", "MASTER_PORT=29501"
        ]  # fmt: skip
        before, across = launcher.across_nodes(r)
        if on_npus(r):
            rows += ["HCCL_IF_IP=${HCCL_IF_IP:-$(hostname -i)}", "NIC=${NIC:-eth0}"]
    rows += [*layer_partition_lines(r), *launcher.environment(r), *before]
    return "\n".join([*rows, "exec " + continued([*launcher.command(r), *across])]) + "\n"


def _container(launcher: Launcher, r: Request, name: str, image: str, probe: bool) -> dict[str, Any]:
    devices = int(r.placement.local) * (r.strategy.dp if r.native_replicas else 1)
    out: dict[str, Any] = {
        "name": launcher.engine, "image": image, "command": ["bash", "-c"], "args": [shell(launcher, r)],
        "env": [{"name": "HF_TOKEN", "valueFrom": {
            "secretKeyRef": {"name": TOKEN_SECRET, "key": "token", "optional": True},
        }}],
        "resources": {"limits": {RESOURCES[vendor(r.device)]: devices}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    if probe:
        out["ports"] = [{"containerPort": r.port}]
        out["readinessProbe"] = {
            "httpGet": {"path": "/health", "port": r.port}, "periodSeconds": 10, "failureThreshold": READY_FAILURES
        }  # fmt: skip
    return out


def _pod(launcher: Launcher, r: Request, name: str, image: str, probe: bool) -> dict[str, Any]:
    labels = {"app": name, **({"role": "leader" if probe else "worker"} if r.multi_node else {})}
    return {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [_container(launcher, r, name, image, probe)],
            # NCCL and the engines' workers talk through shared memory; the default of 64 MiB is too small.
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }


def _deployment(launcher: Launcher, r: Request, name: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": r.instances, "selector": {"matchLabels": {"app": name}},
            "template": _pod(launcher, r, name, image, probe=True),
        },
    }  # fmt: skip


def _leader_worker_set(launcher: Launcher, r: Request, name: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": {"name": name},
        "spec": {
            "replicas": r.instances,
            "leaderWorkerTemplate": {
                "size": int(r.placement.nodes_per_replica), "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _pod(launcher, r, name, image, probe=True),
                "workerTemplate": _pod(launcher, r, name, image, probe=False),
            },
        },
    }  # fmt: skip


def _service(r: Request, name: str) -> dict[str, Any]:
    selector = {"app": name, **({"role": "leader"} if r.multi_node else {})}
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": r.port, "targetPort": r.port}]},
    }  # fmt: skip


# Reading ---------------------------------------------------------------------------------------------------------


def containers(document: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping below `document` that looks like a container or a compose service: it has an image or a command."""
    if isinstance(document, Mapping):
        if "image" in document or ("command" in document and "name" in document):
            yield document
        for value in document.values():
            yield from containers(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from containers(value)


def container_command(container: Mapping[str, Any]) -> str:
    """The shell text that a container runs: its script after `-c`, else its words, after what the image starts."""
    words = [*_words(container.get("entrypoint")), *_words(container.get("command")), *_words(container.get("args"))]
    variables = "".join(f"{k}={shlex.quote(v)}\n" for k, v in _environment(container.get("env")))
    variables += "".join(f"{k}={shlex.quote(v)}\n" for k, v in _environment(container.get("environment")))
    for i, word in enumerate(words):
        if re.fullmatch(r"-\w*c", word) and i and re.search(r"(?:^|/)(?:ba|da|a)?sh$", words[i - 1]):
            # $(NAME) is Kubernetes' own reference.
            return variables + re.sub(r"\$\((\w+)\)", r"${\1}", " ".join(words[i + 1 : i + 2]))
    text = " ".join(re.sub(r"\$\((\w+)\)", r"${\1}", shlex.quote(w)) for w in words)
    return variables + entry_point(str(container.get("image", "")), text)


def entry_point(image: str, text: str) -> str:
    """Arguments as the image's own entry point gets them: `vllm serve` in the OpenAI images of vLLM."""
    started = re.search(r"(?<![\w.-])(?:vllm serve|vllm\.entrypoints|sglang|trtllm-serve|python3?)(?![\w-])", text)
    if started is None and re.search(r"vllm[\w.-]*openai", image):
        return "vllm serve " + text
    return text


def replicas(document: Any) -> int:
    """`replicas` of a workload's spec (or of compose's deploy), 1 where nobody says."""
    if not isinstance(document, Mapping):
        return 1
    for key in ("spec", "deploy"):
        spec = document.get(key)
        if isinstance(spec, Mapping) and isinstance(spec.get("replicas"), int):
            return max(1, spec["replicas"])
    return 1


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise ToolError(f"the command {value[:60]!r} cannot be read: {error}; check its quotes") from None
    return [str(v) for v in value] if isinstance(value, list | tuple) else []


def _environment(value: Any) -> Iterator[tuple[str, str]]:
    """Kubernetes' list of name and value, compose's list of NAME=value, or a mapping."""
    rows = value.items() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for row in rows:
        if isinstance(row, Mapping) and "name" in row and "value" in row:
            yield str(row["name"]), str(row["value"])
        elif isinstance(row, str) and "=" in row:
            name, _, text = row.partition("=")
            yield name, text
        elif isinstance(row, tuple) and len(row) == 2 and row[1] is not None:
            yield str(row[0]), str(row[1])
