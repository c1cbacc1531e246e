"""The HTML view: what the page says, its critical path, and that it works in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_dag import DENSE, SPARSE, dag
from typer.testing import CliRunner

from agent.cli import app
from agent.html_view import critical_path, html
from tools.dag.build import build_dag
from tools.dag.graph import Dag
from tools.graph.build import all_sizes
from tools.partition.lower import lower
from tools.spec.strategy import Strategy

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PLAN = dag(SPARSE, tp=2, attn_dp=2, ep=4)


def data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


# ------------------------------------------------------------------------ the page


def test_the_page_holds_every_node_edge_and_lane_of_the_graph():
    d = data(html(PLAN))
    assert [n[0] for n in d["nodes"]] == [n.id for n in PLAN.nodes]
    edges = {(PLAN.nodes[a].id, PLAN.nodes[b].id, d["tensors"][t], bool(dashed)) for a, b, t, dashed, _ in d["edges"]}
    assert edges == {(e.src, e.dst, e.tensor, e.dashed) for e in PLAN.edges}
    assert [lane[0] for lane in d["lanes"]] == [lane.title for lane in PLAN.lanes]


def test_the_page_asks_for_nothing_from_outside():
    page = html(PLAN)
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|\bfetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_a_name_from_a_file_cannot_end_the_script_element():
    title = "</script><script>document.title='taken'</script> @@DATA@@ 模型"
    page = html(replace(PLAN, title=title))
    assert page.count("</script") == 2 and data(page)["title"] == title


def test_flops_of_all_devices_are_those_of_the_unpartitioned_matmuls():
    """tp splits every matmul of a dense model: the sum over devices is that of one device, whatever tp is."""

    def total(d: Dag) -> float:
        return sum(n.flops * n.repeats for n in d.nodes if "repeat" not in n.operator)

    one, two = dag(DENSE, tp=1), dag(DENSE, tp=2)
    assert total(one) == total(two) > 0
    sizes = dict(re.findall(r"(\w+)=(\d+)", one.attrs["sizes"]))
    b, s = int(sizes["batch_size"]), int(sizes["seq_len"])
    h, heads, kv, d_k, ffn, layers, vocab = 64, 8, 2, 8, 96, 6, 256
    linear = h * (heads + 2 * kv) * d_k + heads * d_k * h + 3 * h * ffn
    attention = 2 * s * heads * d_k
    assert total(one) == 2 * b * s * layers * (linear + attention) + 2 * b * h * vocab


def test_the_dag_command_writes_it_on_request(tmp_path: Path):
    done = CliRunner().invoke(
        app,
        ["dag", "--model", "qwen2.5-7b", "--tp", "2", "--phase", "decode", "--html", "--out", str(tmp_path), "--json"],
    )
    assert done.exit_code == 0, done.output
    (graph,) = json.loads(done.stdout)["graphs"]
    assert len(data(Path(graph["html"]).read_text(encoding="utf-8"))["nodes"]) == graph["nodes"]


# ------------------------------------------------------------------------ critical path


def paths(d: Dag) -> Iterator[tuple[str, ...]]:
    after: dict[str, list[str]] = {n.id: [] for n in d.nodes}
    for e in d.edges:
        after[e.src].append(e.dst)

    def walk(node: str) -> Iterator[tuple[str, ...]]:
        if not after[node]:
            yield (node,)
        for nxt in dict.fromkeys(after[node]):
            yield from ((node, *rest) for rest in walk(nxt))

    return walk(next(n.id for n in d.nodes if n.step == "total_input"))


def test_no_path_through_the_graph_is_longer_than_the_critical_one():
    small = dag(DENSE, tp=1)
    times = {n.id: (1 + hash_free(n.id)) * 1e-6 for n in small.nodes}
    found = critical_path(small, times)
    repeats = {n.id: n.repeats for n in small.nodes}
    longest = max(sum(times[n] * repeats[n] for n in p) for p in itertools.islice(paths(small), 100_000))
    assert found.by == "time" and found.total == pytest.approx(longest)
    assert found.total == pytest.approx(sum(times[n] * repeats[n] for n in found.nodes))


def hash_free(text: str) -> int:
    """A number that differs between nodes and is the same in every run."""
    return sum(i * ord(c) for i, c in enumerate(text)) % 97


def test_the_critical_path_follows_the_slow_device():
    slow = {n.id: (9e-6 if n.lane == 1 else 1e-6) for n in PLAN.nodes}
    found = critical_path(PLAN, slow)
    lanes = {n.lane for n in PLAN.nodes if n.id in found.nodes and n.lane is not None}
    assert lanes == {1}
    ends = [next(n.step for n in PLAN.nodes if n.id == i) for i in (found.nodes[0], found.nodes[-1])]
    assert ends == ["total_input", "total_output"]


def test_without_times_it_goes_by_flops():
    found = critical_path(PLAN)
    by_id = {n.id: n for n in PLAN.nodes}
    assert found.by == "FLOPs" and found.total == sum(by_id[i].flops * by_id[i].repeats for i in found.nodes) > 0


# ------------------------------------------------------------------------ a real browser


class Browser:
    """Chromium over its DevTools pipe (JSON messages ended by NUL on descriptors 3 and 4)."""

    def __init__(self, folder: Path):
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        os.set_inheritable(to_read, True)
        os.set_inheritable(to_write, True)
        place = f"import os, sys; a, b = os.dup({to_read}), os.dup({to_write}); os.dup2(a, 3); os.dup2(b, 4); "
        place += "os.set_inheritable(3, True); os.set_inheritable(4, True); "
        command = [
            sys.executable, "-c", place + "os.execv(sys.argv[1], sys.argv[1:])", str(CHROMIUM), "--headless",
            "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}",
            "--window-size=1400,900",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.count, self.session = b"", 0, ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.read, 1 << 20)
                assert part, "the browser ended"
                self.buffer += part
            line, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path: Path, anchor: str = "") -> None:
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=path.as_uri() + anchor)
        deadline = time.monotonic() + 30
        while self.run("document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < deadline, "the page was not ready within 30 s"
            time.sleep(0.05)
        self.frame()

    def frame(self) -> None:
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.frame()

    def close(self) -> None:
        try:
            self.session = ""
            self.ask("Browser.close")
            self.process.wait(timeout=10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            os.close(self.read)
            os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    b = Browser(tmp_path_factory.mktemp("chromium"))
    yield b
    b.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "plan.html"
    path.write_text(html(PLAN, times={n.id: 1e-5 for n in PLAN.nodes}), encoding="utf-8")
    return path


ON_SCREEN = (
    "(id => { const n = N[byId.get(id)]; return [(n[X] - view.x) * view.scale, (n[Y] - view.y) * view.scale + 86] })"
)


@pytest.mark.browser
def test_in_a_browser_all_nodes_are_drawn_and_a_click_tells_dims_bytes_flops_and_time(browser: Browser, page: Path):
    browser.open(page)
    assert int(browser.run("document.documentElement.dataset.drawn")) == len(PLAN.nodes)
    node = next(n for n in PLAN.nodes if n.flops and n.lane == 2)
    browser.run(f"show(byId.get({node.id!r}))")
    browser.frame()
    browser.click(*browser.run(f"{ON_SCREEN}({node.id!r})"))
    said = browser.run("document.getElementById('panel').innerText")
    assert node.operator in said and f"GPU {node.lane}" in said and "10.0 µs" in said and "FLOP" in said
    assert all(str(p) in said for p in (*node.inputs, *node.outputs, *node.weights))


@pytest.mark.browser
def test_in_a_browser_wheel_zooms_at_the_pointer_and_dragging_moves(browser: Browser, page: Path):
    browser.open(page)
    where = "[view.x + 400 / view.scale, view.y + (500 - 86) / view.scale, view.scale]"
    x, y, scale = browser.run(where)
    browser.mouse("mouseWheel", 400, 500, deltaX=0, deltaY=-600)
    browser.frame()
    x2, y2, scale2 = browser.run(where)
    assert scale2 > 2 * scale and (x2, y2) == pytest.approx((x, y), abs=1)
    browser.mouse("mousePressed", 600, 500, button="left", clickCount=1)
    browser.mouse("mouseMoved", 500, 450, button="left", buttons=1)
    browser.mouse("mouseReleased", 500, 450, button="left", clickCount=1)
    browser.frame()
    x3, y3, _ = browser.run(where)
    assert (x3 - x2, y3 - y2) == pytest.approx((100 / scale2, 50 / scale2), rel=1e-6)
    assert int(browser.run("document.documentElement.dataset.drawn")) < len(PLAN.nodes)


@pytest.mark.browser
def test_in_a_browser_typing_finds_nodes_and_enter_goes_to_them(browser: Browser, page: Path):
    browser.open(page)
    browser.run("document.getElementById('search').focus()")
    browser.ask("Input.insertText", text="q_proj gpu 3")
    wanted = [n for n in PLAN.nodes if all(w in f"{n.id}\n{n.label}".lower() for w in ("q_proj", "gpu", "3"))]
    assert browser.run("document.getElementById('found').textContent") == f"{len(wanted)} found"
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    browser.frame()
    assert browser.run("document.querySelector('#panel h2').textContent") == wanted[0].operator
    x, y = browser.run(f"{ON_SCREEN}({wanted[0].id!r})")
    assert 0 < x < 1000 and 86 < y < 900


@pytest.mark.browser
def test_in_a_browser_a_tensor_is_followed_through_communication_to_its_consumers(browser: Browser, page: Path):
    node = next(n for n in PLAN.nodes if n.lane == 0 and any("Partial" in t for t in n.notes) and n.frame)
    browser.open(page, f"#follow={node.id}/{node.outputs[0].tensor}")
    marked = set(browser.run("[...state.nodes].map(i => N[i][0])"))
    (collective,) = {e.dst for e in PLAN.edges if e.src == node.id}
    consumers = {e.dst for e in PLAN.edges if e.src == collective}
    assert {node.id, collective} | consumers <= marked and len(consumers) > 1


@pytest.mark.browser
def test_in_a_browser_the_critical_path_is_marked(browser: Browser, page: Path):
    browser.open(page)
    browser.run("document.getElementById('critical').click()")
    expected = critical_path(PLAN, {n.id: 1e-5 for n in PLAN.nodes})
    assert browser.run("[...state.nodes].map(i => N[i][0])") == list(expected.nodes)
    assert browser.run("state.edges.size") == len(expected.nodes) - 1
    assert f"{len(expected.nodes)} nodes" in browser.run("document.getElementById('critical-text').textContent")


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser_ten_thousand_nodes_pan_without_a_wait(browser: Browser, tmp_path: Path):
    s = Strategy(tp=1, attn_dp=10, ep=10, dp=13)
    sizes = all_sizes(SPARSE, batch_size=20, seq_len=8, kv_len=8)
    many = build_dag(lower(SPARSE, s, "prefill", sizes), expand_replicas=True)
    assert len(many.nodes) > 10_000
    path = tmp_path / "many.html"
    path.write_text(html(many), encoding="utf-8")
    browser.open(path)
    slowest = browser.run(
        "(() => { const t = []; for (let k = 0; k < 20; k++) { view.x += 50; const a = performance.now(); draw(); "
        "t.push(performance.now() - a) } t.sort((a, b) => a - b); return t[10] })()"
    )
    assert slowest < 1000
    browser.run(f"show(byId.get({many.nodes[5000].id!r}))")
    browser.frame()
    assert 0 < int(browser.run("document.documentElement.dataset.drawn")) < 500
