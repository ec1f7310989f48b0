"""Fixtures that every tier may ask for."""

import os
import signal

from hypothesis import settings

from tests.servers import database, nats_server, nats_session, postgres_server

__all__ = ["database", "nats_server", "nats_session", "postgres_server"]

# How long an example takes says something of the machine, and nothing of what it proves.
settings.register_profile("fermion", deadline=None)
# A gate is asked twice and has to answer the same; new examples are looked for by `make test`.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("FERMION_HYPOTHESIS", "fermion"))

# A shell starts what it puts into the background with Ctrl-C ignored, and all that is started from there
# inherits it: tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
