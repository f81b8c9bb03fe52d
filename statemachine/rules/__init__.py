"""The rules: what each command does. One function per command, which decides first and then changes."""
