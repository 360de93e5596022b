"""Benchmarks: ours beside a peer, in one run on one machine. `python -m bench --help` lists them; docs/benchmarks.md explains them."""
