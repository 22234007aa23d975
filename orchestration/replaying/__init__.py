"""What a bundle would have shown for the logged requests of the last days, beside what was shown."""
