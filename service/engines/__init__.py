"""Engines: what runs the networks. One interface (``base``), an embedded one, one for tests."""
