"""What tasks demand, and the machine check behind each demand. English and Chinese.

A demand may match several checks; all must hold. One that matches none is said to be not machine-checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tools.rubric.accuracy import gate_item
from tools.rubric.base import BAR, ConstraintResult
from tools.rubric.coverage import account
from tools.rubric.performance import distance_item
from tools.rubric.record import Constraint, DagReport, RunRecord
from tools.rubric.result import drawn

Verdict = tuple[bool | None, str]
"""(obeyed, broken, or None: cannot be decided from this run; why)."""
NO_PLAN: Verdict = (None, "no plan exists to which this could apply; the infeasible verdict stands in its place")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    pattern: re.Pattern[str]
    run: Callable[[RunRecord], Verdict]


CHECKS: list[Check] = []


def check(name: str, *patterns: str) -> Callable[[Callable[[RunRecord], Verdict]], Callable[[RunRecord], Verdict]]:
    """Registers a check for demands that match one of `patterns` (case-insensitive)."""

    def register(function: Callable[[RunRecord], Verdict]) -> Callable[[RunRecord], Verdict]:
        CHECKS.append(Check(name, re.compile("|".join(patterns), re.I | re.S), function))
        return function

    return register


STATEMENTS = re.compile(
    r"generally speaking|not all (the )?knowledge|task with many steps|you can first|only need to understand|"
    r"for your reference|一般来说|不是所有知识|多步任务|仅供参考|are tested to|metrics .*as follows|性能评价指标",
    re.I,
)
"""Sentences of a task that explain or permit, and demand nothing."""

STANDING = (
    "Count how many parts each module has been divided into and whether that matches the number of devices.",
    "The performance requirements must be met.",
    "Ensure load balancing between the devices.",
    "Make full use of the hardware resources.",
    "Do not change the input files.",
    "Submit paths in JSON format.",
    "The baseline's DAG is generated too.",
    "Every DAG is acyclic, and every node is connected.",
)
"""What is judged when no task says otherwise: the demands that all task prompts of this kind share."""


def judge(record: RunRecord) -> tuple[ConstraintResult, ...]:
    demands = record.constraints or tuple(Constraint(text=t) for t in STANDING)
    return tuple(judge_one(c, record) for c in demands)


def judge_one(demand: Constraint, record: RunRecord) -> ConstraintResult:
    hits = [(c.name, *c.run(record)) for c in CHECKS if c.pattern.search(demand.text)]
    if not hits:
        if STATEMENTS.search(demand.text):
            return _result(demand, "", "statement", "explains or permits; nothing to obey")
        return _result(demand, "", "not_machine_checked", "no machine check knows this demand")
    broken = [h for h in hits if h[1] is False]
    unknown = [h for h in hits if h[1] is None]
    names = ", ".join(h[0] for h in hits)
    if broken:
        return _result(demand, names, "broken", "; ".join(h[2] for h in broken))
    if len(unknown) == len(hits):
        moot = all(h[1:] == NO_PLAN for h in unknown)
        status = "not_applicable" if moot else "not_machine_checked"
        return _result(demand, names, status, "; ".join(dict.fromkeys(h[2] for h in unknown)))
    return _result(demand, names, "obeyed", "; ".join(h[2] for h in hits))


def _result(demand: Constraint, names: str, status: str, reason: str) -> ConstraintResult:
    return ConstraintResult.model_validate(
        {"text": demand.text, "line": demand.line, "check": names, "status": status, "reason": reason}
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the plan


@check(
    "parts",
    r"how many parts",
    r"match\w*[^.]*number of (gpu|npu|device|card)",
    r"多少份|份数|切分.*(匹配|一致)|符合实际",
)
def parts(record: RunRecord) -> Verdict:
    plan = record.plan
    if plan.status == "infeasible":
        return NO_PLAN
    wrong = [p for p in plan.parts if not p.matches]
    if wrong or not plan.parts:
        return False, wrong[0].sentence if wrong else "no module's parts were counted"
    ranks = {r for row in plan.rank_map for r in row["ranks"]}
    ok = len(ranks) == plan.num_devices
    return (
        ok,
        f"{len(plan.parts)} modules counted, each matches its devices; {len(ranks)} of {plan.num_devices} devices "
        "host a part",
    )


@check(
    "requirements",
    r"requirements? (must be|are|is) met",
    r"meet\w* (all |basic |the )*(performance )?requirements?",
    r"性能(需求|要求)",
    r"满足.*(需求|要求)",
)
def requirements(record: RunRecord) -> Verdict:
    gates = record.plan.deployment.requirements.gates
    if record.plan.status == "infeasible":
        return NO_PLAN
    items = [gate_item(g, record.plan) for g in gates]
    bad = [i for i in items if i.value < BAR]
    return not bad, "; ".join(f"{i.name} {i.reason}" for i in bad or items) or "none is stated"


@check("balance", r"load[- ]balanc", r"负载均衡|均衡负载")
def balance(record: RunRecord) -> Verdict:
    """Of bytes and of time. Bound: the stated one, else 1.05 or the best that any cut of this model reaches."""
    if record.plan.status == "infeasible":
        return NO_PLAN
    if record.plan.estimate is None or record.plan.strategy is None:
        return False, "a proven plan without a strategy or its estimate"
    # Devices of several kinds hold what their speed asks for; their stages are to take equally long.
    judged = [
        _spread(record, what) for what in (("time",) if record.plan.strategy.stage_devices else ("bytes", "time"))
    ]
    said = "; ".join(f"{what}: max/mean over devices {ratio:.3f}, bound {bound:.3f}" for what, ratio, bound in judged)
    return all(ratio <= bound * (1 + 1e-9) for _, ratio, bound in judged), said


def _spread(record: RunRecord, what: str) -> tuple[str, float, float]:
    """(what, ratio, bound): the balance check's own, else the estimate's against the evenest cut of the layers."""
    plan, req = record.plan, record.plan.deployment.requirements
    for f in plan.findings:
        if f.cause == "balance" and f.where == what and {"ratio", "bound"} <= set(f.values):
            return what, f.values["ratio"], f.values["bound"]
    assert plan.estimate is not None and plan.strategy is not None
    layers, stages = plan.deployment.model.num_hidden_layers, plan.strategy.pp
    evenest = -(-layers // stages) * stages / layers
    bound = 1 + req.balance_epsilon if req.balance_stated else max(1 + req.balance_epsilon, evenest)
    return what, plan.estimate.memory_imbalance if what == "bytes" else plan.estimate.time_imbalance, bound


@check("full use", r"full(y)? use", r"leverage .*(resources|conditions)", r"充分利用")
def full_use(record: RunRecord) -> Verdict:
    plan, have = record.plan, record.plan.deployment.num_devices
    if plan.status == "infeasible":
        return NO_PLAN
    if have is None:
        return True, f"devices are unbounded; the objective is {plan.objective} with {plan.num_devices}"
    if plan.num_devices == have:
        return True, f"all {have} devices are used"
    told = [f for f in plan.findings if "idle" in f.code]
    stated = plan.deployment.objective == "fewest_devices"
    return bool(told) or stated, f"{plan.num_devices} of {have} devices are used" + (
        f": {told[0].message}" if told else ""
    )


@check("optimal", r"optimal|optimi[sz]e", r"最优")
def optimal(record: RunRecord) -> Verdict:
    if record.plan.status == "infeasible":
        return NO_PLAN
    if record.reference is None:
        return None, "there is no reference to compare with"
    item = distance_item(record.reference, record.plan.objective)
    return item.value >= BAR, item.reason


@check("fits the hardware", r"conform to .*hardware", r"(practically|actually) (be )?deploy", r"符合.*硬件条件")
def fits(record: RunRecord) -> Verdict:
    plan, have = record.plan, record.plan.deployment.num_devices
    if plan.status == "infeasible" or plan.estimate is None:
        return NO_PLAN
    full = [s for e in (plan.estimate, *(u.estimate for u in plan.units)) for s in e.memory if s.free_bytes < 0]
    if have is not None and plan.num_devices > have:
        return False, f"{plan.num_devices} devices needed, {have} there"
    if full:
        return (
            False,
            f"stage {full[0].stage} needs {full[0].total_bytes / 1e9:.1f} GB of {full[0].capacity_bytes / 1e9:.1f}",
        )
    return True, f"{plan.num_devices} devices, every stage within its memory"


@check("saved where asked", r"saved? (in|to|at|under)\b.*(save_path|path|folder|directory|/)", r"保存(在|到)")
def saved(record: RunRecord) -> Verdict:
    """The writer writes nowhere else; here: each file that is listed is there, and not empty."""
    lost = [d.path for d in record.deliverables if d.num_bytes <= 0 and d.kind != "events"]
    if not record.deliverables:
        return False, "nothing was saved"
    return (
        not lost,
        f"empty or absent: {', '.join(lost)}" if lost else f"{len(record.deliverables)} files below the output folder",
    )


@check("plan files", r"deployment plan", r"strategy.*document|document.*strategy", r"部署方案")
def plan_files(record: RunRecord) -> Verdict:
    kinds = {d.kind for d in record.deliverables if d.num_bytes}
    lacking = {"plan", "report"} - kinds
    return not lacking, f"missing: {', '.join(sorted(lacking))}" if lacking else "plan.json and plan.md are written"


# ------------------------------------------------------------------------------------------------------ the inputs


@check("all sections read", r"deep understanding", r"all the sections", r"(要求|深入)理解")
def all_sections(record: RunRecord) -> Verdict:
    units = account(record.inputs, record.conditions)
    left = [u for u, how in units if not how]
    return len(units) > 0 and len(left) <= (1 - BAR) * len(
        units
    ), f"{len(units) - len(left)} of {len(units)} sections, keys and statements accounted for"


@check(
    "inputs untouched", r"(not|never) (make any )?(chang|modif)\w* .*(original|input)", r"禁止修改|不要修改|不得修改"
)
def inputs_untouched(record: RunRecord) -> Verdict:
    if not record.inputs_after:
        return None, "the inputs were not hashed again"
    changed = [i.path for i in record.inputs if record.inputs_after.get(i.path) != i.sha256]
    return (
        not changed,
        f"changed: {', '.join(changed)}" if changed else f"{len(record.inputs)} inputs have the hashes they had",
    )


@check("paths only", r"(save )?paths?\b.*json", r"json.*\bpaths?\b", r"提交路径|json.*路径")
def paths_only(record: RunRecord) -> Verdict:
    outside = [d.path for d in record.deliverables if d.path.startswith(("/", "../")) or "\\" in d.path]
    if not record.deliverables:
        return False, "nothing is listed"
    return (
        not outside,
        f"not relative: {outside[0]}"
        if outside
        else f"manifest.json lists {len(record.deliverables)} relative paths, no content",
    )


# ------------------------------------------------------------------------------------------------------- the DAGs


@check("baseline drawn", r"baseline.*dag|dag.*baseline|at least two dags", r"baseline.*(生成|绘制)|基线")
def baseline_drawn(record: RunRecord) -> Verdict:
    if record.plan.status == "infeasible":
        return NO_PLAN
    missing = [
        i.name
        for role in ("plan", "baseline")
        for ph in ("prefill", "decode")
        if (i := drawn("dag_dot", role, ph, record)).value < 1
    ]
    return (
        not missing,
        f"missing: {', '.join(missing)}" if missing else f"{len(record.dags)} DAGs, the baseline's among them",
    )


@check("a DAG per model", r"multiple models", r"多个模型")
def dag_per_model(record: RunRecord) -> Verdict:
    models = {d.model for d in record.dags}
    mine = record.plan.deployment.model.name
    return mine in models, f"drawn: {', '.join(sorted(models)) or 'none'}; asked: {mine}"


@check("python makes the DAG", r"execut\w* .*python|python file", r"python.*(生成|执行)")
def scripts(record: RunRecord) -> Verdict:
    return _files(record, ("dag_script",))


@check("images and dot files", r"images?\b.*(svg|dot)|\.dot\b|svg format|dot format", r"svg|图像")
def images(record: RunRecord) -> Verdict:
    return _files(record, ("dag_dot", "dag_svg"))


def _files(record: RunRecord, kinds: Sequence[str]) -> Verdict:
    if record.plan.status == "infeasible" and not record.dags:
        return NO_PLAN
    missing = [
        i.name
        for role in ("plan", "baseline")
        for ph in ("prefill", "decode")
        for k in kinds
        if (i := drawn(k, role, ph, record)).value < 1
    ]
    number = sum(d.kind in kinds for d in record.deliverables)
    return not missing, f"missing: {', '.join(missing)}" if missing else f"{number} files ({', '.join(kinds)})"


RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "device of every node",
        ("R01", "R12"),
        (r"card boundary", r"which gpu", r"specify .*\bgpu\b", r"all gpus", r"划分边界|注明.*GPU"),
    ),
    ("transfers are nodes", ("R02",), (r"communication path", r"data flow across", r"GPU间的?通信")),
    ("splits and aggregations are nodes", ("R03",), (r"aggregation and split", r"聚合与分割")),
    (
        "input and output dims",
        ("R04",),
        (r"input dimension", r"output dimensions?", r"equal sign", r"separated by commas", r"维度信息|输入维度"),
    ),
    (
        "dims line up",
        ("R15",),
        (r"dimensions? .*(aligned|will change|information)", r"no loss of dimension", r"维度(变化|正确)"),
    ),
    ("node shapes", ("R05",), (r"ellipse|rectangle|parallelogram", r"节点形状|椭圆")),
    ("acyclic", ("R06",), (r"cycles?\b|acyclic", r"禁止有环|无环")),
    (
        "total input and output, nothing dangling",
        ("R07",),
        (r"total input", r"preceding input node", r"model's input and output", r"悬空|完整输入输出"),
    ),
    ("residual has two inputs", ("R08",), (r"residual", r"残差")),
    ("gate selection dashed", ("R09",), (r"dashed|gate will select", r"虚线")),
    ("operator level", ("R10",), (r"operator level|break it down|multiple operations", r"算子")),
    ("repeats drawn once", ("R11", "R19"), (r"repeated modules|number of repetitions", r"重复")),
    ("connected", ("R14",), (r"connected( to at least)?", r"无用节点|连通")),
    ("batch items independent", ("R21",), (r"independent data points", r"batch中数据")),
)


def _rule_check(ids: tuple[str, ...]) -> Callable[[RunRecord], Verdict]:
    def run(record: RunRecord) -> Verdict:
        if not record.dags:
            return NO_PLAN if record.plan.status == "infeasible" else (False, "no DAG was drawn")
        if ids == ("R09",) and record.plan.deployment.model.moe is None:
            return True, f"{record.plan.deployment.model.name} has no gate"
        broken = [f"{d.dot} breaks {i}" for d in record.dags for i in ids if i in d.broken]
        undecided = [i for i in ids if not any(i in d.passed for d in record.dags)]
        if broken:
            return False, "; ".join(broken)
        if undecided:
            return None, f"{', '.join(undecided)} was not decided on any DAG"
        return True, f"{', '.join(ids)} {'holds' if len(ids) == 1 else 'hold'} on {_dots(record.dags)}"

    return run


def _dots(dags: Iterable[DagReport]) -> str:
    n = len(list(dags))
    return f"{n} DAG{'s' if n != 1 else ''}"


for _name, _ids, _patterns in RULES:
    check(_name, *_patterns)(_rule_check(_ids))
