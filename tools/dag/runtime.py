from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

FONT, FONT_SIZE, LINE, CHAR = "Helvetica", 8, 10.0, 4.5
FILL = {
    "compute": "#dbeafe", "attention": "#d1fae5", "moe": "#ffe4c7", "comm": "#fef3b0", "routing": "#ead9fb",
    "io": "#e5e7eb",
}  # fmt: skip
LINE_COLOUR = {
    "compute": "#1d4ed8", "attention": "#047857", "moe": "#c2410c", "comm": "#a16207", "routing": "#7e22ce",
    "io": "#374151",
}  # fmt: skip
SHAPE = {
    "compute": "box", "attention": "box", "moe": "box", "comm": "ellipse", "routing": "parallelogram",
    "io": "parallelogram",
}  # fmt: skip


def gpu_text(gpus: Sequence[int], everything: bool = False) -> str:
    """`GPU 3`, `GPU 0,1,2,3`, `GPU 0-255` (long and gapless), `all GPUs`."""
    if everything:
        return "all GPUs"
    if len(gpus) > 32 and list(gpus) == list(range(gpus[0], gpus[-1] + 1)):
        return f"GPU {gpus[0]}-{gpus[-1]}"
    return "GPU " + ",".join(map(str, gpus))


def short(device: str) -> str:
    """`GPU 0-7`, where a list of devices has no gaps and a range is shorter."""
    numbers = device.removeprefix("GPU ").split(",")
    if len(numbers) > 4 and all(n.isdigit() for n in numbers):
        values = list(map(int, numbers))
        if values == list(range(values[0], values[-1] + 1)):
            return f"GPU {values[0]}-{values[-1]}"
        if len(values) > 8 and values == list(range(values[0], values[-1] + 1, values[1] - values[0])):
            return f"GPU {values[0]},{values[1]},…,{values[-1]} ({len(values)} GPUs)"
    return device


def wrap(prefix: str, parts: Sequence[str], end: str = "") -> list[str]:
    """`Input: a=[…];` and one line more for every further tensor."""
    lines = [f"{prefix} {parts[0]}" if parts else f"{prefix} []", *(f"    {p}" for p in parts[1:])]
    return [f"{line};" for line in lines[:-1]] + [lines[-1] + end]


def label_of(
    operator: str, module: str, device: str, kernel: str, inputs: Sequence[str], outputs: Sequence[str],
    whole: str, notes: Sequence[str], weights: Sequence[str], caches: Sequence[str],
) -> str:  # fmt: skip
    """Text of a node, lines separated by newlines."""
    where = f"{device} · kernel {kernel}" if kernel else device
    lines = [operator, module, where, *wrap("Input:", inputs, ","), *wrap("Output:", outputs)]
    if whole:
        lines.append(f"Global: {whole}")
    if weights:
        lines += wrap("Weights:", weights)
    if caches:
        lines += wrap("Cache:", caches)
    return "\n".join([*lines, *notes])


def text_width(text: str) -> float:
    """Widest line, in points; East Asian characters count double."""
    return max(len(line) if line.isascii() else _columns(line) for line in text.split("\n")) * CHAR


