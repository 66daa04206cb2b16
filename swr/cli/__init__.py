"""The command `swr`: one module for each family of commands. Private.

Imports: everything else in swr; nothing imports it. `main` holds the parser and the exit codes, `shared` what the
families have in common.
"""
