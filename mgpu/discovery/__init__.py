"""Which known services run on this machine, and the broker.yaml that follows from it.

It looks at what listens (``listeners``), asks each port the harmless questions of the presets
(``fingerprints``), looks up what a service runs in (``homes``), joins the three (``survey``) and
writes it down (``proposal``). It changes nothing and asks nobody but this machine's own ports.
"""
