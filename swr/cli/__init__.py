"""The command `swr`: one module for each family of commands. Private.

Imports: everything else in swr; nothing imports this folder. `main` has the parser and the exit codes, `shared` the
parts that several commands use.
"""
