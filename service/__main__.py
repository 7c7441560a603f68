"""``python -m service`` is ``tritonpose``."""

from service.cli import app

app(prog_name="tritonpose")
