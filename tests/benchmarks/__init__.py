"""What the package's speed is measured by: `python -m tests.benchmarks [name ...] [--json F] [--rows N]`."""
