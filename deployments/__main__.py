"""`python -m deployments`."""

from dotenv import load_dotenv

from deployments._cli import main
from deployments.project import ROOT

load_dotenv(ROOT / ".env")
main()
