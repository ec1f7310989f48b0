"""Fixtures that every tier may ask for."""

from tests.servers import database, nats_server, nats_session, postgres_server

__all__ = ["database", "nats_server", "nats_session", "postgres_server"]
