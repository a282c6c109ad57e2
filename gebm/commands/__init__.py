"""The commands: each turns a `Config` into plain arguments for the library. Nothing else reads a `Config`."""
