"""Checks of irprune's own that are also of use to those who add operators or run other suites
against it."""
