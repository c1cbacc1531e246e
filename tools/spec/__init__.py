"""The vocabulary of meshwright. Imports nothing of ours but itself."""
