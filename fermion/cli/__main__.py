"""`python -m fermion.cli` is `fermion`."""

from fermion.cli import main

main()
