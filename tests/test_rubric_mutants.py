"""The rubric against seeded flaws of real runs: each lowers the criterion it concerns, and a right run has full marks.

Three runs are made once: a dense model, a mixture of experts, and an infeasible verdict. `tests/rubric_mutants.py` knows
the flaws; `pytest tests/test_rubric_mutants.py -s` prints how many there were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.draw import judge
from agent.graph import start
from agent.options import RunOptions
from agent.rejudge import Restated, rejudge, restate
from tests.rubric_mutants import DOT_EDITS, FILE_KINDS, KINDS
from tests.test_agent_run import CONDITIONS, IMPOSSIBLE
from tools.rubric import CRITERIA, evaluate
from tools.spec.base import ToolError

MOE = CONDITIONS.replace("2 x NVIDIA", "4 x NVIDIA").replace("Qwen2.5-7B-Instruct", "Mixtral-8x7B-Instruct")
OFFICE = "\n## Office\n- The coffee machine has 2 buttons.\n"
RUNS = {"dense": CONDITIONS + OFFICE, "experts": MOE, "infeasible": IMPOSSIBLE}

SURVIVORS: dict[str, dict[str, str]] = {
    "an edge taken out": {
        "dispatch": "R15 asks computations for every input they name; a dispatch goes on with the router's edge alone, "
        "as in foreign files that draw only that. Against the graph in memory the edge is missed (`dag-changed`).",
    },
    "one repetition less of an operator": {
        "combine": "R19 counts the layers by the operators that compute; dispatch and combine only move tokens, and the "
        "run of layers they stand in says how often. Against the graph in memory it is told (`dag-changed`).",
    },
}
"""Kind → part of a mutant's place → why it rightly changes nothing."""

counted: dict[str, int] = {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Restated]]]:
    made = {}
    for name, text in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "c.md").write_text(text)
        asyncio.run(start(RunOptions(cwd=str(folder), inputs=("c.md",)), folder / "out"))
        made[name] = (folder / "out", restate(folder / "out"))
    yield made
    if counted:
        print(f"\n{sum(counted.values())} mutants of {len(counted)} kinds, each caught")


def values(evaluation) -> dict[str, float]:
    return {s.criterion: s.value for s in evaluation.scores}


def justified(kind: str, place: str) -> bool:
    return any(part in place for part in SURVIVORS.get(kind, {}))


def test_a_right_run_has_full_marks_from_its_record_and_again_from_its_files(runs):
    for name, (folder, r) in runs.items():
        found = values(evaluate(r.record))
        # The reference simulates moves around the plan: it may find some tenths of a per cent.
        assert found.pop("performance") == pytest.approx(1.0, abs=0.01), name
        assert found == dict.fromkeys([c for c in CRITERIA if c != "performance"], 1.0), name
        again = rejudge(folder, r)
        assert again.passed and again.failed_checks == (), name
        assert again.to_json().encode() == (folder / "evaluation.json").read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_flaw_in_a_runs_record_lowers_its_criterion(runs, kind):
    flaw, survivors, number = KINDS[kind], [], 0
    for name, (_, r) in runs.items():
        right = evaluate(r.record).score(flaw.lowers).value
        for place, spoiled in flaw.seeded(r.record):
            number += 1
            found = evaluate(spoiled).score(flaw.lowers)
            assert found.reason
            if found.value >= right and not justified(kind, place):
                survivors.append(f"{name}: {place}")
            elif flaw.lowers == "rigor" and found.value < right:
                assert found.value <= 0.5, f"{name}: {place}: an engineering error is below the bar"
    assert not survivors, f"{len(survivors)} of {number} survive: {survivors[:8]}"
    assert number >= 1
    counted[kind] = number


