"""Passages by meaning of their words: SQLite FTS5 with porter stemming, CJK bigrams, and a bilingual glossary.

A passage is one section of a Markdown or text file, cited as file:line. The index lives in memory; passages come from
`knowledge/passages/` and from the directories the user names.
"""

from __future__ import annotations

import importlib.resources
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.spec.base import Frozen, ToolError

GLOSSARY: tuple[tuple[str, ...], ...] = (
    ("tp", "tensor parallel", "tensor parallelism", "张量并行", "模型并行"),
    ("sp", "sequence parallel", "sequence parallelism", "序列并行"),
    ("pp", "pipeline parallel", "pipeline stages", "流水线并行", "流水并行", "流水线"),
    ("dp", "data parallel", "replicas", "数据并行", "副本"),
    ("ep", "expert parallel", "expert parallelism", "专家并行"),
    ("etp", "expert tensor parallel", "expert slicing", "专家张量并行"),
    ("attention_dp", "attn_dp", "dp attention", "attention data parallel", "注意力数据并行"),
    ("cp", "context parallel", "context parallelism", "ulysses", "上下文并行"),
    ("ring", "ring attention", "zig-zag", "zigzag", "环形注意力", "环状注意力"),
    ("dcp", "decode context parallel", "decode context parallelism", "解码上下文并行"),
    ("dk", "two-level slicing", "两级切分", "两层切分"),
    ("large_ep", "large expert parallelism", "one expert per device", "大规模专家并行", "大 ep"),
    ("edp", "expert data parallel", "copies of experts", "专家数据并行"),
    ("uneven_pp", "uneven stages", "uneven pipeline", "非均匀流水线", "不均匀切分"),
    ("int4", "mxfp4", "nvfp4", "awq", "gptq", "4-bit", "四比特"),
    ("mla_absorption", "absorbed form", "weight absorption", "矩阵吸收"),
    ("sliding_window", "sliding window", "chunked attention", "attention sinks", "滑动窗口"),
    ("moe", "mixture of experts", "experts", "router", "混合专家", "专家", "路由"),
    ("mla", "latent attention", "multi-head latent attention", "潜在注意力"),
    ("gqa", "grouped-query attention", "kv heads", "分组查询注意力"),
    ("kv_cache", "kv cache", "key value cache", "kv 缓存", "键值缓存", "缓存"),
    ("chunked_prefill", "chunked prefill", "prefill", "预填充", "分块预填充", "首字", "首 token"),
    ("decode", "decoding", "tpot", "inter-token latency", "解码", "生成"),
    ("ttft", "time to first token", "首 token 延迟", "首字延迟"),
    ("balance", "load balance", "imbalance", "负载均衡", "均衡"),
    ("fp8", "quantization", "quantisation", "8-bit", "量化", "低精度"),
    ("all_reduce", "all-reduce", "allreduce", "归约"),
    ("all_to_all", "all-to-all", "alltoall", "全对全", "dispatch", "combine"),
    ("nvlink", "interconnect", "bandwidth", "互联", "带宽"),
    ("memory", "vram", "hbm", "显存", "内存"),
)
"""Groups of words for one thing; a query that has one of a group also finds the others."""


class Passage(Frozen):
    """`id` is unique in a library; `line` is 1-based, of the heading."""

    id: str
    title: str
    file: str
    line: int
    text: str
    subjects: tuple[str, ...] = ()
    main: str = ""
    """The subject it is about, where its author or its title says so."""
    source: str = ""


class Hit(Frozen):
    passage: Passage
    score: float
    """bm25, larger is better."""


class Library:
    """An index over passages. `search` is deterministic: ties are broken by id."""

    def __init__(self, passages: Iterable[Passage]):
        self.passages = {p.id: p for p in passages}
        self._db = sqlite3.connect(":memory:")
        tokenizer = "porter unicode61 tokenchars '_'"
        self._db.execute(
            f'CREATE VIRTUAL TABLE p USING fts5(id UNINDEXED, main, title, subjects, body, tokenize="{tokenizer}")'
        )
        rows = [
            (p.id, f"main_{p.main}", index_text(p.title), " ".join(p.subjects), index_text(p.text))
            for p in self.passages.values()
        ]
        self._db.executemany("INSERT INTO p VALUES (?, ?, ?, ?, ?)", rows)

    def search(self, query: str, limit: int = 8) -> tuple[Hit, ...]:
        """Best passages for a query in English or Chinese; empty when no word of it occurs."""
        words = query_words(query)
        if not words:
            return ()
        match = " OR ".join(f'"{w}"' for w in words)
        rows = self._db.execute(
            "SELECT id, -bm25(p, 0, 8.0, 4.0, 4.0, 1.0) AS s FROM p WHERE p MATCH ? ORDER BY s DESC, id LIMIT ?",
            (match, max(1, limit)),
        ).fetchall()
        return tuple(Hit(passage=self.passages[i], score=round(s, 6)) for i, s in rows)


