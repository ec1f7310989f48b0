"""Fixtures that every tier may ask for."""

from hypothesis import settings

from tests.servers import database, nats_server, nats_session, postgres_server

__all__ = ["database", "nats_server", "nats_session", "postgres_server"]

# How long an example takes says something of the machine, and nothing of what it proves.
settings.register_profile("fermion", deadline=None)
settings.load_profile("fermion")
