"""The story of docs/bring-up.md, told by running it."""
