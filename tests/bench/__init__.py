"""Measurements, each beside what it is compared with, in interleaved rounds of one run."""
