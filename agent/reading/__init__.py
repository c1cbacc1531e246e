"""Reading the inputs: files → `InputFile`s → `Conditions` (facts with evidence) → `Deployment` (one value each)."""

from agent.reading.reader import read_conditions
from agent.reading.resolve import resolve
from agent.reading.sources import input_from_text, read_files
from agent.reading.structured import read_leaves

__all__ = ["input_from_text", "read_conditions", "read_files", "read_leaves", "resolve"]
