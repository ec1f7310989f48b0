"""Fixtures of the client's tests."""

from tests.unit.fermion.platform import platform

__all__ = ["platform"]
