"""Images: from a reference to unpacked layers that overlayfs can stack. `ImageStore` is the way in.

reference, hosts, challenge, registry    names, mirrors, log-in, transfer
manifest, imageconfig, model             documents of strangers, checked; the records that leave this package
pulling, store, index, blobs, layers     a pull, and what is kept on disk
decompress, tarstream, apply, rootdir    a layer's bytes to files, in one directory whatever the archive says
unpack, unpacker                         the same in a process with few rights
archive, cli                             files in and out, from a terminal
"""
