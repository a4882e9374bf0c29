"""`availability demo`: a small company in a minute, and an independent audit of what the service did to it.

``catalogue`` is who sells what from where, ``actors`` are the systems and shoppers, ``journal`` keeps what
was sent and answered, ``books`` recompute every balance from it, ``audit`` compares, ``view`` shows,
``run`` puts it together. The books may not use the service's own formula: they are the second opinion.
"""
