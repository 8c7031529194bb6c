"""Code from outside of the environment: with it, runs start cold (`make test-cold`)."""
