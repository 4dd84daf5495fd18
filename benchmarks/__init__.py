"""Benchmarks of leanattn; README.md says how to run and read them."""
