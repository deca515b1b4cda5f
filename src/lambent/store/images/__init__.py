"""Container images without a Docker daemon: found, pulled and unpacked into a root file system.

reference   what an ImageUri says
manifest    the JSON of images, and which one of many fits a platform
local       layouts, archives and plain folders on this machine
registry    registries that speak the distribution API; `credentials` says who we are to them
layer       one layer: decompressed, checked, applied
rootfs      the tree that layers are applied to, which nothing leads out of
store       all of it behind two calls: `pinned` (what is it?) and `ensure` (have it unpacked)
"""
