"""Firmware tools: images, signing, flashing, console, core dumps and register export for bring-up engineers.

They stand on `driver_shim` and never on `sdk`, so that they work on a board whose firmware cannot run a model yet.
"""
