"""What is wrong with a character that DOT does not know, and what to write instead."""

from __future__ import annotations

_QUOTES = frozenset("“”„‟‘’‚‛″＂«»")
_ARROWS = frozenset("→⟶⇒⟹➔➜➡⇨—–")
_KNOWN = {
    '"': ("unterminated string", 'close it with "'),
    "/*": ("a comment that never ends", "close it with */"),
    "```": ("a Markdown fence inside the graph", "close the graph with } before the fence, or remove the fence"),
    "\x00": ("a NUL byte", "save the file as plain UTF-8 text"),
    "'": ("single quotes", 'a string needs double quotes: "…"'),
    "#": ("a # comment needs a space before it; a colour with # needs quotes", 'write "#ff0000"'),
    "%": ("no comment of DOT starts so", "start comments with // or #, put IDs with % in quotes"),
    "…": ("an ellipsis is no DOT", "draw the nodes, or say `× n` in a label; comments start with //"),
    "...": ("an ellipsis is no DOT", "draw the nodes, or say `× n` in a label; comments start with //"),
    ">": ("no edge is written so", "write -> in a digraph, -- in a graph"),
}
MARKDOWN = "remove the Markdown, or make the line a comment with //"


def advice(token: str) -> tuple[str, str]:
    """(what is wrong, the way out) for a run of characters that starts no token of DOT."""
    for known, said in _KNOWN.items():
        if token.startswith(known):
            return said
    first = token[:1]
    if first in _QUOTES:
        return "typographic quotes", 'use straight quotes: "'
    if first in _ARROWS:
        return "an arrow or dash that DOT does not know", "write -> in a digraph, -- in a graph"
    if token.startswith(("**", "*", "~~")):
        return "unexpected character: Markdown in the graph", MARKDOWN
    return "unexpected character", f'an ID with {first!r} in it needs quotes: "…"'


FIXES = {
    "missing } at the end of the graph": "add }",
    "an edge needs a node here": "name the node that the edge leads to",
    "attribute list without ]": "close it with ]",
    "an attribute needs = and a value": "write name=value",
    "an attribute needs a value": 'write name="value"',
    "an attribute needs a name": "write name=value, separated by commas",
    "a subgraph needs {": "write subgraph NAME { … }",
    "unterminated HTML string": "every < needs its >; write &lt; for a < in the text",
    "a statement cannot start with this": "remove it, or put the ID in quotes",
}

__all__ = ["FIXES", "advice"]
