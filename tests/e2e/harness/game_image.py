"""The image of the tests' game servers: the busybox sample with Debian's own perl in it, for what busybox cannot do (UDP).

perl-base is an essential package of Debian: its program and its libraries are on every machine that these tests run on.
"""

from __future__ import annotations

import re
from pathlib import Path

from rig.images import Entry, Image, busybox_layer, layer, oci_archive
from rig.progress import run

NAME = "perdure.dev/tests/game:1"

UDP_ECHO = (
    "$| = 1; socket(S, {family}, 2, 17) or die $!; bind(S, {address}) or die $!; "
    'print "listening\\n"; while (1) {{ my $from = recv(S, my $text, 4096, 0); send(S, "echo $text", 0, $from); }}'
)
"""With the numbers of socket(2) for Linux, because perl-base comes without most modules."""


def udp_echo(port: int) -> list[str]:
    """The command of a server that sends datagrams back."""
    address = f'pack("S n a4 x8", 2, {port}, "\\0" x 4)'
    return ["/usr/bin/perl", "-e", UDP_ECHO.format(family=2, address=address)]


def write(directory: Path) -> Path:
    """Build the image's archive. Raises CommandError or OSError where perl is not Debian's."""
    perl = Path("/usr/bin/perl")
    libraries = sorted(set(re.findall(r"(/\S+) \(0x", run(["ldd", str(perl)], timeout=20))))
    folders = sorted({f"{parent}/".lstrip("/") for path in libraries for parent in Path(path).parents if parent.name})
    second = layer(
        [
            *(Entry(folder) for folder in folders),
            Entry("usr/bin/perl", 0o755, content=perl.read_bytes()),
            *(Entry(path.lstrip("/"), 0o755, content=Path(path).read_bytes()) for path in libraries),
        ]
    )
    busybox = Path("/bin/busybox")
    base = busybox_layer(busybox.read_bytes(), run([busybox, "--list-full"], timeout=20).split())
    archive = directory / "game.tar"
    archive.write_bytes(oci_archive(Image(NAME, [base, second], ("/bin/sh",))))
    return archive
