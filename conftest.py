"""What this repository's own suite switches on; users of vmtest need none of it."""

pytest_plugins = ["pytester"]
