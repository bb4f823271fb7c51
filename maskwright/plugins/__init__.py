"""Domains that need no heavy library of their own."""
