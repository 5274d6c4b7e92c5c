"""The self-test before `up`: the escape probes in a throw-away jail."""