def _columns(line: str) -> int:
    return sum(2 if c > "\u10ff" and unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def each(*gpus: int) -> list[tuple[int, int, int]]:
    """An edge inside every one of these lanes."""
    return [(g, g, g) for g in gpus]


def fan_in(dst: int, *gpus: int) -> list[tuple[int, int, int]]:
    """From every lane into one node."""
    return [(g, dst, g) for g in gpus]


def fan_out(src: int, *gpus: int) -> list[tuple[int, int, int]]:
    """From one node into every lane."""
    return [(src, g, g) for g in gpus]


def points(*xy: tuple[float, float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)


def border(box: Any, x: float, below: bool) -> float:
    """Height of a node's lower or upper border at `x`."""
    shape, cx, cy, w, h = box[:5]
    if shape == "ellipse":
        t = min(abs(x - cx) / (w / 2), 0.995)
        h *= (1 - t * t) ** 0.5
    return cy - h / 2 if below else cy + h / 2


def side(box: Any, right: bool, dy: float) -> float:
    """Abscissa of a node's left or right border, `dy` above its middle."""
    shape, cx, _, w, h = box[:5]
    half = w / 2
    if shape == "parallelogram":
        lean = 0.2045 * w  # Graphviz leans a parallelogram by this share of its width
        half += lean * (dy / h - 0.5) if right else -lean * (dy / h + 0.5)
    elif shape == "ellipse":
        half *= max(0.0, 1 - (2 * dy / h) ** 2) ** 0.5
    return cx + half if right else cx - half


def straight(src: Any, dst: Any, x: float | None) -> str:
    """Down from `src` to `dst`, vertically at `x` where both are that wide; over a bus where one fans out to far lanes."""
    hub, leaf = (src, dst) if src[0] == "parallelogram" else (dst, src)
    if hub[0] == "parallelogram" and abs(src[1] - dst[1]) > 60:
        at = leaf[1] if x is None else _reach(leaf, x)
        ends = (hub[1], at) if hub is src else (at, hub[1])
        return bus(src, dst, *ends, near_source=hub is src)
    x0, x1 = _reach(src, dst[1] if x is None else x), _reach(dst, src[1] if x is None else x)
    y0, y1 = border(src, x0, True), border(dst, x1, False) + 6
    bend = (y0 - y1) / 2 if abs(x0 - x1) > 1 else (y0 - y1) / 3
    return f"e,{x1:.1f},{y1 - 6:.1f} " + points((x0, y0), (x0, y0 - bend), (x1, y1 + bend), (x1, y1))


def bus(src: Any, dst: Any, x0: float, x1: float, *, near_source: bool) -> str:
    """Down, along a line that all edges of the hub share, and down: clear of lane titles and of the nodes between."""
    y0, y1, out = border(src, x0, True), border(dst, x1, False), 8.0 if x1 > x0 else -8.0
    y = y0 - 16 if near_source else y1 + 26
    return f"e,{x1:.1f},{y1:.1f} " + points(
        (x0, y0), (x0, y0), (x0, y + 8), (x0, y + 8), (x0, y), (x0, y), (x0 + out, y),
        (x0 + out, y), (x1 - out, y), (x1 - out, y), (x1, y), (x1, y), (x1, y - 8),
        (x1, y - 8), (x1, y1 + 6), (x1, y1 + 6),
    )  # fmt: skip


def _reach(box: Any, x: float) -> float:
    half = box[3] / 2 * {"ellipse": 0.94, "parallelogram": 0.55}.get(box[0], 0.9)
    return min(max(x, box[1] - half), box[1] + half)


def beside(src: Any, dst: Any, cx: float, slot: int) -> str:
    """Around the nodes between `src` and `dst`, down the channel at `cx`."""
    right = cx > (dst[1] if dst[0] != "ellipse" else src[1])
    out = 1 if right else -1
    dy = 4.0 * (slot % 5 - 2)
    wide = src[0] == "ellipse" and abs(cx - src[1]) < src[3] / 2 * 0.97
    start = (cx, border(src, cx, True)) if wide else (side(src, right, dy), src[2] + dy)
    if dst[0] == "ellipse" and abs(cx - dst[1]) < dst[3] / 2 * 0.97:
        tip = border(dst, cx, False)
        tail = [(cx, tip + 30), (cx, tip + 20), (cx, tip + 6)]
        end, at = (cx, tip), tip + 40
    else:
        x1, y1 = side(dst, right, dy), dst[2] + dy
        tail, end, at = [(cx, y1), (cx, y1), (x1 + 6 * out, y1)], (x1, y1), y1 + 12
    down = start[1] if wide else start[1] - 12
    head = [(cx, start[1]), (cx, start[1]), (cx, down)]
    mid = [(cx, down), (cx, at), (cx, at)]
    return f"e,{end[0]:.1f},{end[1]:.1f} " + points(start, *head, *mid, *tail)


def draw_nodes(steps: Any, lane_x: Any, all_gpus: Any) -> Iterator[tuple[str, int | None, str, dict[str, str], Any]]:
    """(node id, lane or None, frame, attributes, box) for every node of every step."""
    for step, y, width, height, gap, role, module, kernel, repeats, layers, frame, instances in steps:
        k = 0
        for places, inputs, outputs, whole, notes, weights, caches, items, operator in instances:
            for gpus, lane in places:
                device = gpu_text(gpus or all_gpus, not gpus)
                label = label_of(operator, module, device, kernel, inputs, outputs, whole, notes, weights, caches)
                ends = [lane_x[i] for i in (lane if isinstance(lane, tuple) else (lane,))]
                x, w = sum(ends) / len(ends), width + (ends[-1] - ends[0] if role == "comm" else 0.0)
                caption = (
                    (f"{operator}\n{short(device)}", text_width(label))
                    if role == "comm" and ends[-1] > ends[0]
                    else ("", 0.0)
                )
                box = (SHAPE[role], x, y - k * gap, w, height, *caption)
                attrs = {
                    "label": label.replace("\n", "\\n"), "shape": SHAPE[role], "pos": f"{x:.1f},{y - k * gap:.1f}!",
                    "width": f"{w / 72:.3f}", "height": f"{height / 72:.3f}", "fillcolor": FILL[role],
                    "color": LINE_COLOUR[role], "role": role, "operator": operator, "module": module, "kernel": kernel,
                    "gpu": device.removeprefix("GPU "), "repeats": str(repeats), "layer_indices": layers,
                    "weights": "; ".join(weights), "caches": "; ".join(caches), "batch_items": items,
                }  # fmt: skip
                k += 1
                first = gpus[0] if gpus else 0
                yield (
                    f"{step}__g{first}",
                    None if isinstance(lane, tuple) else lane,
                    frame,
                    {a: v for a, v in attrs.items() if v},
                    box,
                )


def draw_edges(edges: Any, boxes: Any, gpu_x: Any) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(source, destination, attributes) of every edge; `channel` is the distance from the lane's middle, or 0."""
    for src, dst, tensor, dims, dashed, channel, slot, pairs in edges:
        for a, b, lane in pairs:
            s, d = f"{src}__g{a}", f"{dst}__g{b}"
            x = gpu_x.get(lane)
            if channel and x is not None:
                path, lx = beside(boxes[s], boxes[d], x + channel, slot), x + channel
                ly = boxes[d][2] + (boxes[d][4] / 2 + 6 if channel < 0 else 14 + 4.0 * (slot % 5))
            else:
                # A dashed line between nodes that data joins too runs beside it.
                path = straight(boxes[s], boxes[d], x + 26 if dashed and x is not None else x)
                tip = path.split()[0].split(",")
                lx, ly = float(tip[1]), float(tip[2]) + 13
            attrs = {
                "label": tensor, "tensor": tensor, "dims": dims, "pos": path,
                "lp": f"{lx + 4 + 2.1 * len(tensor):.1f},{ly:.1f}",
            }  # fmt: skip
            if not dashed:
                attrs |= beneath(boxes[d], x, dims)
            else:
                attrs |= {"style": "dashed", "color": LINE_COLOUR["routing"], "fontcolor": LINE_COLOUR["routing"]}
            yield s, d, attrs


def beneath(box: Any, x: float | None, dims: str) -> dict[str, str]:
    """What a wide node is, written once more inside it where an edge from a lane at `x` ends, far from its label."""
    _, cx, cy, w, _, caption, label_width = box
    if not caption or x is None:
        return {}
    text = f"{caption}\n{dims}"
    half = text_width(text) / 2
    if abs(x - cx) < label_width / 2 + half + 10:
        return {}
    at = min(max(x, cx - w / 2 + half), cx + w / 2 - half)
    return {
        "headlabel": text.replace("\n", "\\n"), "head_lp": f"{at:.1f},{cy:.1f}", "labelfontsize": str(FONT_SIZE),
        "labelfontcolor": "#1f2937",
    }  # fmt: skip


def legend(title: str, subtitle: str) -> str:
    """Title and key of colours and shapes, as the label of the graph: nodes would have to be connected."""
    words = {
        "compute": "rectangle: computation", "attention": "attention", "moe": "MoE experts",
        "comm": "ellipse: communication",
        "routing": "parallelogram: routing, split, aggregation", "io": "total input / output",
    }  # fmt: skip
    cells = "".join(f'<TD BGCOLOR="{FILL[r]}" COLOR="{LINE_COLOUR[r]}">{w}</TD>' for r, w in words.items())
    esc = [t.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for t in (title, subtitle)]
    return (
        '<<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="6" CELLPADDING="5">'
        f'<TR><TD COLSPAN="7" BORDER="0" ALIGN="LEFT"><FONT POINT-SIZE="26"><B>{esc[0]}</B></FONT></TD></TR>'
        f'<TR><TD COLSPAN="7" BORDER="0" ALIGN="LEFT"><FONT POINT-SIZE="15">{esc[1]}</FONT></TD></TR>'
        f'<TR>{cells}<TD COLOR="{LINE_COLOUR["routing"]}" STYLE="dashed">dashed: gate selection</TD></TR></TABLE>>'
    )


NODE_ATTRS = {
    "fontname": FONT, "fontsize": str(FONT_SIZE), "style": "filled", "fixedsize": "true", "margin": "0.02,0.02",
    "penwidth": "0.8",
}  # fmt: skip
EDGE_ATTRS = {
    "fontname": FONT, "fontsize": "7", "color": "#4b5563", "fontcolor": "#6b7280", "arrowsize": "0.6",
    "penwidth": "0.9",
}  # fmt: skip


def graph_attrs(title: str, subtitle: str, facts: Any) -> dict[str, str]:
    return {
        "label": legend(title, subtitle), "labelloc": "t", "labeljust": "l", "fontname": FONT, "layout": "nop2",
        "splines": "true",
        "outputorder": "nodesfirst", "bgcolor": "white", "pad": "0.3", **facts,
    }  # fmt: skip


def lane_attrs(title: str, gpu: str, bb: str) -> dict[str, str]:
    x0, _, _, y1 = map(float, bb.split(","))
    return {
        "label": title, "bb": bb, "lp": f"{x0 + 12 + len(title) * 4.3:.1f},{y1 - 14:.1f}", "gpu": gpu,
        "style": "filled,rounded",
        "fillcolor": "#f8fafc", "color": "#94a3b8", "fontname": "Helvetica-Bold", "fontsize": "15",
    }  # fmt: skip


def frame_attrs(title: str, repeats: int, layers: str, bb: str) -> dict[str, str]:
    x0, _, _, y1 = map(float, bb.split(","))
    return {
        "label": title, "bb": bb, "lp": f"{x0 + 10 + len(title) * 3.1:.1f},{y1 - 9:.1f}", "repeats": str(repeats),
        "layer_indices": layers,
        "style": "filled,rounded", "fillcolor": "#eef2f7", "color": "#64748b", "fontname": "Helvetica-Bold",
        "fontsize": "11",
    }  # fmt: skip
