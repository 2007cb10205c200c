"""The compiled guard: sessions, tiers, calibration, policy, verdict and self-test. No torch."""
