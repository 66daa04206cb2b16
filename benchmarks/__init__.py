"""Benchmarks: `scripts/bench decorator`, `scripts/bench middleware`, `scripts/bench stampede`; see README.md here."""
