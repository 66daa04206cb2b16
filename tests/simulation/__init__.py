"""Fleets of the real engine on a simulated clock, with faults from a seed, and an oracle that checks every answer."""
