"""Bad input of every kind: what a platform is told that it should not be told."""
