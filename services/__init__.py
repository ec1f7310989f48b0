"""The services of the platform; none of them imports another."""
