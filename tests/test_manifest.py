"""manifest.json: paths and hashes, and nothing that a second run would write differently."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tools.manifest import KINDS, Artifact, InputRef, Manifest, build, input_path, sha256, verify
from tools.spec.base import ToolError
from tools.spec.conditions import InputFile

FILES = {
    "plan.json": b"{}",
    "plan.md": b"# Plan",
    "dag/plan.dot": b"digraph {}",
    "events.jsonl": b"1\n2\n",
    "../in.md": b"8 x H100",
}


def a_manifest() -> Manifest:
    source = InputFile(path="../in.md", sha256=sha256(FILES["../in.md"]), text="8 x H100", kind="markdown")
    kinds = (("dag_dot", "dag/plan.dot"), ("report", "plan.md"), ("events", "events.jsonl"), ("plan", "plan.json"))
    return build("proven", inputs=[source], artifacts=[(k, p, FILES[p]) for k, p in kinds])


def test_what_was_published_verifies():
    assert verify(a_manifest(), FILES.get) == ()


@pytest.mark.parametrize("path", ["plan.json", "plan.md", "dag/plan.dot", "../in.md"])
def test_one_changed_byte_is_found_in_any_hashed_file(path: str):
    changed = {**FILES, path: FILES[path] + b" "}
    (finding,) = verify(a_manifest(), changed.get)
    assert (finding.code, finding.where, finding.severity) == ("manifest-changed", path, "error")
    assert finding.values == {"expected": sha256(FILES[path]), "actual": sha256(changed[path])}


@pytest.mark.parametrize("path", ["plan.json", "../in.md"])
def test_a_file_that_is_gone_is_found(path: str):
    left = {p: data for p, data in FILES.items() if p != path}
    (finding,) = verify(a_manifest(), left.get)
    assert (finding.code, finding.where) == ("manifest-missing", path)


def test_the_event_log_may_differ_between_two_runs_that_publish_the_same():
    manifest = a_manifest()
    assert verify(manifest, {**FILES, "events.jsonl": b"another"}.get) == ()
    (events,) = manifest.of("events")
    assert events.sha256 is None and "sha256" not in json.loads(manifest.to_json())["artifacts"][-1]


def test_the_manifest_holds_the_documented_keys_and_no_content():
    document = json.loads(a_manifest().to_json())
    assert set(document) == {"schema_version", "status", "degraded", "inputs", "artifacts"}
    assert all(set(i) == {"path", "sha256"} for i in document["inputs"])
    assert all({"kind", "path"} <= set(a) <= {"kind", "path", "sha256"} for a in document["artifacts"])
    assert b"8 x H100".decode() not in a_manifest().to_json()


@given(st.permutations([(k, f"f/{k}", k.encode()) for k in KINDS]))
def test_the_order_in_which_files_were_written_does_not_show(artifacts):
    ordered = [(k, f"f/{k}", k.encode()) for k in KINDS]
    assert (
        build("proven", inputs=[], artifacts=artifacts).to_json()
        == build("proven", inputs=[], artifacts=ordered).to_json()
    )


def test_a_manifest_survives_its_own_json():
    assert Manifest.model_validate_json(a_manifest().to_json()) == a_manifest()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../out.md", "a/../b", "./a", "a//b", "C:/a", "a\\b", "~/a", "", ".", "a/"]
)
def test_artifacts_lie_inside_the_folder_and_are_written_one_way(path: str):
    with pytest.raises(ValidationError):
        Artifact(kind="plan", path=path, sha256="0")


def test_inputs_may_lie_outside_but_never_absolute():
    assert InputRef(path="../../conditions.md", sha256="0").path == "../../conditions.md"
    with pytest.raises(ValidationError, match="relative"):
        InputRef(path="/home/a.md", sha256="0")
    assert input_path("/home/a/in.md", "/home/a/runs/1") == "../../in.md"
    with pytest.raises(ToolError, match="absolute"):
        input_path("in.md", "/home")


def test_hashes_are_there_exactly_for_the_kinds_that_have_them():
    for kind in KINDS:
        with pytest.raises(ValidationError):
            Artifact(kind=kind, path="a", sha256="0" if kind == "events" else None)


def test_the_same_path_twice_is_refused():
    with pytest.raises(ValidationError, match="twice"):
        build("proven", inputs=[], artifacts=[("plan", "a", b"1"), ("report", "a", b"2")])
