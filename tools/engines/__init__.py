"""Engines, serving and training: what each release accepts (`rules/`) and the files that launch it (`export/`).

Rules change between releases, so everything is keyed by engine and version. Adding an engine: one file in `rules/` that
builds an `EngineRules`, one in `export/` that builds a `Launcher`, their entries in the two registries, and its vendors
in `rules/devices.py`.
"""
