"""When a missing fact breaks a rule: only where the file shows how it says such facts, and this node does not.

A rule asks each node for a fact (its device, its dims, its module path). What was not read may be missing, or said in a form
that nobody here knows. The file tells which: where most nodes that say anything of the kind were read, a node that says
nothing of the kind lacks it; where not, the rule is not decidable. A file that says nothing of the kind anywhere lacks it.
Files with the generator's marks (`digest`) are judged to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tools.dag.alike import by_form
from tools.dag.facts import NodeFacts, View
from tools.dag.kinds import COMM
from tools.dag.labels import PATH, TIMES, words
from tools.dag.places import DEVICE_WORD, NO_DEVICE
from tools.dag.ports import BRACKET, square
from tools.dag.rules.base import NotDecidable, Violation

CLEAR = 0.6
"""Share of the nodes that say a fact, from which on the file's way of saying it counts as read."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`read`: the node's fact is known. `hinted`: an unread node shows something that may be it."""

    what: str
    read: Callable[[NodeFacts], bool]
    hinted: Callable[[View, NodeFacts], bool]
    write: str = ""
    """A form that is read."""


def is_own(v: View) -> bool:
    """Drawn by the generator: its forms are all known."""
    return "digest" in v.graph.attrs


def absent(v: View, fact: Fact, nodes: Sequence[NodeFacts]) -> bool:
    """Whether no node was read and hardly one shows anything of the kind.

    Raises `NotDecidable` where none was read but many show something that may be it."""
    if not nodes or any(map(fact.read, nodes)):
        return False
    hinted = [n for n in nodes if fact.hinted(v, n)]
    if len(hinted) > (1 - CLEAR) * len(nodes):
        raise NotDecidable(_unread(fact, hinted, len(nodes)))
    return True


def lacking(v: View, fact: Fact, nodes: Sequence[NodeFacts]) -> Iterator[NodeFacts]:
    """Nodes that lack the fact on the file's own evidence.

    Raises `NotDecidable` in the end where nodes were left out because they may say it in a form that was not read."""
    unread = [n for n in nodes if not fact.read(n)]
    if is_own(v):
        yield from unread
        return
    hinted = [n for n in unread if fact.hinted(v, n)]
    doubtful = {n.id for n in hinted}
    read = len(nodes) - len(unread)
    silent = len(unread) - len(hinted)
    if read >= CLEAR * (read + len(hinted)) or silent > CLEAR * len(nodes):
        yield from (n for n in unread if n.id not in doubtful)
    if hinted:
        raise NotDecidable(_unread(fact, hinted, len(nodes)))


def _unread(fact: Fact, hinted: Sequence[NodeFacts], asked: int) -> str:
    example = " ".join(hinted[0].text.split())[:60]
    return f"{fact.what} could not be read on {len(hinted)} of {asked} nodes, e.g. {hinted[0].id}: {example!r}; write {fact.write}"


def deviating(v: View, what: str, judged: int, found: Iterable[Violation]) -> Iterator[Violation]:
    """Contradictions between two readable facts, unless so many contradict that the reading itself is in doubt."""
    found = list(found)
    if judged > MANY and len(found) > CLEAR * judged and not is_own(v):
        raise NotDecidable(f"{what} disagree at {len(found)} of {judged} places, so they may mean something else here, "
                           f"e.g. {found[0].message}")  # fmt: skip
    yield from found


def in_turn(*parts: Iterable[Violation]) -> Iterator[Violation]:
    """Every part's violations; what one of them cannot decide is raised after all were asked."""
    why: NotDecidable | None = None
    for part in parts:
        try:
            yield from part
        except NotDecidable as e:
            why = why or e
    if why is not None:
        raise why


MANY = 4
"""Places from which on a contradiction at most of them says more about the reading than about the file."""

# ------------------------------------------------------------------------ what may be a fact in a form not read

_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_NUMBERED = re.compile(r"([^\W\d_]+)[\s_:#=\-[({<]{0,2}\d+")
_JOINS = re.compile(
    r"\b(?:groups?|world|peers?|mesh|ring|pairs?|both|each|every|all|shared?|global|host|cpu|tp|pp|dp|ep)\b|→|->|组|全局",
    re.IGNORECASE,
)
_PAIRS = re.compile(r"[^\W\d]\w*\s*[=:∶]\s*\d+")
_SIZED = re.compile(r"[^\W\d]\w*\s*[^\w\s,;.()]{1,2}\s*\d")
_SIZED_IN_WORDS = re.compile(r"[^\W\d]\w*\s\d")
_LISTED = re.compile(r"[\[({<⟨⟪|][^\[\](){}<>⟨⟩⟪⟫|]*\w\s*[,;x×*·]\s*\w[^\[\](){}<>⟨⟩⟪⟫|]*[\])}>⟩⟫|]")
_JOINED_WORDS = re.compile(r"\w(?:::|[./\\>»~!^]|->)[a-z_*\d]|[a-z_]\w*\s(?:>|»|/|::|→|\\|›)\s[a-z_*\d]")
_DIMS = re.compile(r"[\[(][^\[\]()]*[=,][^\[\]()]*[\])]")
_LIKE_PATH = re.compile(rf"{_JOINED_WORDS.pattern}|[a-z]\w*_[a-z]|[a-z][A-Z][a-z]")


