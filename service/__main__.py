"""``python -m service`` is ``tritonpose``."""

from service.cli import app

# Workers import this module again, under another name.
if __name__ == "__main__":
    app(prog_name="tritonpose")
