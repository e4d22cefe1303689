"""The layouts that data sets come in, a file each."""
