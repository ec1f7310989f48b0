"""PostgreSQL and NATS from their wheels, in a folder of one's own, gone when their parent is gone."""

from chassis.embedded.child import Standing, last_lines, spawn
from chassis.embedded.credentials import Keys
from chassis.embedded.home import Home, default_home
from chassis.embedded.nats import SUBSCRIBER, Nats
from chassis.embedded.port import free_port, is_free
from chassis.embedded.postgres import Postgres

__all__ = [
    "SUBSCRIBER",
    "Home",
    "Keys",
    "Nats",
    "Postgres",
    "Standing",
    "default_home",
    "free_port",
    "is_free",
    "last_lines",
    "spawn",
]
