"""The operations: each has a slow twin (``naive.py``), which is its definition, and fast ones that agree with it.

* ``rglru``: the gated linear recurrence of Hawk. * ``conv``: the short depthwise convolution before it.
* ``norm``: RMSNorm and the residual sum. * ``gating``: GELU gates. * ``linear``: matrix products.

`backend.select` says which implementation runs: ``cpu`` (numba) for float32 and bfloat16 on a CPU, ``cuda``
where its kernels import and pass their self-check, ``blocked`` (plain torch) on any other device, ``naive`` for
float64.
"""
