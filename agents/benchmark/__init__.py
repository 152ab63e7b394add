"""Measure victims, attacks and the simulator; every command prints both sides of a comparison."""
