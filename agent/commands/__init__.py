"""What the commands do. Each function takes parsed options and returns the exit code."""
