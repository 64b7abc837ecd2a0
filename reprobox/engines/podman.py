"""Podman through its Docker-compatible API."""
