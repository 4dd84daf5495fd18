"""Attention time over a trace of requests, in continuous batching: `python -m benchmarks.replay`."""
