"""A tolerant DOT parser: any file → generic graphs, with the line of everything.

Understands strict/graph/digraph, several graphs per file, prose and markdown fences around them, attribute defaults,
subgraphs and clusters, edge chains and edges to subgraphs, ports, quoted, concatenated and HTML strings, comments. What
it cannot read it reports with line and token and skips.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.dag.syntax import FIXES, advice


@dataclass(slots=True)
class DotNode:
    id: str
    attrs: dict[str, str]
    line: int
    cluster: str | None = None
    """Innermost cluster that the node was named in."""
    declared: bool = False


@dataclass(slots=True)
class DotEdge:
    src: str
    dst: str
    attrs: dict[str, str]
    line: int


@dataclass(slots=True)
class DotCluster:
    name: str
    parent: str | None
    attrs: dict[str, str]
    line: int


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    line: int
    token: str
    message: str
    column: int = 1
    fix: str = ""


@dataclass(slots=True)
class DotGraph:
    name: str
    directed: bool
    strict: bool
    line: int
    attrs: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, DotNode] = field(default_factory=dict)
    edges: list[DotEdge] = field(default_factory=list)
    clusters: dict[str, DotCluster] = field(default_factory=dict)
    problems: list[SyntaxProblem] = field(default_factory=list)
    size: int = 0
    """Characters of its text."""


_HEAD = re.compile(r"(?<![\w\"])(strict\s+)?(di)?graph\b\s*(\"(?:[^\"\\]|\\.)*\"|[\w.\-]*)\s*\{", re.IGNORECASE)
_TOKEN = re.compile(
    r"""(?P<skip>(?:\s+|//[^\n]*|/\*.*?\*/|(?<![^\s;{}\]])\#[^\n]*)+)
      | (?P<quoted>"[^"\\]*(?:\\.[^"\\]*)*")
      | (?P<edge>->|--)
      | (?P<punct>[{}\[\];,=:+])
      | (?P<id>-?(?:\.\d+|\d+(?:\.\d*)?)(?![A-Za-z_])|[^\W\d]\w*|\d\w*)
      | (?P<html><)
      | (?P<bad>["\#]|/\*|```|\.\.\.|[^\w\s"\#<{}\[\];,=:+.-]+|.)""",
    re.VERBOSE | re.DOTALL,
)
_ATTRIBUTE = re.compile(
    r"""\s*([A-Za-z_]\w*)\s*=\s*("[^"\\]*(?:\\.[^"\\]*)*"|[A-Za-z_]\w*|-?\d+(?:\.\d+)?(?!\w))(?:\s*[,;]|(?=\s*\])|(?=\s+[A-Za-z_]\w*\s*=))""",
    re.DOTALL,
)
"""One `name=value` as nearly all are written; every other form goes through the tokens."""
_EDGE = re.compile(r"([A-Za-z_]\w*)\s*->\s*([A-Za-z_]\w*)\s*;")
"""An edge without attributes as nearly all are written; every other form goes through the tokens."""
_KEYWORDS = frozenset({"node", "edge", "graph", "digraph", "subgraph", "strict"})
_WORD = re.compile(r"\w+")
_STRAY = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*\}", re.DOTALL)
_PLUS = re.compile(r'\s*\+\s*("(?:[^"\\]|\\.)*")')
Token = tuple[str, str, int]
"""(kind, text, offset); kind is id, html, edge, punct, end"""
MAX_DEPTH = 200
MAX_EDGES = 500_000
MAX_PROBLEMS, SHOWN_PROBLEMS = 1_000, 100


def parse_dot(text: str) -> list[DotGraph]:
    """Every graph in `text`. A text without one gives a single empty graph that says so."""
    graphs, at = [], 0
    newlines = [m.start() for m in re.finditer("\n", text)]
    while (head := _HEAD.search(text, at)) is not None:
        if _in_comment(text, head.start()):
            at = head.end()
            continue
        parser = _Parser(text, head.end(), newlines)
        graph = DotGraph(_unquote(head[3] or ""), bool(head[2]), bool(head[1]), parser.line(head.start()))
        at = parser.run(graph)
        graph.size = at - head.start()
        graphs.append(graph)
    if not graphs:
        words = text.split(None, 1)
        problem = SyntaxProblem(
            1,
            words[0][:40] if words else "",
            "no `digraph NAME { … }` in this file",
            1,
            "start with digraph NAME { … }",
        )
        return [DotGraph("", True, False, 1, problems=[problem])]
    return graphs


def _matching(text: str) -> dict[int, int]:
    """Offset of every `<` that is closed → offset of its `>`."""
    opened: list[int] = []
    out: dict[int, int] = {}
    for m in re.finditer("[<>]", text):
        if m[0] == "<":
            opened.append(m.start())
        elif opened:
            out[opened.pop()] = m.start()
    return out


def _in_comment(text: str, at: int) -> bool:
    start = text.rfind("\n", 0, at) + 1
    line = text[start:at].lstrip()
    return line.startswith(("//", "#"))


def _unquote(text: str) -> str:
    if text.startswith('"'):
        return text[1:-1].replace('\\"', '"').replace("\\\n", "")
    return text


@dataclass(slots=True)
class _Scope:
    cluster: str | None
    node: dict[str, str]
    edge: dict[str, str]
    members: list[str] = field(default_factory=list)


class _Parser:
    def __init__(self, text: str, start: int, newlines: Sequence[int]):
        self.text, self.at, self.newlines = text, start, newlines
        self.token: Token = ("", "", start)
        self.graph = DotGraph("", True, False, 1)
        self.brackets: dict[int, int] | None = None
        self.num_problems = 0
        self.last_problem = 0

    def line(self, offset: int) -> int:
        return bisect_right(self.newlines, offset - 1) + 1

    # ------------------------------------------------------------------------ tokens

    def next(self) -> Token:
        while True:
            m = _TOKEN.match(self.text, self.at)
            if m is None:
                self.token = ("end", "", len(self.text))
                return self.token
            self.at, kind = m.end(), m.lastgroup or ""
            if kind == "skip":
                continue
            if kind == "quoted":
                self.token = self._quoted(m)
            elif kind == "html":
                self.token = self._html(m.start())
            elif kind == "bad":
                if self._bad(m):
                    return self.token
                continue
            else:
                self.token = (kind, m[0], m.start())
            return self.token

    def _bad(self, m: re.Match[str]) -> bool:
        """Reports what starts no token. True where a token stands there all the same: a colour without quotes."""
        message, fix = advice(m[0])
        self._problem(m.start(), m[0], message, fix)
        if m[0] == "#" and (word := _WORD.match(self.text, m.end())) is not None and self.num_problems < MAX_PROBLEMS:
            self.token, self.at = ("id", "#" + word[0], m.start()), word.end()
            return True
        if m[0] in ('"', "#", "/*"):
            self.at = self._line_end(m.start())
        elif m[0] == "```":  # prose up to the next fence, if there is one
            again = self.text.find("```", m.end())
            self.at = self._line_end(again) if again >= 0 else len(self.text)
        return False

    def _quoted(self, m: re.Match[str]) -> Token:
        """A string; one that runs over a line's end straight into a word has lost its closing quote on the first line."""
        after = self.text[m.end() : m.end() + 1]
        if "\n" in m[0] and (after.isalnum() or after in "_\\") and not m[0].endswith('\n"'):
            end = self.text.index("\n", m.start())
            cut = max(self.text.rfind("]", m.start(), end), -1)
            self.at = cut if cut > 0 else end
            self._problem(
                m.start(), self.text[m.start() : end], "unterminated string", 'close it with " before the line ends'
            )
            return ("id", self.text[m.start() + 1 : self.at].strip(), m.start())
        if after.isalpha() and not m[0].endswith('\\"'):
            self._problem(
                m.end() - 1,
                self.text[m.end() - 1 : m.end() + 20].split("\n")[0],
                'a " inside a string',
                'write \\" for it',
            )
        return ("id", self._joined(_unquote(m[0])), m.start())

    def _line_end(self, at: int) -> int:
        end = self.text.find("\n", at)
        return len(self.text) if end < 0 else end

    def _joined(self, value: str) -> str:
        """`"a" + "b"` is one string."""
        parts = [value]
        while (m := _PLUS.match(self.text, self.at)) is not None:
            parts.append(_unquote(m[1]))
            self.at = m.end()
        return "".join(parts)

    def _html(self, start: int) -> Token:
        if self.brackets is None:
            self.brackets = _matching(self.text)
        end = self.brackets.get(start)
        if end is not None:
            self.at = end + 1
            return ("html", self.text[start : self.at], start)
        self._problem(start, "<", "unterminated HTML string")
        self.at = self._line_end(start)
        return ("html", self.text[start : self.at], start)

    def _problem(self, offset: int, token: str, message: str, fix: str = "") -> None:
        self.num_problems += 1
        line = self.line(offset)
        if self.num_problems == MAX_PROBLEMS:
            message, self.at = f"{MAX_PROBLEMS:,} syntax errors; the rest is not read", len(self.text)
        elif line == self.last_problem and token:
            return  # what follows on the same line is mostly the same error
        self.last_problem = line
        if len(self.graph.problems) < SHOWN_PROBLEMS or self.num_problems == MAX_PROBLEMS:
            column = offset - (self.newlines[line - 2] if line > 1 else -1)
            self.graph.problems.append(SyntaxProblem(line, token[:40], message, column, fix or FIXES.get(message, "")))

    # ------------------------------------------------------------------------ statements

    def run(self, graph: DotGraph) -> int:
        self.graph = graph
        self.next()
        self._statements(_Scope(None, {}, {}), 0)
        if self.token[0] == "end":
            self._problem(
                len(self.text), "", "missing } at the end of the graph", f"close the {{ of line {graph.line} with }}"
            )
            return self.at
        end = self.at
        if (m := _STRAY.match(self.text, end)) is not None:
            self._problem(m.end() - 1, "}", "this } closes nothing; an earlier one ended the graph")
        return end

    def _statements(self, scope: _Scope, depth: int) -> None:
        while True:
            kind, text, offset = self.token
            if kind == "end" or (text == "}" and kind == "punct"):
                return
            edge = _EDGE.match(self.text, offset) if kind == "id" else None
            if (kind == "punct" and text in ";,") or (edge and self._plain_edge(scope, edge)):
                self.next()
            elif kind in ("id", "html") or (text == "{" and kind == "punct"):
                self._statement(scope, depth)
            else:
                self._problem(offset, text, "a statement cannot start with this")
                self.next()

    def _plain_edge(self, scope: _Scope, m: re.Match[str]) -> bool:
        """`a -> b;` read at once. False where the tokens have more to say about it."""
        src, dst = m[1], m[2]
        special = src.lower() in _KEYWORDS or dst.lower() in _KEYWORDS
        if special or not self.graph.directed or len(self.graph.edges) >= MAX_EDGES:
            return False
        self._node(scope, src, m.start(), {}, declared=False)
        self._node(scope, dst, m.start(), {}, declared=False)
        self.graph.edges.append(DotEdge(src, dst, dict(scope.edge), self.line(m.start())))
        self.at = m.end()
        return True

    def _statement(self, scope: _Scope, depth: int) -> None:
        kind, text, offset = self.token
        bare = self.text[offset : offset + 1] != '"' and kind == "id"
        word = text.lower() if bare else ""
        if word in ("node", "edge", "graph"):
            self.next()
            if self.token[0] != "edge":
                self._defaults(scope, word)
                return
            self._problem(
                offset, text, f"{word} is a keyword of DOT", f'as the name of a node it needs quotes: "{text}"'
            )
            self._edges_or_node(scope, [text], offset, True, depth)
            return
        is_group = text == "{" and kind == "punct"
        if (bare and word == "subgraph") or is_group:
            ends = self._subgraph(scope, depth)
        else:
            self.next()
            if self.token[:2] == ("punct", "="):
                self.next()
                self._graph_attrs(scope, {text: self._value()})
                return
            self._skip_port()
            ends = [text]
        self._edges_or_node(scope, ends, offset, kind in ("id", "html") and word != "subgraph", depth)

    def _defaults(self, scope: _Scope, word: str) -> None:
        if word == "graph" and self.token[:2] == ("punct", "="):
            self.next()
            self._value()
            return
        attrs = self._attr_lists()
        if word == "graph":
            self._graph_attrs(scope, attrs)
        else:
            target = scope.node if word == "node" else scope.edge
            target.update(attrs)

    def _graph_attrs(self, scope: _Scope, attrs: dict[str, str]) -> None:
        (self.graph.clusters[scope.cluster].attrs if scope.cluster else self.graph.attrs).update(attrs)

    def _edges_or_node(self, scope: _Scope, ends: list[str], offset: int, is_node: bool, depth: int) -> None:
        chain = [ends]
        while self.token[0] == "edge":
            if (self.token[1] == "->") != self.graph.directed:
                self._problem(
                    self.token[2],
                    self.token[1],
                    "edges are -> in a digraph, -- in a graph",
                    "write ->" if self.graph.directed else "write --, or digraph instead of graph",
                )
            self.next()
            chain.append(self._endpoint(scope, depth))
        attrs = self._attr_lists()
        if len(chain) == 1:
            if is_node:
                self._node(scope, ends[0], offset, attrs, declared=True)
            return
        for group in chain:
            for n in group:
                self._node(scope, n, offset, {}, declared=False)
        line = self.line(offset)
        for a, b in itertools.pairwise(chain):
            if len(self.graph.edges) + len(a) * len(b) > MAX_EDGES:
                self._problem(offset, "->", f"more than {MAX_EDGES:,} edges; these are left out")
                return
            self.graph.edges += [DotEdge(s, d, {**scope.edge, **attrs}, line) for s in a for d in b]

    def _endpoint(self, scope: _Scope, depth: int) -> list[str]:
        kind, text, offset = self.token
        if (kind == "punct" and text == "{") or (
            kind == "id" and text.lower() == "subgraph" and self.text[offset] != '"'
        ):
            return self._subgraph(scope, depth)
        if kind not in ("id", "html"):
            self._problem(offset, text, "an edge needs a node here")
            return []
        self.next()
        self._skip_port()
        return [text]

    def _subgraph(self, scope: _Scope, depth: int) -> list[str]:
        name = ""
        offset = self.token[2]
        if self.token[1] != "{":
            self.next()
            if self.token[0] == "id":
                name = self.token[1]
                self.next()
        if self.token[:2] != ("punct", "{"):
            self._problem(self.token[2], self.token[1], "a subgraph needs {")
            return []
        if depth > MAX_DEPTH:
            self._problem(offset, "{", f"subgraphs nested deeper than {MAX_DEPTH}")
            self.at = len(self.text)
            self.next()
            return []
        cluster = scope.cluster
        if name.startswith("cluster"):
            cluster = name
            self.graph.clusters.setdefault(name, DotCluster(name, scope.cluster, {}, self.line(offset)))
        inner = _Scope(cluster, dict(scope.node), dict(scope.edge))
        self.next()
        self._statements(inner, depth + 1)
        if self.token[:2] == ("punct", "}"):
            self.next()
        scope.members += inner.members
        return list(dict.fromkeys(inner.members))

    def _node(self, scope: _Scope, name: str, offset: int, attrs: dict[str, str], *, declared: bool) -> None:
        node = self.graph.nodes.get(name)
        if node is None:
            node = self.graph.nodes[name] = DotNode(name, dict(scope.node), self.line(offset))
        if declared and not node.declared:
            node.line, node.declared = self.line(offset), True
        node.attrs.update(attrs)
        if scope.cluster and (node.cluster is None or self._inside(scope.cluster, node.cluster)):
            node.cluster = scope.cluster
        scope.members.append(name)

    def _inside(self, inner: str | None, outer: str) -> bool:
        while inner is not None:
            if inner == outer:
                return True
            inner = self.graph.clusters[inner].parent
        return False

    def _skip_port(self) -> None:
        while self.token[:2] == ("punct", ":"):
            self.next()
            if self.token[0] == "id":
                self.next()

    def _attr_lists(self) -> dict[str, str]:
        attrs: dict[str, str] = {}
        while self.token[:2] == ("punct", "["):
            opened = self.token[2]
            while (m := _ATTRIBUTE.match(self.text, self.at)) is not None:
                attrs[m[1]] = _unquote(m[2])
                self.at = m.end()
            self.next()
            parted = True
            while self.token[:2] != ("punct", "]"):
                kind, key, offset = self.token
                if kind == "end" or kind == "edge" or (key in "{}" and kind == "punct"):
                    self._problem(opened, "[", "attribute list without ]")
                    return attrs
                self.next()
                if kind == "punct":
                    if key not in ",;" or parted:
                        self._problem(offset, key, "an attribute needs a name")
                    parted = True
                    continue
                parted = False
                if self.token[:2] == ("punct", "="):
                    self.next()
                    attrs[key] = self._value()
                elif self.token[0] == "edge" or self.token[:2] == ("punct", "["):
                    # The next statement has begun: read it as one.
                    self._problem(opened, "[", "attribute list without ]")
                    self.at = offset
                    self.next()
                    return attrs
                else:
                    colon = self.token[:2] == ("punct", ":")
                    self._problem(
                        offset, key, "an attribute needs = and a value", "write = instead of :" if colon else ""
                    )
                    attrs[key] = "true"
                    if colon:
                        self.next()
                        attrs[key] = self._value()
            self.next()
        return attrs

    def _value(self) -> str:
        kind, text, offset = self.token
        if kind not in ("id", "html"):
            self._problem(offset, text, "an attribute needs a value")
            return ""
        self.next()
        return text
