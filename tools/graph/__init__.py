"""The operator graph of a model before any parallelism: named dims, few kinds of operators."""
