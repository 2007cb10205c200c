"""`python -m firewall`."""

from firewall.cli import main

if __name__ == "__main__":
    main()
