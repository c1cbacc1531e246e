"""What a language model hands in about a paper: models, hardware, strategies and gaps, each with its quotes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from agent.reading.paper_models import HF_NAMES
from agent.submissions import Submission
from tools.spec.paper import PaperMethod
from tools.spec.strategy import Phase

WORKLOAD = ("batch_size", "isl", "osl")
"""Names of a model's workload facts; all others are its shape."""


class Quoted(Submission):
    line: int = Field(ge=1, description="1-based")
    quote: str = Field(min_length=1, description="copied verbatim from that line")


class SubmittedPaperFact(Quoted):
    name: str = Field(description=f"{', '.join((*HF_NAMES.values(), *WORKLOAD))}")
    value: Any


class SubmittedModel(Submission):
    name: str
    facts: list[SubmittedPaperFact] = []


class SubmittedHardware(Quoted):
    path: str = Field(
        description="hardware.device, hardware.num_devices, hardware.num_nodes, hardware.devices_per_node"
    )
    value: Any


class SubmittedPaperStrategy(Submission):
    model: str = Field(default="", description="name of the model; empty for every model")
    role: Literal["baseline", "proposed"]
    degrees: dict[str, Any] = Field(description="e.g. {tp: 8, pp: 2}")
    phases: list[Phase] = ["prefill", "decode"]
    quotes: list[Quoted] = Field(min_length=1)


class SubmittedGap(Quoted):
    what: str = Field(min_length=3)


class PaperSubmission(Submission):
    models: list[SubmittedModel] = []
    hardware: list[SubmittedHardware] = []
    strategies: list[SubmittedPaperStrategy] = []
    unsupported: list[SubmittedGap] = []
    remarks: str = ""


@dataclass(slots=True)
class Reading:
    """The method as it is used, and what became of each submitted thing."""

    method: PaperMethod
    rejected: list[tuple[str, str]] = field(default_factory=list)
    by: str = "builtin"
    degraded: str | None = None
