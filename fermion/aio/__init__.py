"""The client for asyncio; what one calls differs from the other's in `await` alone."""
