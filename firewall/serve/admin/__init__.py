"""`firewall.v1.AdminService`: changes of what is served, and the quarantine."""
