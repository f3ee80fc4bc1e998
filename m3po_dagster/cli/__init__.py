"""The `m3po` command: one module a group of commands, each a few lines over the library."""
