"""How sure the choice is, and whether a reference that is not the search's own can beat it."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from agent.bind import Workbench
from agent.commands.common import deployment_from
from agent.commands.pure import search as search_command
from agent.reference import candidates, moves, reference_of, run, stage_moves
from knowledge.curves import load_curves
from tools.rubric.performance import distance_item
from tools.rubric.record import Reference
from tools.search import evaluate_strategy, search
from tools.search.explain import (
    _largest,
    best_of,
    lighter_load,
    relaxed_limits,
    shorter_context,
    with_workload,
)
from tools.search.rank import explore
from tools.search.sensitivity import best_values, layout, moved, sensitivity, sentence
from tools.spec.deployment import Assumption, Deployment
from tools.spec.plan import SearchResult
from tools.spec.strategy import Strategy

CURVES = load_curves()
ASKED: dict = {
    "model": "qwen3-8b", "device": "h100", "isl": 1000, "osl": 200, "nodes": 1, "devices_per_node": 4, "rate": 20.0,
    "ttft_ms": 2000.0, "tpot_ms": 50.0, "top": 6,
}  # fmt: skip


def deployment(**more: object) -> Deployment:
    return deployment_from({**ASKED, **more})


@lru_cache(maxsize=4)
def found(**more: object) -> SearchResult:
    return search(deployment(**more), CURVES, top=6)


def test_one_walk_values_strategies_as_they_are_valued_alone() -> None:
    d, r = deployment(), found()
    strategies = [c.estimate.strategy for c in r.ranked]
    alone = [
        evaluate_strategy(d, Strategy.model_validate(s.model_dump(exclude={"batch"})), CURVES).objective_value
        for s in strategies
    ]
    assert best_values(d, CURVES, strategies, r.objective) == pytest.approx(alone)


def test_a_rival_that_moves_data_less_wins_when_links_are_slower() -> None:
    """Four replicas have no collectives: if tp won by a hair, slow links would turn it; the other way round nothing does."""
    d, r = deployment(), found()
    by_label = {c.estimate.strategy.label(False): c for c in r.ranked}
    apart, joined = by_label["tp1·dp4"], by_label["tp4"]
    slow = moved(CURVES, d, "link", 3.0)
    before = best_values(d, CURVES, [apart.estimate.strategy, joined.estimate.strategy], r.objective)
    after = best_values(d, slow, [apart.estimate.strategy, joined.estimate.strategy], r.objective)
    assert after[0] == pytest.approx(before[0])
    assert (after[1] or 0) < 0.9 * (before[1] or 0)


def test_a_wide_lead_stands_and_says_by_how_much() -> None:
    d = deployment(model="llama3.1-70b", devices_per_node=8, rate=None, ttft_ms=None, tpot_ms=None, concurrency=64)
    r = search(d, CURVES, top=6)
    s = sensitivity(d, CURVES, r.ranked, r.objective)
    assert s is not None and s.stable and s.gap > 0.05
    assert s.runner_up in sentence(s) and "stays the best" in sentence(s)
    assert s.experiment is not None and s.experiment.first.label(False) == s.top


def test_a_choice_within_the_band_turns_and_names_the_experiment() -> None:
    """The runner-up is made the plan: something within the band must turn it back, or nothing was moved."""
    r = found()
    second = next(c for c in r.ranked if layout(c.estimate.strategy) != layout(r.ranked[0].estimate.strategy))
    s = sensitivity(deployment(), CURVES, r.ranked, r.objective, top=second)
    assert s is not None and s.flips
    assert all(f.winner != s.top and (f.top_value is None or f.winner_value > f.top_value) for f in s.flips)
    e = s.experiment
    assert e is not None and e.second.label(False) in {f.winner for f in s.flips}
    assert e.predicted[0] > 0 and e.metric and e.load and e.decides


def test_an_assumed_length_is_an_uncertain_input() -> None:
    d = deployment().model_copy(
        update={"assumptions": (Assumption(path="workload.osl", value="200", why="not stated"),)}
    )
    s = sensitivity(d, CURVES, found().ranked, found().objective)
    assert s is not None and any("output length" in v for v in s.varied)


def test_without_a_feasible_strategy_there_is_nothing_to_turn() -> None:
    assert sensitivity(deployment(), CURVES, (), "total_throughput") is None


def test_marginal_values_of_devices_nodes_and_requirements_are_there() -> None:
    r = found()
    said = [w.description for w in r.what_ifs]
    assert any(x.startswith("one more device") for x in said) and any("one more node" in x for x in said)
    assert sum("relaxed by 10%" in x for x in said) == 2
    assert all(w.relative_gain >= 0 for w in r.what_ifs if w.description.startswith("one more"))


def test_the_command_prints_gap_flips_and_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    search_command({**ASKED, "top": 1}, True)
    out = json.loads(capsys.readouterr().out)["sensitivity"]
    assert out["runner_up"] and out["experiment"]["metric"] and out["sentence"]
    search_command(ASKED, False)
    text = capsys.readouterr().out
    assert "measure" in text and "what if" in text


# ----------------------------------------------------------------------------------------------------------- reference


def test_stages_lose_and_gain_one_layer_and_keep_their_sum() -> None:
    s = Strategy(pp=4, layers_per_stage=(9, 9, 9, 9))
    cuts = [m["layers_per_stage"] for m in stage_moves(s, {})]
    assert len(set(cuts)) == len(cuts) >= 4
    assert all(sum(c) == 36 and max(c) == 10 and min(c) == 8 for c in cuts)  # type: ignore[arg-type, type-var]
    assert not list(stage_moves(Strategy(pp=1), {}))


def test_moves_leave_the_enumerated_space() -> None:
    """The search cuts stages evenly and takes batches from a ladder; the reference does neither."""
    bench = Workbench(deployment(nodes=1, devices_per_node=4))
    s = Strategy(tp=1, pp=4, batch=64, layers_per_stage=(9, 9, 9, 9))
    tried = list(candidates(bench, s))
    assert any(t.layers_per_stage not in (None, (9, 9, 9, 9)) for t in tried)
    assert {72, 56} <= {t.batch for t in tried} and 6144 in {t.max_num_batched_tokens for t in tried}
    experts = list(moves(Strategy(tp=4, attn_dp=2, ep=4, etp=2), moe=True))
    assert {(m.get("ep"), m.get("etp")) for m in experts} >= {(8, 1), (2, 4)}
    assert any(m.get("moe_comm") == "allgather" for m in experts)


def test_a_worse_plan_has_regret_and_the_reference_names_the_better_one() -> None:
    bench = Workbench(deployment())
    worst = bench.search.ranked[-1]
    r = reference_of(bench, worst)
    assert r.num_simulated > 1 and not r.provisional
    assert r.plan_value is not None and r.objective_value is not None and r.objective_value > r.plan_value
    item = distance_item(r, bench.search.objective)
    assert item.value < 1 and "regret" in item.reason and "simulated" in item.reason


def test_the_simulation_judges_the_stated_requirements() -> None:
    s = Strategy(tp=1, dp=4, batch=64)
    easy, hard = (run(Workbench(deployment(tpot_ms=t)), s, 400) for t in (1000.0, 0.1))
    assert easy is not None and hard is not None
    assert easy.margin > 0 and not easy.broken
    assert hard.margin < 0 and "tpot_s" in hard.broken
    assert easy.value == hard.value


def test_a_plan_that_breaks_a_limit_in_the_simulation_is_not_called_perfect() -> None:
    r = Reference(objective_value=90.0, plan_value=100.0, strategy="tp4", num_evaluated=9, num_simulated=3, method="m",
                  broken="ttft_s p99 = 3, required <= 1", holds=True)  # fmt: skip
    item = distance_item(r, "total_throughput")
    assert item.value == 0.8 and "ttft_s p99" in item.reason and "tp4 holds" in item.reason
    alone = distance_item(r.model_copy(update={"holds": False}), "total_throughput")
    assert alone.value == 1.0 and "ttft_s p99" in alone.reason


# ------------------------------------------------------------------------------------------------- infeasible, cheaply


@pytest.mark.parametrize(
    "load", [{"rate": 900.0, "tpot_ms": 9.0}, {"rate": None, "concurrency": 4000, "tpot_ms": 12.0}]
)
def test_the_lighter_load_is_the_one_that_searching_anew_finds(load: dict) -> None:
    """Known prices served again give the same answer as the whole search at every load of the bisection."""
    d = deployment(**load)
    space, seen = explore(d, CURVES)
    assert not space.num_feasible
    (change,) = lighter_load(d, CURVES, seen)
    w = d.workload

    def works(k: int) -> bool:
        update = {"request_rate": (w.request_rate or 0) * k / 100} if w.request_rate else {"concurrency": k}
        return best_of(with_workload(d, **update), CURVES) is not None

    most = _largest(1, 99 if w.request_rate else (w.concurrency or 2) - 1, works)
    assert most is not None
    assert change.value == pytest.approx((w.request_rate or 0) * most / 100 if w.request_rate else most)


def test_a_relaxed_limit_is_one_that_a_search_meets() -> None:
    d = deployment(ttft_ms=1.0)
    _, seen = explore(d, CURVES)
    changes = list(relaxed_limits(d, CURVES, seen))
    assert changes and all(best_of(c.deployment, CURVES) is not None for c in changes)


def test_a_shorter_context_is_the_longest_whole_step_that_works() -> None:
    d = deployment(model="llama3.1-70b", devices_per_node=2, rate=None, ttft_ms=None, tpot_ms=None)
    d = d.model_copy(update={"workload": d.workload.model_copy(update={"max_context": 131_072})})
    _, seen = explore(d, CURVES)
    (change,) = shorter_context(d, CURVES, seen)
    assert change.value % 1024 == 0 and best_of(change.deployment, CURVES) is not None
    longer = with_workload(d, max_context=int(change.value) + 1024)
    assert best_of(longer, CURVES) is None
