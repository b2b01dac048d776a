"""Archives of writable layers: written, read back, verified and restored, in a store that is a folder of this node.

`local.LocalStore` is the `Archives` port. It runs each long job in a child process (`worker`), which runs GNU tar and
zstd (and, for restores, bubblewrap); the event loop only waits. An archive is one file:

    zstd skippable frame: `manifest.Contents` as JSON (where it came from; deletions, opaque folders, device nodes)
    zstd frames: a POSIX tar of everything else in the layer

so the one hash that the catalogue knows covers what the tar cannot say as well.
"""
