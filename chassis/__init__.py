"""The shared kernel: how one call becomes a fact that everyone can count. It names no service."""
