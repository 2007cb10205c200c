"""Plugins that come with the firewall, found through the same entry points as anyone's."""
