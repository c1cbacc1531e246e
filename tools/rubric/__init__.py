"""The rubric: Rigor, Understand, Attitude, Accuracy, Performance, Result, each 0..1 with a reason and evidence.

`evaluate(record)` scores one run. The bar: no failed check, and every barred score at least 0.8. Adding a criterion is
one module with a decorated function; adding a demand that a task may make is one entry in `constraints.py`.
"""

from tools.rubric.base import BAR, CRITERIA, ConstraintResult, Evaluation, Item, Score, criterion
from tools.rubric.evaluation import evaluate
from tools.rubric.record import Constraint, DagReport, Deliverable, GraphProof, Reference, Role, RunRecord, dag_report
from tools.rubric.task import parse_task

__all__ = [
    "BAR", "CRITERIA", "Constraint", "ConstraintResult", "DagReport", "Deliverable", "Evaluation", "GraphProof", "Item",
    "Reference", "Role", "RunRecord", "Score", "criterion", "dag_report", "evaluate", "parse_task",
]  # fmt: skip
