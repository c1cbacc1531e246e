"""Exhaustive search: enumerate what is legal, drop what does not fit, price the rest in one vectorised walk, rank.

space.py      enumeration, engine and memory filters, prices of everything as arrays
objective.py  what "best" means
pareto.py     the front
rank.py       search(): order, baseline, runner-up, devices table
explain.py    infeasible verdicts with the nearest change that helps, and what-ifs
"""

from tools.search.rank import baseline_strategy, evaluate_strategy, search

__all__ = ["baseline_strategy", "evaluate_strategy", "search"]
