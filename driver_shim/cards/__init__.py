"""The cards of this machine as the operating system shows them: discovery, drivers, holders, the doctor's checks.

Nothing here opens a card. Start with `discovery.py`.
"""
