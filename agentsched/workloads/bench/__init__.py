"""Benchmarks, one module each: ``scripts/bench NAME`` runs ``agentsched.workloads.bench.NAME``."""
