"""Pull an image in a process that does nothing else, and print the most memory that it had, in MB.

    python -m benchmarks.pulled REFERENCE ROOT
"""

import sys

from layerstore import Images, Store


def main() -> None:
    """Pull into a store without durability, as peers do."""
    reference, root = sys.argv[1:]
    with Store(root, options={"durability": "none"}) as store:
        Images(store).pull(reference)
    # ru_maxrss would also know the process that started this one.
    with open("/proc/self/status") as file:
        print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6)


if __name__ == "__main__":
    main()
