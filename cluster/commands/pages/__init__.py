"""Commands that show a run in a browser: pages written at once, or made when they are asked for."""
