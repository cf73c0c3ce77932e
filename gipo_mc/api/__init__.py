"""What `import gipo_mc` offers to other programs; the names themselves stand in `gipo_mc`, which imports them late."""
