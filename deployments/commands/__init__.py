"""What surrounds Prefect: `python -m deployments`, over the door of the runtime only."""
