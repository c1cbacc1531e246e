"""Operator graph x layouts → per-device graph with explicit collectives.

mesh.py     one device group, its axes, who is in which group
layout.py   how a tensor lies on the mesh, and what it takes to change that (redistribute)
rules.py    one rule per operator kind: which layouts it needs, which it makes
placement.py  which axis splits which dim of the weights: the strategy, said in layouts
lower.py    walks a body, applies the rules, inserts the collectives; assembles stages into a Program
"""
