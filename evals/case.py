"""Evaluation cases: inputs as people write them, and what a careful engineer takes from them.

A case is a folder with its input files and a `case.yaml`. Values are in SI base units at the paths of
`meshwright read --json`. What the fields mean for whoever judges a run:

* `facts` are judged where the reader answers at all (it may refuse bad input); only `wrong` further facts are errors.
* `sources` gives for each fact the words of the input it rests on; a fact without words is no fact.
* `conflicts`: of each group, at least one path must be reported. `missing` must be reported; `missing_ok` may be.
* `expect` holds what can be compared; `says` and `must_not` are sentences for a person or a judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tools.spec.base import Frozen, ToolError
from tools.spec.deployment import Objective
from tools.spec.finding import Cause
from tools.spec.model import DType
from tools.spec.workload import Metric, Stat

CASES = Path(__file__).parent / "cases"

Kind = Literal[
    "serving", "moe", "ample", "infeasible", "heterogeneous", "consumer", "ascend", "long_context", "paper", "chinese",
    "contradictory", "injected", "bad_input",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)

FLAGS: dict[str, str] = {
    "prompt-injection": r"inject|instruction|忽略|指令",
    "sparse-tflops": r"spars|稀疏",
    "heterogeneous": r"heterogen|mixed|(different|two|several|second) (kind|device|gpu|card)|异构|^hardware\.device$",
    "context-over-model": r"position|context.*(model|limit|exceed|longer)|超出|超过|^workload\.max_context$",
}
"""Things a careful reader raises → what a flag or finding says, or which path is in conflict, whatever its code is."""


def _as_tuple(value: Any) -> Any:
    """One value stands for a tuple of one: `exit_code: 0`."""
    return (value,) if value is None or isinstance(value, str | int) else value


def _words(value: Any) -> Any:
    return () if value is None else _as_tuple(value)


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Degrees = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]
Degree = Literal["tp", "pp", "dp", "cp", "ep", "etp", "attn_dp"]


class Expect(Frozen):
    """The outcome. Several values mean that any of them is right; an empty tuple or None that it is left open."""

    exit_code: Degrees
    status: Annotated[tuple[Literal["proven", "infeasible"], ...], BeforeValidator(_as_tuple)] = ()
    cause: Annotated[tuple[Cause, ...], BeforeValidator(_as_tuple)] = ()
    """Class of the binding constraint of an infeasible verdict."""
    objective: Objective | None = None
    num_devices: int | None = None
    num_devices_min: int | None = None
    num_devices_max: int | None = None
    tp_in: Degrees = ()
    """Legal attention-TP degrees of the plan."""
    pp_in: Degrees = ()
    ep_in: Degrees = ()
    dp_in: Degrees = ()
    weight_dtype_in: Annotated[tuple[DType, ...], BeforeValidator(_as_tuple)] = ()
    methods: dict[str, dict[Degree, int]] = Field(default_factory=dict)
    """For a paper: the degrees of each method it deploys."""
    says: Words = ()
    """What the report has to tell, in words."""


class Case(Frozen):
    """One case. `id` is the name of its folder, `folder` where it lies; `files` are relative to it."""

    id: str
    folder: Path
    title: str = Field(min_length=8)
    kind: Kind
    files: tuple[str, ...] = Field(min_length=1)
    """As given on the command line: files, or folders of several."""
    encoding: str = "utf-8"
    facts: dict[str, Any] = Field(default_factory=dict)
    accept: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Further values that are right as well ("32K": 32768 or 32000)."""
    accept_paths: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Further paths at which the same fact may stand."""
    tolerances: dict[str, float] = Field(default_factory=dict)
    """Relative; 1e-6 where none is given."""
    wrong: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values a careless reader would take."""
    sources: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Verbatim words of the input → the paths that rest on them."""
    conflicts: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()
    missing_ok: tuple[str, ...] = ()
    ignored: Words = ()
    """Words that occur in the sections to be declared irrelevant."""
    must_flag: tuple[str, ...] = ()
    must_not: Words = ()
    expect: Expect
    notes: str = Field(min_length=8)
    """Why the expected values are right: the arithmetic, by hand."""

    @model_validator(mode="after")
    def _consistent(self) -> Case:
        _refuse("illegal path", [p for p in self.paths() if not is_legal_path(p)])
        _refuse("fact of the wrong type", [p for p, v in self.facts.items() if not is_legal_value(p, v)])
        _refuse("unknown flag", [f for f in self.must_flag if f not in FLAGS])
        quoted = {p for paths in self.sources.values() for p in paths}
        _refuse("fact without a source", sorted(set(self.facts) - quoted))
        _refuse("source without a fact", sorted(quoted - set(self.facts)))
        qualified = set(self.accept) | set(self.accept_paths) | set(self.tolerances)
        _refuse("alternative without a fact", sorted(qualified - set(self.facts)))
        _refuse("missing, but a fact", sorted(set(self.facts) & set(self.missing)))
        _refuse("wrong, but expected", [p for p, vs in self.wrong.items() if any(self.accepts(p, v) for v in vs)])
        return self

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What goes on the command line."""
        return tuple(self.folder / name for name in self.files)

    def paths(self) -> tuple[str, ...]:
        """Every path that the case names, in any role."""
        named = [*self.facts, *self.accept, *self.tolerances, *self.wrong, *self.missing, *self.missing_ok]
        named += [p for group in self.conflicts for p in group]
        named += [p for paths in self.sources.values() for p in paths]
        named += [p for path, others in self.accept_paths.items() for p in (path, *others)]
        return tuple(named)

    def texts(self) -> dict[str, str]:
        """The inputs' texts by path relative to the folder; bytes that are no text are replaced."""
        found = [f for path in self.inputs for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        return {
            f.relative_to(self.folder).as_posix(): f.read_bytes().decode(self.encoding, errors="replace")
            for f in found
            if f.is_file()
        }

    def accepts(self, path: str, value: Any) -> bool:
        """Whether `value` is right for the fact at `path`.

        Words are compared without case, spaces, `-`, `_` and organisation; aliases are the catalogue's to resolve.
        """
        if path not in self.facts:
            return False
        rel = self.tolerances.get(path, 1e-6)
        return any(_same(right, value, rel) for right in (self.facts[path], *self.accept.get(path, ())))


def load_case(path: Path) -> Case:
    """The case of a folder (or of its `case.yaml`). Raises ToolError naming the file and what is wrong with it."""
    folder = path.parent if path.name == "case.yaml" else path
    source = folder / "case.yaml"
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ToolError(f"{source}: cannot be read as a case: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(raw, dict):
        raise ToolError(f"{source}: a case is a mapping with title, kind, files, expect, notes")
    if {"id", "folder"} & set(raw):
        raise ToolError(f"{source}: id and folder follow from the folder's name; remove them")
    try:
        case = Case.model_validate({**raw, "id": folder.name, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        raise ToolError(f"{source}: {'.'.join(map(str, first['loc'])) or 'case'}: {first['msg']}") from None
    if absent := [name for name in case.files if not (folder / name).exists()]:
        raise ToolError(f"{source}: no such input: {', '.join(absent)}")
    return case


def load_cases(root: Path = CASES, kinds: Sequence[str] | None = None) -> tuple[Case, ...]:
    """Every case under `root` in order of id, or those of `kinds`. Raises ToolError for an unknown kind or no case."""
    if unknown := sorted(set(kinds or ()) - set(KINDS)):
        raise ToolError(f"unknown kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    cases = tuple(load_case(source) for source in sorted(root.glob("*/case.yaml")))
    if not cases:
        raise ToolError(
            f"{root}: no folder with a case.yaml; the product's cases are in {CASES.name}/ beside the loader"
        )
    return tuple(c for c in cases if not kinds or c.kind in kinds)


def flag_raised(flag: str, said: Iterable[str]) -> bool:
    """Whether `said` raises `flag`, a key of FLAGS.

    `said` are the codes and messages of flags and findings, and the paths and whys of conflicts.
    """
    return any(flag == text or re.search(FLAGS[flag], text, re.IGNORECASE) for text in said)


# ── paths and values ──────────────────────────────────────────────────────────────────────────────────────────────────

_HARDWARE_COUNTS = {"num_nodes", "devices_per_node", "num_devices"}
_WORKLOAD_COUNTS = {"batch_size", "isl", "osl", "seq_len_min", "seq_len_max", "max_context", "concurrency"}
_BANDWIDTHS = {"memory_bandwidth", "intra_node_bandwidth", "inter_node_bandwidth"}
COUNTS = frozenset({f"hardware.{c}" for c in _HARDWARE_COUNTS} | {f"workload.{c}" for c in _WORKLOAD_COUNTS})
FRACTIONS = frozenset(
    {"hardware.mfu", "hardware.mbu", "workload.prefix_hit_rate", "workload.draft_acceptance"}
    | {f"requirements.{f}" for f in ("memory_reserve", "balance_epsilon", "utilisation_target")}
)
SIZES = frozenset(
    {"hardware.memory_bytes", "workload.request_rate", "workload.peak_factor"}
    | {f"hardware.{b}" for b in _BANDWIDTHS}
    | {"model.declared_parameters", "model.num_parameters"}
)
NAMES = frozenset({"hardware.device", "model.name", "engine.name", "engine.version"})
CHOICES: dict[str, tuple[str, ...]] = {
    "model.weight_dtype": get_args(DType),
    "model.kv_dtype": get_args(DType),
    "workload.mode": ("inference", "training"),
    "requirements.throughput_per_device.counts": ("input", "output", "total"),
    "objective": get_args(Objective),
}
HF_COUNTS = frozenset(
    {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"}
    | {"vocab_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "max_position_embeddings"}
)
_PEAK = re.compile(r"hardware\.peak_flops\.(\w+)")
_GATE = re.compile(r"requirements\.(\w+)\.(\w+)")
_LIMIT = re.compile(r"engine\.limits\.[a-z_]+")


def is_legal_path(path: str) -> bool:
    """Whether `path` is one of `read --json`'s paths (the HF config names in use here, any engine limit)."""
    if path in COUNTS | FRACTIONS | SIZES | NAMES or path in CHOICES or _LIMIT.fullmatch(path):
        return True
    if path.startswith("model."):
        return path.removeprefix("model.") in HF_COUNTS
    if peak := _PEAK.fullmatch(path):
        return peak[1] in get_args(DType)
    gate = _GATE.fullmatch(path)
    return gate is not None and gate[1] in get_args(Metric) and gate[2] in get_args(Stat)


def is_legal_value(path: str, value: Any) -> bool:
    """Whether `value` has the type and range of its path: counts ≥ 1, fractions in (0, 1], positive sizes.

    None is a stated absence and stands at requirements only.
    """
    if path in CHOICES:
        return value in CHOICES[path]
    if path in NAMES:
        return isinstance(value, str) and bool(value.strip())
    if path == "hardware.num_devices" and value == "unbounded":
        return True
    if value is None:
        return _GATE.fullmatch(path) is not None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
        return False
    if path in COUNTS or path.removeprefix("model.") in HF_COUNTS:
        return isinstance(value, int)
    return value <= 1 if path in FRACTIONS else True


def _refuse(what: str, offenders: Sequence[str]) -> None:
    if offenders:
        raise ValueError(f"{what}: {', '.join(offenders)}")


def _same(right: Any, value: Any, rel: float) -> bool:
    if isinstance(right, bool) or isinstance(value, bool) or right is None or value is None:
        return right is value
    if isinstance(right, int | float) and isinstance(value, int | float):
        return math.isclose(right, value, rel_tol=rel)
    return isinstance(right, str) and isinstance(value, str) and _plain(right) == _plain(value)


def _plain(name: str) -> str:
    return re.sub(r"[\s\-_]", "", name.rsplit("/", 1)[-1]).lower()
