"""How a device is reached: ssh, or adb. Nothing here knows a runtime.

An address is the start of a target, `ssh://[USER@]HOST[:PORT]`, `adb:` or `adb:SERIAL`; a runtime
may have settings behind it, `?NAME=VALUE&...`. `transport_to` returns the transport of an address.
"""

from nas.transports.address import is_address, split_address, transport_to
from nas.transports.base import EndedProgramError, Program, Transport

__all__ = [
    "EndedProgramError",
    "Program",
    "Transport",
    "is_address",
    "split_address",
    "transport_to",
]
