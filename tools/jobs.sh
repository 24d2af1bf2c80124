#!/bin/bash
# Prints how many files to compile at once: one a core, but no more than memory holds (what includes libtorch
# takes up to 2 GB).
by_memory=$(awk '/^MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo)
cores=$(nproc)
echo $((by_memory < 1 ? 1 : by_memory < cores ? by_memory : cores))
