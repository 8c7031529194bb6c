"""`python -m deployments`."""

from dotenv import load_dotenv

from deployments.cli import app
from deployments.manifest import ROOT

load_dotenv(ROOT / ".env")
app()
