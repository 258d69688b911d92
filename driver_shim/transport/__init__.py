"""Ways to reach a PCI function: one interface (`base.py`), one module a way in."""
