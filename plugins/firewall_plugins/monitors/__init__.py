"""Monitors that come with the firewall."""
