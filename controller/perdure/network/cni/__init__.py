"""A client of the Container Network Interface: specification 1.1.0, network configurations from 0.3.1 on.

https://github.com/containernetworking/cni/blob/main/SPEC.md; files and cache are as libcni's, its reference client.
"""
