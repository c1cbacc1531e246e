"""Executes a per-device graph on simulated devices and compares every tensor with the unpartitioned model.

reduce.py    a model with small, pairwise distinct dims and the same residue classes: same graph, tiny tensors
execute.py   the unpartitioned model, and all devices of a program, in numpy
prove.py     prefill and decode steps on both, compared tensor by tensor → Proof
"""
