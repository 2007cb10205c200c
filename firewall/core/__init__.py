"""Guards that ship with the package, for photographs in front of any classifier.

`python -m firewall.core.photographs --out DIR` brings the photographs, and
`python -m firewall.core.build --photographs DIR --work DIR` makes the weights from them.
"""
