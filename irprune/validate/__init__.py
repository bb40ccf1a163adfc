"""Validation: the oracle, parity and measurements."""
