"""`python -m deployments.init NAME`."""

import sys

from deployments.init._init import start_project

if __name__ == "__main__":
    try:
        print(start_project(*sys.argv[1:2]))  # noqa: T201 - a command
    except ValueError as error:
        sys.exit(f"error: {error}")