def cjk_bigrams(text: str) -> str:
    """Runs of Chinese characters as overlapping pairs, so that FTS5 can match inside them."""
    out = []
    for run in re.findall(r"[\u3400-\u9fff\uf900-\ufaff]+", text):
        out += [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]
    return " ".join(out)


def index_text(text: str) -> str:
    latin = re.sub(r"[\u3400-\u9fff\uf900-\ufaff]+", " ", text)
    return f"{latin} {cjk_bigrams(text)}"


def subjects_in(text: str) -> tuple[str, ...]:
    """Glossary subjects that `text` names, by any of their words."""
    lower = text.lower()
    return tuple(g[0] for g in GLOSSARY if any(_occurs(w, lower) for w in g))


def query_words(query: str) -> list[str]:
    """Words, bigrams, and the glossary's other names of what the query names."""
    # A subject that every passage mentions has no weight of its own; that a passage is *about* it has.
    about = [f"main_{s}" for s in subjects_in(query)]
    wider = [query.lower()] + [" ".join(g) for g in GLOSSARY if g[0] in subjects_in(query)]
    words = re.findall(r"[a-z0-9_]+", index_text(" ".join(wider)).lower()) + cjk_bigrams(" ".join(wider)).split()
    stop = {"the", "a", "an", "of", "and", "or", "to", "in", "on", "for", "is", "what", "how", "with", "per", "does"}
    return [w for w in dict.fromkeys((*about, *words)) if w not in stop]


def _occurs(word: str, text: str) -> bool:
    if not word.isascii():
        return word in text
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text) is not None


def builtin_passages() -> tuple[Passage, ...]:
    """The passages that come with meshwright."""
    folder = importlib.resources.files("knowledge") / "passages"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".md")), key=lambda f: f.name)
    return tuple(
        p for f in files for p in split(f.read_text(encoding="utf-8"), f"knowledge/passages/{f.name}", f.name[:-3])
    )


def user_passages(folder: Path) -> tuple[Passage, ...]:
    """Sections of every .md and .txt file under `folder`. Raises ToolError when it is no readable directory."""
    if not folder.is_dir():
        raise ToolError(f"--knowledge {folder}: not a directory")
    out: list[Passage] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".md", ".txt") and p.is_file()):
        if path.stat().st_size > 5_000_000:
            raise ToolError(f"--knowledge {path}: {path.stat().st_size / 1e6:.0f} MB; files up to 5 MB are read")
        name = path.relative_to(folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = path.read_text(encoding="gb18030", errors="replace")
        out += split(text, name, f"user:{name}")
    return tuple(out)


def split(text: str, file: str, prefix: str) -> list[Passage]:
    """Sections of a Markdown text by heading. A front matter `subjects: a, b` / `source: …` applies to all of them."""
    meta, skip = _front_matter(text)
    lines = text.splitlines()
    heads = [
        i for i, line in enumerate(lines) if i >= skip and re.match(r"#{1,4}\s+\S", line) and not _fenced(lines, i)
    ] or [skip]
    if any(line.strip() for line in lines[skip : heads[0]]):
        heads.insert(0, skip)
    out = []
    for n, start in enumerate(heads):
        end = heads[n + 1] if n + 1 < len(heads) else len(lines)
        body = "\n".join(lines[start:end]).strip()
        if not body:
            continue
        title = re.sub(r"^#+\s*", "", lines[start]).strip() or file
        declared = tuple(s.strip() for s in meta.get("subjects", "").split(",") if s.strip())
        out.append(
            Passage(
                id=prefix if len(heads) == 1 else f"{prefix}#{n + 1}",
                title=title,
                file=file,
                line=start + 1,
                text=body,
                subjects=declared or subjects_in(body),
                main=next(iter(declared or subjects_in(title)), ""),
                source=meta.get("source", ""),
            )
        )
    return out


def _fenced(lines: Sequence[str], index: int) -> bool:
    return sum(1 for line in lines[:index] if line.lstrip().startswith("```")) % 2 == 1


def _front_matter(text: str) -> tuple[dict[str, str], int]:
    m = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not m:
        return {}, 0
    pairs = (line.split(":", 1) for line in m.group(1).splitlines() if ":" in line)
    return {k.strip(): v.strip() for k, v in pairs}, m.group(0).count("\n")