def texts_of(folder: Path) -> dict[str, str]:
    tops = ("plan.json", "manifest.json", "evaluation.json", "plan.md", "pareto.svg", "pareto.csv", "dag", "launch")
    found = [p for t in tops for p in ([folder / t] if (folder / t).is_file() else sorted((folder / t).rglob("*")))]
    # A view of the schedule is no DAG of operators: it may be there for any role.
    kept = (p for p in found if p.is_file() and ".schedule." not in p.name)
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in kept}


def lowered(folder: Path, r: Restated, path: str, text: str, criterion: str) -> bool:
    """Whether the criterion falls while `text` lies at `path`; a file that cannot be read at all is refused."""
    before = (folder / path).read_bytes()
    try:
        (folder / path).write_text(text, encoding="utf-8")
        return rejudge(folder, r).score(criterion).value < r.evaluation.score(criterion).value
    except ToolError as e:
        return path in str(e)
    finally:
        (folder / path).write_bytes(before)


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_flaw_in_a_published_file_lowers_its_criterion(runs, kind):
    flaw, survivors, number = FILE_KINDS[kind], [], 0
    for name, (folder, r) in runs.items():
        for place, path, text in flaw.seeded(texts_of(folder)):
            number += 1
            if not lowered(folder, r, path, text, flaw.lowers) and not justified(kind, place):
                survivors.append(f"{name}: {place}")
    assert not survivors, f"{len(survivors)} of {number} survive: {survivors[:8]}"
    assert number >= 1
    counted[kind] = number


@pytest.mark.parametrize("kind", DOT_EDITS)
def test_an_edited_dag_breaks_a_rule_on_the_file_alone(runs, kind):
    """Without the graph in memory to compare with: what `check-dag` sees of a foreign file, the rubric sees too."""
    survivors, number = [], 0
    for name in ("dense", "experts"):
        folder, r = runs[name]
        proofs = {f"{p.role}_{p.proof.phase}": p.proof for p in r.record.proofs}
        for place, path, text in DOT_EDITS[kind](texts_of(folder)):
            number += 1
            stem = Path(path).stem
            passed, broken = judge(text, stem, proofs[stem])
            dags = tuple(
                d.model_copy(update={"passed": passed, "findings": tuple(broken)}) if d.dot == path else d
                for d in r.record.dags
            )
            told = evaluate(r.record.model_copy(update={"dags": dags}))
            if (told.score("rigor").value > 0.5 or told.passed) and not justified(kind, place):
                survivors.append(f"{name}: {place}")
    assert not survivors, f"{len(survivors)} of {number} survive: {survivors[:8]}"
    assert number >= 1
    counted[kind] = number


def test_a_file_that_is_gone_is_missed(runs):
    folder, r = runs["dense"]
    for path in sorted(texts_of(folder)):
        before = (folder / path).read_bytes()
        (folder / path).unlink()
        try:
            score = rejudge(folder, r).score("result").value
        except ToolError as e:
            assert path in str(e)
            score = 0.0
        finally:
            (folder / path).write_bytes(before)
        assert score < 1.0, path


def test_a_run_directory_is_judged_again_from_the_command_line(runs, capsys):
    from evals.__main__ import evaluate as command

    folder, _ = runs["dense"]
    assert command(str(folder), ["builtin"], folder) == 0 and "passed" in capsys.readouterr().out
    before = (folder / "launch/vllm/serve.sh").read_text()
    try:
        (folder / "launch/vllm/serve.sh").write_text(before.replace("--max-num-seqs ", "--max-num-seqs 1"))
        assert command(str(folder), ["builtin"], folder) == 1
        assert "launch/vllm/serve.sh: line" in capsys.readouterr().out
    finally:
        (folder / "launch/vllm/serve.sh").write_text(before)


def test_there_were_more_than_200_mutants_of_every_criterion_and_file(runs):
    if len(counted) < len(KINDS) + len(FILE_KINDS) + len(DOT_EDITS):
        pytest.skip("only some kinds were run")
    assert sum(counted.values()) >= 600
    assert {k.split(":")[0] for k in KINDS} == set(CRITERIA)
