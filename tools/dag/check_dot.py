"""R01-R21 applied to any DOT text."""

from __future__ import annotations

from tools.dag.alike import form
from tools.dag.facts import view, wiring
from tools.dag.labels import MAX_LABEL
from tools.dag.parse import DotGraph, parse_dot
from tools.dag.rules import ALL_RULES, RULES, RuleResult
from tools.spec.base import Frozen
from tools.spec.finding import Finding

MAX_NODES = 100_000
MIN_SIZE = 100
"""Of a graph with more than `MAX_NODES` nodes of fewer than `MIN_SIZE` characters each, edges included, only the wiring is
judged: its labels hold no dims, and no file of 10 MB may keep the checker busy for long."""
MAX_WORDING = 1_200_000
"""Characters of labels that differ in more than their numbers. Of a graph with more the wiring is judged: generated labels
are alike, and nobody wrote these by hand."""
WIRING = ("R06", "R14")


class SyntaxIssue(Frozen):
    """`column` counts from 1; `fix` is the way out."""

    line: int
    token: str
    message: str
    column: int = 1
    fix: str = ""


class DotReport(Frozen):
    """What the rules say about one graph of one file. `ok`: it parses and no decidable rule fails."""

    file: str
    graph: str
    line: int
    num_nodes: int
    num_edges: int
    syntax: tuple[SyntaxIssue, ...]
    results: tuple[RuleResult, ...]

    @property
    def ok(self) -> bool:
        return not self.syntax and not self.failed

    @property
    def failed(self) -> tuple[RuleResult, ...]:
        return tuple(r for r in self.results if r.status == "failed")

    def findings(self) -> tuple[Finding, ...]:
        """One finding per syntax error and per way in which a rule is broken, with the place and the way out."""
        out = [Finding(code="dot-syntax", severity="error", cause="dag", message=f"{s.message} at {s.token!r}",
        where=f"{self.file}:{s.line}:{s.column}",
                       fix=s.fix or "correct the DOT syntax") for s in self.syntax]  # fmt: skip
        for r in self.failed:
            out += [Finding(code=r.rule, severity="error", cause="dag", message=str(h), where=f"{self.file}:{h.line or 1}",
                            fix=h.fix, values={"title": r.title, "total": h.count}) for h in r.habits]  # fmt: skip
        return tuple(out)


def check_dot(text: str, name: str) -> tuple[DotReport, ...]:
    """One report per graph in `text`; prose and markdown fences around graphs are skipped."""
    return tuple(check_graph(g, name) for g in parse_dot(text))


def _too_large(graph: DotGraph) -> str | None:
    """Why only the wiring is judged."""
    nodes = len(graph.nodes)
    if nodes > MAX_NODES and graph.size < MIN_SIZE * nodes:
        return f"{nodes:,} nodes of fewer than {MIN_SIZE} characters; what so many say is judged up to {MAX_NODES:,}"
    wording = sum(
        map(len, {form(n.attrs.get(k, "")[:MAX_LABEL]) for n in graph.nodes.values() for k in _SAID if k in n.attrs})
    )
    if wording > MAX_WORDING:
        return (
            f"labels of {wording / 1e6:.1f} million characters that differ in more than their numbers; "
            f"what labels say is judged up to {MAX_WORDING / 1e6:.1f} million"
        )
    return None


_SAID = ("label", "xlabel", "tooltip", "comment")


def _undecided(rule: str, why: str) -> RuleResult:
    return RuleResult(rule=rule, title=RULES[rule].title, status="not_decidable", message=why)


def check_graph(graph: DotGraph, name: str) -> DotReport:
    issues = tuple(
        SyntaxIssue(line=p.line, token=p.token, message=p.message, column=p.column, fix=p.fix) for p in graph.problems
    )
    why = _too_large(graph)
    v = wiring(graph) if why else view(graph)
    results = tuple(_undecided(r, why) if why and r not in WIRING else RULES[r](v) for r in ALL_RULES)
    return DotReport(
        file=name,
        graph=graph.name,
        line=graph.line,
        num_nodes=len(graph.nodes),
        num_edges=len(graph.edges),
        syntax=issues,
        results=results,
    )
