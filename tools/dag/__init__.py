"""The deployment as a directed acyclic graph of operators on devices.

graph.py      the vocabulary: nodes with ports, edges with tensors, lanes, frames of repeated layers
build.py      Program → Dag: one node per operator and device, one per collective group
layout.py     swim lanes: where every node and edge is drawn
runtime.py    tables → drawn nodes and edges; also the text of it goes into every generated script
script.py     the generated, self-contained python file;  dot.py  the same as DOT text in memory
parse.py      any DOT text → a generic graph;  facts.py  what its labels say;  rules.py  R01-R21;  check_dot.py
"""