def _free(v: View, n: NodeFacts) -> str:
    """The text without devices and module path."""
    text = v.places.without(n.text)
    return text.replace(n.module, " ") if n.module else text


def dims_hinted(v: View, n: NodeFacts) -> bool:
    """More names with numbers, or more lists in brackets, than the dims that were read."""
    ports = [p for found in (n.inputs, n.outputs) for p in found or ()]
    known = sum(len(p.dims) for p in ports) + len(n.whole)
    listed, sized, sized_in_words = _like_dims(_free(v, n))
    return listed > len(ports) + bool(n.whole) or sized > known + 1 or sized_in_words > known + 2


@by_form
def _like_dims(text: str) -> tuple[int, int, int]:
    """How many lists in brackets, names with numbers, and words with numbers stand outside repetitions and paths."""
    text = PATH.sub(" ", TIMES.sub(" ", text))
    return len(_LISTED.findall(text)), len(_SIZED.findall(text)), len(_SIZED_IN_WORDS.findall(text))


def device_hinted(v: View, n: NodeFacts) -> bool:
    """A number, or a word for a group, outside dims and path."""
    joins, numbered = _like_device(n.text)
    return numbered or (joins and n.kind != "compute")


@by_form
def _like_device(text: str) -> tuple[bool, bool]:
    text = _PAIRS.sub(" ", BRACKET.sub(" ", square(PATH.sub(" ", TIMES.sub(" ", text)))))
    text = _COUNTS.sub(" ", _NUMBERED.sub(_of_a_device, text))
    numbered = bool(_NUMBER.search(text)) or any(not NO_DEVICE.match(m[1]) for m in _NUMBERED.finditer(text))
    return _JOINS.search(COMM.sub(" ", words(text))) is not None, numbered


_COUNTS = re.compile(
    rf"\b\d[\d,]*(?:\s*-\s*\d+)?[\s-]+(?:{DEVICE_WORD}|[a-z]{{3,}}s)\b(?:\s*(?:→|->)\s*\d+\b)?", re.IGNORECASE
)
"""`8 GPUs`, `4 heads`, `4 devices → 1`: how many, not which."""


def _of_a_device(m: re.Match[str]) -> str:
    return " " if NO_DEVICE.match(m[1]) else m[0]


def module_hinted(v: View, n: NodeFacts) -> bool:
    """Words joined as paths are, outside operator and dims."""
    text = v.places.without(n.text)
    return _has_joined_words(text) or _has_path(text.replace(n.operator, " ", 1))


@by_form
def _has_joined_words(text: str) -> bool:
    return _JOINED_WORDS.search(_without_dims(text)) is not None


@by_form
def _has_path(text: str) -> bool:
    return _LIKE_PATH.search(_without_dims(text)) is not None


def _without_dims(text: str) -> str:
    return _PAIRS.sub(" ", _DIMS.sub(" ", square(text)))


def boxed_hinted(v: View, n: NodeFacts) -> bool:
    """It lies in a box whose device was not read."""
    return n.cluster is not None and v.lanes.get(n.cluster) is None


DEVICE = Fact("the device", lambda n: n.devices is not None or n.everywhere, device_hinted, "`GPU 3` or `all GPUs`")
DEVICE_ON_LABEL = Fact("the device in the label", lambda n: n.on_label, device_hinted, "`GPU 3`")
DIMS = Fact("dims", lambda n: bool(n.inputs or n.outputs), dims_hinted, "`Input: […], Output: […]`")
INPUT = Fact("the input's dims", lambda n: bool(n.inputs), dims_hinted, "`Input: […]`")
OUTPUT = Fact("the output's dims", lambda n: bool(n.outputs), dims_hinted, "`Output: […]`")
MODULE = Fact(
    "the module path",
    lambda n: bool(n.module),
    module_hinted,
    "`model.layers.0-79.self_attn.q_proj` on a line of its own",
)
