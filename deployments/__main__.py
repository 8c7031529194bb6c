"""`python -m deployments`."""

from dotenv import load_dotenv

from deployments.commands._cli import app
from deployments.commands._manifest import ROOT

load_dotenv(ROOT / ".env")
app()
