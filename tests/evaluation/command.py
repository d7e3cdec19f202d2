"""`elocute eval`, in this process."""

import json

from typer.testing import CliRunner

from elocute.cli import app


def run(*words) -> dict:
    done = CliRunner().invoke(app, ["eval", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
