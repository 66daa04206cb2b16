"""A ranking API that is cached with swr, and a demo that shows it at work."""
