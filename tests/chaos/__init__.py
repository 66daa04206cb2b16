"""The long run: real processes over one server, everything that can break does, and an oracle checks every answer."""
