"""The laboratory: trains the defended networks, makes the adversarial images, writes stimulus packs."""
