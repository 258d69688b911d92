"""What belongs to the whole chip and survives resets: device memory, error log, black box, kept state."""
