"""What writes docs/strategies.md: the examples, their graphs, their pictures, the page."""
