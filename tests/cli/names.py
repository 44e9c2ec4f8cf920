"""The commands that users, documents and the Makefile rely on."""

COMMANDS = ("serve", "chat", "run", "pull", "list", "rm", "show", "doctor", "eval", "bench")
