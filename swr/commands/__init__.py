"""What the command `swr` can do, one module for each family of commands."""
