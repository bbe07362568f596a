"""Prints the path of the addon, for `mitmdump -s`."""

from . import ADDON

if __name__ == "__main__":
    print(ADDON)
