"""Sampler benchmarks on synthetic landscapes with a known optimum and on tables of fully trained layouts."""
